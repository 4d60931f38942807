//! Imports a foreign kernel and root file system as an image of the store.
//!
//! Nothing is mounted: the file system is read with `debugfs`, from the copy that becomes the image. A kernel
//! or root file system that cannot work in a lease must be refused here, by name, and not lead to a lease
//! that never answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::clone::{self, CloneError};
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};

use crate::debugfs::listing::{Entry, EntryKind, ListingError};
use crate::debugfs::{DebugfsError, Dir, Ext4};
use crate::initrd::{self, InitrdError, InitrdRecipe, ModuleTree};
use crate::inspect::{self, InspectError};
use crate::kernel::{self, KernelError};
use crate::manifest::{self, Init, Manifest};
use crate::programs::{self, Check};
use crate::progress::Progress;
use crate::store::{Image, Store, StoreError};

/// Time limit for `debugfs`.
const DEBUGFS_LIMIT: Duration = Duration::from_mins(1);

/// Programs whose ELF header shows the processor architecture; the first existing one is used.
const TELLING: [&str; 3] = ["/usr/sbin/sshd", "/usr/bin/bash", "/bin/bash"];

/// Bytes of such a program that are read.
const HEAD_BYTES: u64 = 64;

/// Maximum number of module directories and files; Debian's largest kernel has about 500 and 4000.
const DIRECTORIES_LIMIT: usize = 1 << 13;
const FILES_LIMIT: usize = 1 << 17;

/// The inputs of an import.
#[derive(Debug, Clone)]
pub struct ImportRecipe {
    /// The name that will point to the image.
    pub name: String,
    /// The guest kernel: an ELF, or a bzImage from which the ELF is extracted.
    pub kernel: PathBuf,
    /// The root file system: a bare ext4.
    pub rootfs: PathBuf,
    /// The static `crabbox-guest`, for a kernel that cannot reach its root file system without modules.
    pub guest_binary: Option<PathBuf>,
}

/// Why the inputs cannot become an image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel cannot be used.
    #[error("cannot use the kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: KernelError,
    },
    /// The root file system is not valid.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The file system, or a part of it, cannot be read.
    #[error("cannot import {}", path.display())]
    Look {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: DebugfsError,
    },
    /// The list of the kernel's modules is not a regular file.
    #[error("{} has {list}, which is no regular file", path.display())]
    NoList {
        /// The file.
        path: PathBuf,
        /// The list's path in it.
        list: String,
    },
    /// The guest contract is not met.
    #[error("{} has no {}: a lease needs it; install it in the image; looked for {}", path.display(), missing.join(", no "), looked.join(", "))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The missing parts.
        missing: Vec<&'static str>,
        /// The paths at which they could have been.
        looked: Vec<&'static str>,
    },
    /// It is for another processor architecture.
    #[error("{} is for {found}, and this host is {}", path.display(), std::env::consts::ARCH)]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        found: &'static str,
    },
    /// The kernel needs an initrd, but the root file system has no modules for it.
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
    /// The initrd could not be made.
    #[error("cannot make an initrd for the kernel {release} of {}", path.display())]
    Initrd {
        /// The root file system with the modules.
        path: PathBuf,
        /// The kernel's release.
        release: String,
        /// The reason.
        #[source]
        source: InitrdError,
    },
    /// It could not be copied.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The image store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Checks kernel and root file system, and copies both into `store`.
pub fn import_ready(
    recipe: &ImportRecipe,
    store: &Store,
    progress: &dyn Progress,
) -> Result<Image, ImportError> {
    crate::store::check_name(&recipe.name)?;
    progress.stage("looking into the file system");
    inspect::superblock(&recipe.rootfs)?;
    progress.stage("checking the kernel");
    let bytes = files::read_regular(&recipe.kernel, kernel::KERNEL_LIMIT as u64)
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
    let base = staged.join(manifest::BASE);
    clone::clone_file(&recipe.rootfs, &base)?;
    progress.stage("checking the image");
    // The directory above is accessible only to us, so only the confined program, which has no privileges,
    // gains access.
    set_mode(&base, 0o444)?;
    let looking = Looking {
        recipe,
        image: Ext4::open(Path::new("debugfs"), &base, DEBUGFS_LIMIT)
            .map_err(|source| recipe.unreadable(source))?,
    };
    looking.check_contract()?;
    let initrd = release.as_ref().map(|release| looking.initrd_for(release));
    let initrd = initrd.transpose()?.flatten();
    let mut names = vec![manifest::KERNEL, manifest::BASE];
    if let Some(initrd) = initrd {
        files::write_atomic(&staged.join(manifest::INITRD), &initrd, 0o644)?;
        names.push(manifest::INITRD);
    }
    progress.stage("storing the image");
    let now = clock::unix_seconds();
    let record = Manifest {
        kernel_release: release.unwrap_or_default(),
        provenance: [("kernel_sha256".to_owned(), digest::sha256(&bytes))].into(),
        ..Manifest::of_staged(&staged, &names, Init::CloudInit, now)?
    };
    Ok(store.place(&scratch, &staged, &record, &recipe.name)?)
}

