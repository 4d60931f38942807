//! The guest's kernel and root file system: which files, whether they are intact, and what the image offers,
//! read without mounting it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_host::process;
use crabbox_image::debugfs;
use crabbox_image::manifest::Init;
use crabbox_image::programs::{self, Check};
use crabbox_image::store::{Image as Stored, StoreError};
use crabbox_image::{guest_binary, inspect, kernel, manifest};
use crabbox_machine::context::Engine;

use super::super::world::{
    Contract, Entry, Ext4, FileKind, Guest, Image, ObserveError, Observed, Tools, Vmm,
};
use super::{MIB, entry};
use crate::host::prepare;
use crate::host::probe::{self, Judged, Key, Probe, ProbeError, Verdict};

/// The time limit for reading the contract.
const DEBUGFS_LIMIT: Duration = Duration::from_secs(5);

/// Finds what leases will boot, as `prepare` does: our image, unless a kernel or root file system is
/// configured or exists at its default path.
pub(super) fn guest(engine: &Engine, plan: &FirecrackerPlan, tools: &Tools) -> Guest {
    let (kernel, rootfs) = (
        entry(plan.kernel.value.as_path()),
        entry(plan.rootfs.value.as_path()),
    );
    let named = plan.image.as_str();
    let chosen = (!plan.kernel.is_default() || kernel.kind.is_ok())
        || (!plan.rootfs.is_default() || rootfs.kind.is_ok());
    if chosen && named.is_empty() {
        let image = foreign(&kernel, &rootfs, tools);
        return Guest {
            kernel,
            rootfs,
            image,
        };
    }
    // Opening the store would create it, and a missing store has no images anyway.
    let store = engine.places.images();
    let trouble = match store.is_dir().then(|| prepare::stored_image(&store, named)) {
        Some(Ok(stored)) => {
            let image = ours_of(&stored, tools);
            return Guest {
                kernel: entry(&stored.kernel()),
                rootfs: entry(&stored.base()),
                image,
            };
        }
        Some(Err(StoreError::NotFound { .. })) | None if named.is_empty() => None,
        None => Some(ObserveError::new(
            "firecracker.image is set, and there is no image store",
        )),
        Some(Err(error)) => Some(ObserveError::chain(&error)),
    };
    Guest {
        kernel,
        rootfs,
        image: Image::None { trouble },
    }
}

fn ours_of(stored: &Stored, tools: &Tools) -> Image {
    let damage = stored.manifest.files.iter().filter_map(|(name, expected)| {
        match std::fs::metadata(stored.dir.join(name)) {
            Ok(facts) if facts.len() == expected.bytes => None,
            Ok(facts) => Some(format!(
                "{name} has {} bytes instead of {}",
                facts.len(),
                expected.bytes
            )),
            Err(error) => Some(ObserveError::call("stat", &stored.dir.join(name), &error).words),
        }
    });
    let mut contract = contract(&stored.base(), tools);
    if let (Ok(contract), Init::Ours) = (&mut contract, stored.manifest.init) {
        // Our own init does the work of cloud-init.
        contract.missing.retain(|program| *program != "cloud-init");
    }
    let kernel = stored.manifest.files.get(manifest::KERNEL);
    Image::Ours {
        kernel_sha256: kernel.map(|kernel| kernel.sha256.clone()).unwrap_or_default(),
        digest: stored.manifest.digest.clone(),
        kernel: stored.manifest.kernel_release.clone(),
        damage: damage.collect(),
        contract,
    }
}

fn foreign(kernel: &Entry, rootfs: &Entry, tools: &Tools) -> Image {
    let elf = match kernel.kind {
        Ok(FileKind::File) => kernel::check_elf(&kernel.path).map_err(|error| ObserveError::chain(&error)),
        _ => Err(ObserveError::new("there is no kernel file")),
    };
    let (ext4, contract) = match rootfs.kind {
        Ok(FileKind::File) => (ext4(&rootfs.path), contract(&rootfs.path, tools)),
        _ => (
            Err(ObserveError::new("there is no rootfs file")),
            Err(ObserveError::new("there is no rootfs file")),
        ),
    };
    Image::Foreign {
        kernel: elf,
        rootfs: ext4,
        contract,
    }
}

