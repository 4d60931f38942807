//! Somebody's ready kernel and root file system as an image of the store.
//!
//! Nothing is mounted: what the file system offers is read with `debugfs`. What cannot work in a lease is refused here, by name,
//! instead of ending in a lease that never answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::clone::{self, CloneError};
use crabbox_host::command::CommandError;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};

use crate::debugfs;
use crate::initrd::{self, InitrdError, InitrdRecipe};
use crate::inspect::{self, InspectError};
use crate::kernel::{self, KernelError};
use crate::manifest::{self, FileFacts, GuestContract, Init, Manifest};
use crate::progress::Progress;
use crate::store::{Image, Store, StoreError};

/// Longest that `debugfs` may take.
const DEBUGFS_LIMIT: Duration = Duration::from_mins(1);

/// What a lease needs of an image with an init of its own, each with the places where distributions have it.
const NEEDED: [(&str, &[&str]); 5] = [
    ("sshd", &["/usr/sbin/sshd", "/usr/bin/sshd"]),
    ("git", &["/usr/bin/git"]),
    ("rsync", &["/usr/bin/rsync"]),
    ("python3", &["/usr/bin/python3", "/usr/local/bin/python3"]),
    (
        "cloud-init",
        &["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"],
    ),
];

/// Programs by whose head the processor is told; the first that is there counts.
const TELLING: [&str; 3] = ["/usr/sbin/sshd", "/usr/bin/bash", "/bin/bash"];

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRecipe {
    /// The name that will point at the image.
    pub name: String,
    /// The guest kernel: an ELF, or a bzImage whose ELF is taken out.
    pub kernel: PathBuf,
    /// The root file system: a bare ext4.
    pub rootfs: PathBuf,
    /// The static `crabbox-guest`, for a kernel that cannot reach its root file system without modules.
    pub guest_binary: Option<PathBuf>,
}

/// Why something is no image for leases.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel cannot be used.
    #[error("cannot use the kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: KernelError,
    },
    /// The root file system is none.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It could not be looked into.
    #[error("cannot look into the file system {}", path.display())]
    Look {
        /// The file.
        path: PathBuf,
        /// How debugfs failed.
        #[source]
        source: CommandError,
    },
    /// The guest contract is not kept.
    #[error("{} has no {}: a lease needs it; install it in the image", path.display(), missing.join(", no "))]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is not there.
        missing: Vec<&'static str>,
    },
    /// It is for another processor.
    #[error("{} is for {found}, and this host is {}", path.display(), std::env::consts::ARCH)]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: &'static str,
    },
    /// The kernel needs an initrd, and there is nothing to make it of.
    #[error(
        "the kernel {release} in {} has its disk drivers as modules, and this crabbox was built without crabbox-guest, which loads them",
        path.display()
    )]
    NoGuestBinary {
        /// The root file system.
        path: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// No initrd could be put together.
    #[error("cannot make an initrd for the kernel {release} of {}", path.display())]
    Initrd {
        /// The root file system with the modules.
        path: PathBuf,
        /// The kernel's release.
        release: String,
        /// Why not.
        #[source]
        source: InitrdError,
    },
    /// It could not be copied.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Checks kernel and root file system, and puts copies of both into `store`.
pub fn import_ready(
    recipe: &ImportRecipe,
    store: &Store,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    crate::store::check_name(&recipe.name)?;
    progress.stage("looking into the file system");
    inspect::superblock(&recipe.rootfs)?;
    check_contract(&recipe.rootfs)?;
    progress.stage("checking the kernel");
    let bytes = std::fs::read(&recipe.kernel)
        .map_err(|source| FileError::io("read the kernel", &recipe.kernel, source))?;
    let unusable = |source| ImportError::Kernel {
        path: recipe.kernel.clone(),
        source,
    };
    let elf = kernel::elf_from_bzimage(&bytes).map_err(unusable)?;
    kernel::check_elf_header(&elf).map_err(unusable)?;
    let release = kernel::version(&bytes).or_else(|| kernel::version(&elf));

    progress.stage("copying the image");
    let scratch = store.begin()?;
    let staged = scratch.dir().join("image");
    files::create_private_dir(&staged)?;
    files::write_atomic(&staged.join(manifest::KERNEL), &elf, 0o644)?;
    clone::clone_file(&recipe.rootfs, &staged.join(manifest::BASE))?;
    let mut names = vec![manifest::KERNEL, manifest::BASE];
    if let Some(release) = &release
        && let Some(initrd) = initrd_for(recipe, release, scratch.dir())?
    {
        files::write_atomic(&staged.join(manifest::INITRD), &initrd, 0o644)?;
        names.push(manifest::INITRD);
    }
    progress.stage("storing the image");
    let mut contents = BTreeMap::new();
    for name in names {
        contents.insert(name.to_owned(), FileFacts::of(&staged.join(name))?);
    }
    let record = Manifest {
        version: manifest::VERSION,
        digest: manifest::image_digest(&contents),
        created_unix: clock::unix_seconds(),
        arch: std::env::consts::ARCH.to_owned(),
        suite: String::new(),
        kernel_release: release.unwrap_or_default(),
        init: Init::CloudInit,
        provenance: [("kernel_sha256".to_owned(), digest::sha256(&bytes))].into(),
        guest: GuestContract::default(),
        files: contents,
        packages: BTreeMap::new(),
    };
    Ok(store.place(&scratch, &staged, &record, &recipe.name)?)
}

/// Whether a lease can work with the file system in `rootfs`.
fn check_contract(rootfs: &Path) -> Result<(), ImportError> {
    let places = NEEDED.iter().flat_map(|(_, places)| *places).copied();
    let script: String = places.flat_map(|place| ["stat ", place, "\n"]).collect();
    let said = look(rootfs, script)?;
    let present = debugfs::present(&said);
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(_, places)| !places.iter().any(|place| present.contains(place)))
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        let path = rootfs.to_owned();
        return Err(ImportError::Missing { path, missing });
    }
    let dir = tempfile::tempdir()
        .map_err(|source| FileError::io("make a directory in", &std::env::temp_dir(), source))?;
    let copy = dir.path().join("program");
    for program in TELLING {
        look(rootfs, format!("dump {program} {}\n", copy.display()))?;
        let Ok(head) = std::fs::read(&copy) else { continue };
        if let Some(found) = other_processor(&head) {
            let path = rootfs.to_owned();
            return Err(ImportError::Architecture { path, found });
        }
        if head.starts_with(b"\x7fELF") {
            break;
        }
    }
    Ok(())
}

