//! The kind of host that a proof is evidence for, derived from the guest's kernel and the host's processor.
//!
//! The rungs are those of CONTRIBUTING.md. It must never claim more than was observed, and includes the
//! certainty.

use serde::{Deserialize, Serialize};

/// The kernel on which the guest's commands ran. A real virtual machine has its own, which a fake VMM cannot
/// have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuestKernel {
    /// Its own: the guest's boot id differs from the host's.
    Own,
    /// The host's.
    Hosts,
    /// No command ran in a guest.
    Unseen,
}

/// The hypervisor reported by the host's processor (CPUID leaf 0x40000000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hypervisor {
    /// None.
    None,
    /// QEMU without hardware support: every instruction is emulated.
    Tcg,
    /// KVM.
    Kvm,
    /// Hyper-V.
    HyperV,
    /// `VMware`.
    Vmware,
    /// Xen.
    Xen,
    /// Another one.
    Other,
    /// This kind of processor does not report it.
    Unreadable,
}

/// The host's manufacturer according to the firmware (DMI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    /// A virtual machine vendor.
    Virtual,
    /// Another one.
    Other,
    /// There is no entry, or it cannot be read.
    Unreadable,
}

/// The kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// KVM on the machine itself.
    Hardware,
    /// KVM in a virtual machine whose own host has hardware virtualization.
    Nested,
    /// KVM on an emulated processor.
    Emulated,
    /// A real microVM; it is unknown whether its KVM is that of hardware.
    Undetermined,
    /// No virtual machine: a fake VMM.
    Pretended,
    /// No guest was observed.
    Unseen,
}

/// The certainty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Confidence {
    /// It cannot be wrong by mistake.
    Certain,
    /// Correct unless a hypervisor hides itself, or reports another name.
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
    /// The rung of the test ladder: 5 is hardware KVM, 4 real Firecracker on an emulated KVM, 2 a fake VMM, 0
    /// none.
    pub ladder: u8,
    /// The certainty.
    pub sure: Confidence,
}

impl Rung {
    /// The rung of a host with these signs.
    pub fn of(guest: GuestKernel, hypervisor: Hypervisor, firmware: Firmware) -> Self {
        let (kind, sure) = match (guest, hypervisor, firmware) {
            (GuestKernel::Unseen, ..) => (Kind::Unseen, Confidence::Certain),
            (GuestKernel::Hosts, ..) => (Kind::Pretended, Confidence::Certain),
            (GuestKernel::Own, Hypervisor::Tcg, _) => (Kind::Emulated, Confidence::Certain),
            (GuestKernel::Own, Hypervisor::Other | Hypervisor::Unreadable, _)
            | (GuestKernel::Own, Hypervisor::None, Firmware::Virtual) => {
                (Kind::Undetermined, Confidence::Doubtful)
            }
            (GuestKernel::Own, Hypervisor::None, _) => (Kind::Hardware, Confidence::Likely),
            (
                GuestKernel::Own,
                Hypervisor::Kvm | Hypervisor::HyperV | Hypervisor::Vmware | Hypervisor::Xen,
                _,
            ) => (Kind::Nested, Confidence::Likely),
        };
        let ladder = match kind {
            Kind::Hardware | Kind::Nested => 5,
            Kind::Emulated | Kind::Undetermined => 4,
            Kind::Pretended => 2,
            Kind::Unseen => 0,
        };
        Self { kind, ladder, sure }
    }

    /// Its meaning, in a sentence without a full stop.
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
                // A host that reports no hypervisor may have a hidden one.
                assert!(own.sure != Confidence::Certain || hypervisor == Hypervisor::Tcg);
            }
        }
    }
}
