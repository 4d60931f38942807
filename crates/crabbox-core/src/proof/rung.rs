//! What kind of host a proof stands for: decided from what the guest's kernel and the host's processor say.
//!
//! The ladder is the one of CONTRIBUTING.md. It must never claim more than was seen, and says how sure it is.

use serde::{Deserialize, Serialize};

/// Whose kernel the guest's commands ran on. A machine of its own has one of its own, which no pretended one can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuestKernel {
    /// Its own: the guest has another boot id than the host.
    Own,
    /// The host's.
    Hosts,
    /// No command of ours ran in a guest.
    Unseen,
}

/// Who the host's processor says it is run by (CPUID leaf 0x40000000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hypervisor {
    /// By nobody: no hypervisor is announced.
    None,
    /// QEMU without hardware's help: every instruction is emulated.
    Tcg,
    /// KVM.
    Kvm,
    /// Hyper-V.
    HyperV,
    /// `VMware`.
    Vmware,
    /// Xen.
    Xen,
    /// Somebody else.
    Other,
    /// This kind of processor does not say it.
    Unreadable,
}

/// What the firmware calls the host's maker (DMI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    /// A maker of virtual machines.
    Virtual,
    /// Somebody else.
    Other,
    /// There is none, or it cannot be read.
    Unreadable,
}

/// The kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// KVM on the machine itself.
    Hardware,
    /// KVM in a virtual machine whose own host runs it on hardware.
    Nested,
    /// KVM on an emulated processor.
    Emulated,
    /// A real microVM; whether its KVM is hardware's is not known.
    Undetermined,
    /// No virtual machine at all: a fake in its place.
    Pretended,
    /// Nothing was seen of a guest.
    Unseen,
}

/// How sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sureness {
    /// It cannot be otherwise by mistake.
    Certain,
    /// Unless a hypervisor hides itself, or says it is another.
    Likely,
    /// The signs contradict each other, or there are none.
    Doubtful,
}

/// The rung of a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rung {
    /// The kind of host.
    pub kind: Kind,
    /// The rung of the test ladder: 5 is hardware KVM, 4 real Firecracker on an emulated KVM, 2 a fake VMM, 0 none.
    pub ladder: u8,
    /// How sure that is.
    pub sure: Sureness,
}

impl Rung {
    /// The rung of a host with these signs.
    pub fn of(guest: GuestKernel, hypervisor: Hypervisor, firmware: Firmware) -> Self {
        let (kind, sure) = match (guest, hypervisor, firmware) {
            (GuestKernel::Unseen, ..) => (Kind::Unseen, Sureness::Certain),
            (GuestKernel::Hosts, ..) => (Kind::Pretended, Sureness::Certain),
            (GuestKernel::Own, Hypervisor::Tcg, _) => (Kind::Emulated, Sureness::Certain),
            (GuestKernel::Own, Hypervisor::Other | Hypervisor::Unreadable, _)
            | (GuestKernel::Own, Hypervisor::None, Firmware::Virtual) => {
                (Kind::Undetermined, Sureness::Doubtful)
            }
            (GuestKernel::Own, Hypervisor::None, _) => (Kind::Hardware, Sureness::Likely),
            (
                GuestKernel::Own,
                Hypervisor::Kvm | Hypervisor::HyperV | Hypervisor::Vmware | Hypervisor::Xen,
                _,
            ) => (Kind::Nested, Sureness::Likely),
        };
        let ladder = match kind {
            Kind::Hardware | Kind::Nested => 5,
            Kind::Emulated | Kind::Undetermined => 4,
            Kind::Pretended => 2,
            Kind::Unseen => 0,
        };
        Self { kind, ladder, sure }
    }

    /// What it stands for, in a sentence without its full stop.
    pub fn words(self) -> &'static str {
        match self.kind {
            Kind::Hardware => {
                "hardware KVM: real Firecracker, a guest kernel of its own, and no hypervisor announced below the host"
            }
            Kind::Nested => {
                "nested KVM: real Firecracker and a guest kernel of its own, on a host that is a virtual machine itself"
            }
            Kind::Emulated => {
                "emulated KVM: real Firecracker and a guest kernel of its own, on a processor that QEMU emulates"
            }
            Kind::Undetermined => {
                "real Firecracker and a guest kernel of its own; whether its KVM is hardware's is not known"
            }
            Kind::Pretended => {
                "pretended: the guest ran on the host's own kernel, so there was no virtual machine"
            }
            Kind::Unseen => "nothing: no command ran in a guest",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_never_says_more_than_its_signs() {
        let all = [
            Hypervisor::None,
            Hypervisor::Tcg,
            Hypervisor::Kvm,
            Hypervisor::HyperV,
            Hypervisor::Vmware,
            Hypervisor::Xen,
            Hypervisor::Other,
            Hypervisor::Unreadable,
        ];
        for hypervisor in all {
            for firmware in [Firmware::Virtual, Firmware::Other, Firmware::Unreadable] {
                let rung = |guest| Rung::of(guest, hypervisor, firmware);
                assert_eq!(rung(GuestKernel::Hosts).ladder, 2);
                assert_eq!(rung(GuestKernel::Unseen).ladder, 0);
                let own = rung(GuestKernel::Own);
                let hardware = !matches!(
                    hypervisor,
                    Hypervisor::Tcg | Hypervisor::Other | Hypervisor::Unreadable
                ) && (hypervisor, firmware) != (Hypervisor::None, Firmware::Virtual);
                assert_eq!(
                    own.ladder,
                    if hardware { 5 } else { 4 },
                    "{hypervisor:?} {firmware:?}"
                );
                assert_eq!(
                    own.kind == Kind::Hardware,
                    hardware && hypervisor == Hypervisor::None
                );
                // Who announces no hypervisor may have one that hides.
                assert!(own.sure != Sureness::Certain || hypervisor == Hypervisor::Tcg);
            }
        }
    }
}