fn ext4(path: &Path) -> Observed<Ext4> {
    inspect::superblock(path).map_err(|error| ObserveError::chain(&error))?;
    let facts = std::fs::metadata(path).map_err(|error| ObserveError::call("stat", path, &error))?;
    // `blocks` always counts units of 512 bytes, whatever the file system's block size is.
    Ok(Ext4 {
        mib: facts.len().div_ceil(MIB),
        used_mib: (facts.blocks() * 512).div_ceil(MIB),
    })
}

/// The contract of the file system in `image`, read with debugfs, which opens it read-only by default.
fn contract(image: &Path, tools: &Tools) -> Observed<Contract> {
    let debugfs = tools.get("debugfs").and_then(Option::as_ref);
    let debugfs = debugfs.ok_or_else(|| ObserveError::new("debugfs is not installed"))?;
    // A host key in the image is a fault: every lease would share it.
    let host_key = crabbox_image::HOST_KEY;
    let places = programs::of(Check::Doctor)
        .flat_map(|program| program.places)
        .copied()
        .chain([host_key]);
    let places: Vec<&str> = places.collect();
    let looking = debugfs::Ext4::open(&debugfs.path, image, DEBUGFS_LIMIT);
    let present = looking.and_then(|looking| looking.present(&places));
    let present = present.map_err(|error| ObserveError::chain(&error))?;
    let missing = programs::of(Check::Doctor).filter(|program| !program.is_among(&present));
    Ok(Contract {
        missing: missing.map(|program| program.name).collect(),
        host_key: present.contains(&host_key),
    })
}

/// The verdict of an earlier probe with the same parts. Only for our own images, whose kernel digest is
/// recorded: hashing 50 MB would take longer than all other checks together.
pub(super) fn remembered(engine: &Engine, vmm: &Vmm, guest: &Guest) -> Option<Verdict> {
    let Image::Ours { kernel_sha256, .. } = &guest.image else {
        return None;
    };
    let firecracker = vmm.firecracker.as_ref().ok()?.digest.clone().ok()?;
    let boot_id = process::boot_id().ok()?;
    let kernel = kernel_sha256.clone();
    probe::remembered(
        &engine.places.cache,
        &Key {
            boot_id,
            firecracker,
            kernel,
        },
    )
}

/// Boots a guest with the kernel of future leases and the init that this program carries.
pub(super) fn probe(engine: &Engine, vmm: &Vmm, guest: &Guest) -> Observed<Judged> {
    let firecracker = vmm.firecracker.as_ref().map_err(Clone::clone)?;
    let cache = &engine.places.cache;
    let written = guest_binary::bytes().map_err(|error| {
        ObserveError::new(format!(
            "this crabbox is damaged: its guest cannot be unpacked: {error}"
        ))
    })?;
    let verdict = probe::boot(&Probe {
        cache,
        firecracker: &firecracker.path,
        kernel: &guest.kernel.path,
        guest: &written,
        limit: probe::LIMIT,
    });
    verdict
        .map(|verdict| Judged {
            verdict,
            remembered: false,
        })
        .map_err(|error: ProbeError| ObserveError::chain(&error))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crabbox_host::command::Cmd;

    #[test]
    fn the_contract_is_read_from_an_image_that_nobody_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
        let installed = |name: &str| ["sshd", "bash", "git", "rsync"].contains(&name);
        for program in programs::of(Check::Doctor).filter(|program| installed(program.name)) {
            let place = program.places.last().unwrap();
            let file = tree.join(place.trim_start_matches('/'));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        // As with a merged /usr: the program is reached through a symbolic link.
        std::os::unix::fs::symlink("usr/bin", tree.join("bin")).unwrap();
        std::fs::write(tree.join("bin/tar"), "").unwrap();
        std::fs::File::create_new(&image)
            .unwrap()
            .set_len(4 << 20)
            .unwrap();
        Cmd::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&tree)
            .arg(&image)
            .run()
            .unwrap();
        let tools = super::super::tools(OsStr::new("/usr/bin:/usr/sbin"));
        let contract = contract(&image, &tools).unwrap();
        assert_eq!(
            contract,
            Contract {
                missing: vec!["cloud-init"],
                host_key: false
            }
        );
        assert_eq!(ext4(&image).unwrap().mib, 4);
        std::fs::write(&image, "no file system").unwrap();
        assert!(ext4(&image).is_err());
    }
}