/// The initrd that a kernel with its disk drivers as modules needs; `None` when it has them built in, or when the file system holds no
/// modules of it: then it must have.
fn initrd_for(recipe: &ImportRecipe, release: &str, scratch: &Path) -> Result<Option<Vec<u8>>, ImportError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    if release.is_empty() || !release.chars().all(legal) {
        return Ok(None);
    }
    let modules = scratch.join("modules");
    files::create_private_dir(&modules)?;
    let place = modules.join(release);
    let rootfs = &recipe.rootfs;
    // Where /lib is a link, debugfs follows it.
    look(
        rootfs,
        format!("rdump /lib/modules/{release} {}\n", modules.display()),
    )?;
    let Ok(built_in) = std::fs::read_to_string(place.join("modules.builtin")) else {
        return Ok(None);
    };
    if initrd::ROOT_MODULES
        .iter()
        .all(|name| initrd::is_built_in(&built_in, name))
    {
        return Ok(None);
    }
    let Some(guest_binary) = &recipe.guest_binary else {
        return Err(ImportError::NoGuestBinary {
            path: rootfs.clone(),
            release: release.to_owned(),
        });
    };
    let built = initrd::build(&InitrdRecipe {
        guest_binary,
        modules_root: &place,
        kernel_version: release,
        modules: &initrd::ROOT_MODULES,
    });
    built.map(Some).map_err(|source| ImportError::Initrd {
        path: rootfs.clone(),
        release: release.to_owned(),
        source,
    })
}

/// Runs debugfs commands on the file system in `image`.
fn look(image: &Path, script: String) -> Result<String, ImportError> {
    debugfs::run(Path::new("debugfs"), image, script, DEBUGFS_LIMIT).map_err(|source| ImportError::Look {
        path: image.to_owned(),
        source,
    })
}

/// The processor of an ELF file's head when it is not x86_64's (`e_machine`, two bytes at 18).
pub(crate) fn other_processor(head: &[u8]) -> Option<&'static str> {
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return None;
    }
    match u16::from_le_bytes([head[18], head[19]]) {
        62 => None,
        3 => Some("i386"),
        40 => Some("arm"),
        183 => Some("aarch64"),
        243 => Some("riscv"),
        _ => Some("another processor"),
    }
}

#[cfg(test)]
mod tests;