impl ImportRecipe {
    fn unreadable(&self, source: DebugfsError) -> ImportError {
        ImportError::Look {
            path: self.rootfs.clone(),
            source,
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    let fail = |source| FileError::io("set the mode of", path, source);
    let file = files::open_regular(path).map_err(fail)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(fail)
}

/// The copy of the root file system, while it is being read.
struct Looking<'a> {
    recipe: &'a ImportRecipe,
    image: Ext4<'a>,
}

impl Looking<'_> {
    /// Checks whether a lease can use it.
    fn check_contract(&self) -> Result<(), ImportError> {
        let fail = |source| self.recipe.unreadable(source);
        let places: Vec<&str> = programs::of(Check::Import)
            .flat_map(|program| program.places)
            .copied()
            .collect();
        let present = self.image.present(&places).map_err(fail)?;
        let absent = || programs::of(Check::Import).filter(|program| !program.is_among(&present));
        let missing: Vec<_> = absent().map(|program| program.name).collect();
        let path = self.recipe.rootfs.clone();
        if !missing.is_empty() {
            let looked = absent().flat_map(|program| program.places).copied().collect();
            return Err(ImportError::Missing {
                path,
                missing,
                looked,
            });
        }
        for program in TELLING {
            let head = self.image.head(program, HEAD_BYTES).map_err(fail)?;
            if let Some(found) = other_processor(&head) {
                return Err(ImportError::Architecture { path, found });
            }
            if head.starts_with(b"\x7fELF") {
                break;
            }
        }
        Ok(())
    }

    /// The initrd for a kernel that has its disk drivers as modules; `None` if the drivers are built in, or
    /// if the file system has no modules for this kernel, which must then have them built in.
    fn initrd_for(&self, release: &str) -> Result<Option<Vec<u8>>, ImportError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if release.is_empty() || release.starts_with('.') || !release.chars().all(legal) {
            return Ok(None);
        }
        let path = || self.recipe.rootfs.clone();
        // If /lib is a link, debugfs follows it inside the image.
        let place = format!("/lib/modules/{release}");
        let Some(modules) =
            Modules::find(&self.image, &place).map_err(|source| self.recipe.unreadable(source))?
        else {
            return Ok(None);
        };
        let Some(list) = modules.files.get(Path::new(initrd::BUILT_IN)) else {
            return Ok(None);
        };
        let list_name = format!("{place}/{}", initrd::BUILT_IN);
        if list.kind != EntryKind::File {
            return Err(ImportError::NoList {
                path: path(),
                list: list_name,
            });
        }
        let built_in = self.image.read(list, &list_name, initrd::LIST_LIMIT);
        let built_in = built_in.map_err(|source| self.recipe.unreadable(source))?;
        let built_in = String::from_utf8_lossy(&built_in);
        if initrd::ROOT_MODULES
            .iter()
            .all(|name| initrd::is_built_in(&built_in, name))
        {
            return Ok(None);
        }
        let Some(guest_binary) = &self.recipe.guest_binary else {
            return Err(ImportError::NoGuestBinary {
                path: path(),
                release: release.to_owned(),
            });
        };
        let built = initrd::build(&InitrdRecipe {
            guest_binary,
            modules: &modules,
            kernel_version: release,
            wanted: &initrd::ROOT_MODULES,
        });
        built.map(Some).map_err(|source| ImportError::Initrd {
            path: path(),
            release: release.to_owned(),
            source,
        })
    }
}

/// The modules of one kernel in an image: the entries of its directories, read by inode on demand.
#[derive(Debug)]
struct Modules<'a> {
    image: &'a Ext4<'a>,
    place: PathBuf,
    files: BTreeMap<PathBuf, Entry>,
}

impl<'a> Modules<'a> {
    /// The modules in the directory `place`; `None` if it does not exist.
    fn find(image: &'a Ext4<'a>, place: &str) -> Result<Option<Self>, DebugfsError> {
        let top = image.list(&[Dir::Path(place.to_owned())])?;
        let Some(top) = top.into_iter().next().flatten() else {
            return Ok(None);
        };
        let mut files = BTreeMap::new();
        let mut level = Vec::new();
        for entry in top {
            match entry.kind {
                EntryKind::Directory if entry.name == "kernel" => {
                    level.push((PathBuf::from("kernel"), entry.inode));
                }
                EntryKind::Directory => {}
                _ => drop(files.insert(PathBuf::from(&entry.name), entry)),
            }
        }
        // Go through the directories level by level. A directory that appears twice contains itself, which
        // only a damaged image can have.
        let mut visited: BTreeSet<u32> = level.iter().map(|(_, inode)| *inode).collect();
        while !level.is_empty() {
            let dirs: Vec<Dir> = level.iter().map(|(_, inode)| Dir::Inode(*inode)).collect();
            let mut next = Vec::new();
            for ((dir, _), entries) in level.iter().zip(image.list(&dirs)?) {
                for entry in entries.into_iter().flatten() {
                    let path = dir.join(&entry.name);
                    if entry.kind != EntryKind::Directory {
                        files.insert(path, entry);
                    } else if visited.insert(entry.inode) {
                        next.push((path, entry.inode));
                    } else {
                        return Err(image.refused(path.display().to_string(), ListingError::Circle));
                    }
                }
            }
            if visited.len() > DIRECTORIES_LIMIT || files.len() > FILES_LIMIT {
                return Err(image.refused(place.to_owned(), ListingError::TooMany));
            }
            level = next;
        }
        let place = PathBuf::from(place);
        Ok(Some(Self { image, place, files }))
    }
}

impl ModuleTree for Modules<'_> {
    fn place(&self) -> &Path {
        &self.place
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        Ok(self
            .files
            .keys()
            .filter(|path| path.starts_with("kernel"))
            .cloned()
            .collect())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = self.files.get(path).filter(|entry| entry.kind == EntryKind::File);
        let name = self.place.join(path).display().to_string();
        file.map(|entry| self.image.read(entry, &name, limit))
            .transpose()
            .map_err(io::Error::other)
    }
}

/// The architecture in an ELF header if it is not x86_64 (`e_machine`, two bytes at offset 18).
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
