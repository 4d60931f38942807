//! The guest image: whether there is one, whether it is intact, and whether it offers what a lease needs.

use crabbox_core::config::firecracker::FirecrackerPlan;

use super::super::check::{Check, Class, Status};
use super::super::world::{Contract, Ext4, FileKind, Image, Observed, World};

/// Programs without which a foreign image cannot be entered; its cloud-init may still install the others.
const ESSENTIAL: [&str; 2] = ["sshd", "cloud-init"];
/// The fix that works for any image problem.
const OURS: &str = "`crabbox image build` (and unset firecracker.kernel and firecracker.rootfs)";

pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let files = [&world.guest.kernel, &world.guest.rootfs];
    let check = match &world.guest.image {
        // The checks `kernel` and `rootfs` already report that.
        Image::Foreign { .. } if files.iter().any(|file| file.kind != Ok(FileKind::File)) => {
            Check::firecracker(
                Status::Skip,
                "image",
                "image=unchecked reason=no_kernel_or_no_rootfs mutation=false",
            )
        }
        Image::None { trouble } => {
            let message = match trouble {
                Some(trouble) => format!("no usable image: {trouble}"),
                None => "no image: nothing is built and nothing is configured".to_owned(),
            };
            Check::firecracker(Status::Missing, "image", message)
                .trouble(Class::EnvironmentBlocked, "crabbox setup firecracker")
        }
        Image::Ours {
            digest,
            kernel,
            damage,
            contract,
            ..
        } => ours(digest, kernel, damage, contract),
        Image::Foreign {
            kernel,
            rootfs,
            contract,
        } => match foreign_files(plan, kernel, rootfs) {
            Some(check) => check,
            None => foreign_contract(contract),
        },
    };
    vec![check]
}

fn ours(digest: &str, kernel: &str, damage: &[String], contract: &Observed<Contract>) -> Check {
    let short = digest.get(..12).unwrap_or(digest);
    let facts = format!("image=crabbox digest={short} guest_kernel={kernel} mutation=false");
    let missing = contract
        .as_ref()
        .map(|contract| contract.missing.join(", "))
        .unwrap_or_default();
    let wrong = match () {
        () if !damage.is_empty() => format!("the image is damaged ({}): {facts}", damage.join("; ")),
        () if !missing.is_empty() => format!("the image lacks {missing}: {facts}"),
        () => return read_note(Check::firecracker(Status::Ok, "image", facts), contract),
    };
    Check::firecracker(Status::Failed, "image", wrong)
        .trouble(Class::EnvironmentBlocked, "crabbox image build")
}

/// Records whether the contract was read; without debugfs it is taken on trust.
fn read_note(check: Check, contract: &Observed<Contract>) -> Check {
    match contract {
        Ok(_) => check.with("contract", "read"),
        Err(trouble) => check.with("contract", format!("unread: {trouble}")),
    }
}

/// Problems with the kernel and root file system as files.
fn foreign_files(plan: &FirecrackerPlan, kernel: &Observed<()>, rootfs: &Observed<Ext4>) -> Option<Check> {
    if let Err(trouble) = kernel {
        let fix = "take the vmlinux out of it (scripts/extract-vmlinux of the kernel's sources), or use `crabbox image build`";
        let message = format!("firecracker.kernel is not bootable: {trouble}");
        return Some(
            Check::firecracker(Status::Failed, "image", message).trouble(Class::ConfigurationIncomplete, fix),
        );
    }
    let rootfs = match rootfs {
        Ok(rootfs) => rootfs,
        Err(trouble) => {
            let message = format!("firecracker.rootfs is not usable: {trouble}");
            return Some(
                Check::firecracker(Status::Failed, "image", message)
                    .trouble(Class::ConfigurationIncomplete, OURS),
            );
        }
    };
    (rootfs.mib > plan.disk_mib).then(|| {
        let message = format!(
            "rootfs_mib={} disk_mib={} mutation=false: the disk is smaller than the image",
            rootfs.mib, plan.disk_mib
        );
        Check::firecracker(Status::Failed, "image", message).trouble(
            Class::ConfigurationIncomplete,
            format!("--firecracker-disk-mib {}", rootfs.mib),
        )
    })
}

fn foreign_contract(contract: &Observed<Contract>) -> Check {
    let contract = match contract {
        Ok(contract) => contract,
        Err(trouble) => {
            let message = "image=foreign format=ext4 contract=unread mutation=false";
            return Check::firecracker(Status::Warning, "image", message)
                .with("reason", trouble)
                .trouble(Class::Degraded, "sudo apt-get install e2fsprogs");
        }
    };
    let facts = "image=foreign format=ext4 contract=read mutation=false";
    let essential: Vec<&str> = contract
        .missing
        .iter()
        .copied()
        .filter(|name| ESSENTIAL.contains(name))
        .collect();
    if !essential.is_empty() {
        let message = format!(
            "the image lacks {}, so no login would be possible: {facts}",
            essential.join(", ")
        );
        return Check::firecracker(Status::Failed, "image", message).trouble(Class::EnvironmentBlocked, OURS);
    }
    if !contract.missing.is_empty() {
        let missing = contract.missing.join(", ");
        let message =
            format!("the image lacks {missing}, which each lease must install when it boots: {facts}");
        return Check::firecracker(Status::Warning, "image", message)
            .trouble(Class::Degraded, format!("install {missing} in the image"));
    }
    if contract.host_key {
        let message = format!("the image brings an SSH host key, which every lease would share: {facts}");
        return Check::firecracker(Status::Warning, "image", message)
            .trouble(Class::Hardening, "remove /etc/ssh/ssh_host_* from the image");
    }
    Check::firecracker(Status::Ok, "image", facts)
}
