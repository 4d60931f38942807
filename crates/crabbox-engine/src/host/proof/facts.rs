//! A proof's facts about the host, the VMM and the guest: kinds, numbers and digests.
//!
//! Only looks. It must never include a name, an address or a path. Unknown facts are left out, never guessed.

use std::path::Path;

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::proof::rung::{Firmware, GuestKernel, Hypervisor};
use crabbox_core::proof::{Arch, Guest, Host, Sha256, Version, Vmm};
use crabbox_host::hypervisor::{self, Announced};
use crabbox_host::signals::Interrupts;
use crabbox_host::{digest, memory};
use crabbox_image::{fetch, manifest};
use crabbox_machine::context::Engine;
use crabbox_machine::request::GuestSource;

use crate::host::prepare;

/// Vendors of virtual machines, as in their firmware. A cloud provider's name is not among them, because its
/// physical machines have it, too.
const VIRTUAL: [&str; 6] = ["QEMU", "innotek", "VMware", "Xen", "Bochs", "Parallels"];

/// The digest of a file; `None` if it cannot be read.
pub(super) fn sha256(path: &Path) -> Option<Sha256> {
    Sha256::try_from(digest::sha256_file(path).ok()?).ok()
}

/// The host.
pub(super) fn host() -> Host {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mib = memory::total_mib().unwrap_or(0);
    Host {
        arch: Arch::by_name(std::env::consts::ARCH),
        kernel: Version::leading(&release),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| count(cpus.get())),
        memory_gib: u32::try_from((mib + 512) / 1024).unwrap_or(u32::MAX),
        hypervisor: announced(hypervisor::announced()),
        firmware: firmware(hypervisor::maker().as_deref()),
    }
}

fn announced(announced: Announced) -> Hypervisor {
    match announced {
        Announced::Nobody => Hypervisor::None,
        Announced::Unreadable => Hypervisor::Unreadable,
        Announced::By(signature) => match &signature {
            b"TCGTCGTCGTCG" => Hypervisor::Tcg,
            b"KVMKVMKVM\0\0\0" => Hypervisor::Kvm,
            b"Microsoft Hv" => Hypervisor::HyperV,
            b"VMwareVMware" => Hypervisor::Vmware,
            b"XenVMMXenVMM" => Hypervisor::Xen,
            _ => Hypervisor::Other,
        },
    }
}

fn firmware(maker: Option<&str>) -> Firmware {
    match maker {
        None => Firmware::Unreadable,
        Some(maker) if VIRTUAL.iter().any(|name| maker.starts_with(name)) => Firmware::Virtual,
        Some(_) => Firmware::Other,
    }
}

/// The VMM that leases of `plan` run in.
pub(super) fn vmm(engine: &Engine, plan: &FirecrackerPlan) -> Option<Vmm> {
    let programs = prepare::programs(engine, plan).ok()?;
    let sha256 = sha256(&programs.firecracker);
    Some(Vmm {
        version: fetch::probe_version(&programs.firecracker)
            .ok()
            .and_then(|version| Version::leading(&version)),
        pinned: sha256
            .as_ref()
            .is_some_and(|sum| sum.as_str() == fetch::FIRECRACKER_SHA256),
        sha256,
        jailed: programs.jailer.is_some(),
    })
}

/// The guest that leases of `plan` boot. A large image is read completely, unless interrupted.
pub(super) fn guest(
    engine: &Engine,
    plan: &FirecrackerPlan,
    kernel: GuestKernel,
    interrupts: &Interrupts,
) -> Option<Guest> {
    let (kernel_sha256, image_sha256) = match prepare::guest(engine, plan).ok()? {
        GuestSource::Ours { dir, digest } => {
            let digest = digest.strip_prefix("sha256:").unwrap_or(&digest).to_owned();
            (sha256(&dir.join(manifest::KERNEL)), Sha256::try_from(digest).ok())
        }
        GuestSource::Foreign { kernel, rootfs, .. } => {
            let stop = || interrupts.caught().is_some();
            let image = digest::sha256_sparse(&rootfs, &stop).ok().flatten();
            (sha256(&kernel), image.and_then(|sum| Sha256::try_from(sum).ok()))
        }
    };
    let machine = prepare::machine(plan);
    Some(Guest {
        kernel,
        kernel_sha256,
        image_sha256,
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        disk_mib: machine.disk_mib,
        network: prepare::network_request(plan).ok()?.mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_this_machine_is_known_by_its_signature_or_not_at_all() {
        assert_eq!(announced(Announced::By(*b"TCGTCGTCGTCG")), Hypervisor::Tcg);
        assert_eq!(announced(Announced::By(*b"KVMKVMKVM\0\0\0")), Hypervisor::Kvm);
        assert_eq!(announced(Announced::By([0; 12])), Hypervisor::Other);
        assert_eq!(announced(Announced::Nobody), Hypervisor::None);
        assert_eq!(firmware(Some("QEMU")), Firmware::Virtual);
        assert_eq!(firmware(Some("LENOVO")), Firmware::Other);
        assert_eq!(firmware(None), Firmware::Unreadable);
    }

    #[test]
    fn this_host_can_be_described() {
        let host = host();
        assert!(host.cpus > 0 && host.kernel.is_some(), "{host:?}");
        assert_eq!(sha256(Path::new("/nonexistent")), None);
    }
}
