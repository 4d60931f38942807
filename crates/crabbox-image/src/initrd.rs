//! The initrd of our own images: `crabbox-guest` as `/init`, and the kernel modules that it needs, in loading
//! order.
//!
//! ```text
//! /init               crabbox-guest, static
//! /modules/order      file names, one a line, dependencies first
//! /modules/*.ko       uncompressed: the guest has no decompressor
//! /dev/console        so that process 1 has its streams
//! /proc /sys          mount points
//! ```
//! It is not compressed: decompression in the guest would take longer than the host saves by reading less. It
//! must never contain anything of a lease; the seed ([`crate::seed`]) is appended to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crabbox_host::files;
use crabbox_host::tree::Tree;
use rustix::fs::FileType;

use crate::cpio::{self, Writer};
use crate::kernel::{self, KernelError};
use crate::modinfo;

/// Modules that the guest needs; those built into the kernel are skipped.
pub const MODULES: [&str; 5] = [
    "virtio_mmio",
    "virtio_blk",
    "overlay",
    "virtio_net",
    "vmw_vsock_virtio_transport",
];

/// Modules that the image's own init cannot load, because they are needed to reach it. A kernel with all of
/// them built in needs no initrd.
pub(crate) const ROOT_MODULES: [&str; 3] = ["virtio_mmio", "virtio_blk", "ext4"];

/// The list of modules in loading order.
const ORDER: &str = "modules/order";

/// Maximum size of a module, in bytes, uncompressed.
const MODULE_LIMIT: u64 = 64 * 1024 * 1024;

/// Maximum depth of module dependencies; Debian's modules for a guest need about ten.
const MODULES_LIMIT: usize = 128;

/// Maximum size of a list of modules, in bytes; Debian's have some 10 KiB.
pub(crate) const LIST_LIMIT: u64 = 4 << 20;

/// Maximum size of the guest binary, in bytes.
const GUEST_LIMIT: u64 = 64 << 20;

/// The list of modules built into the kernel.
pub(crate) const BUILT_IN: &str = "modules.builtin";

/// The inputs of an initrd.
#[derive(Debug, Clone)]
pub struct InitrdRecipe<'a> {
    /// The static `crabbox-guest`.
    pub guest_binary: &'a Path,
    /// The module tree of the kernel, `…/lib/modules/<version>`.
    pub modules: &'a dyn ModuleTree,
    /// The release of the kernel that will boot it ([`kernel::version`]); the tree must belong to the same
    /// release.
    pub kernel_version: &'a str,
    /// The required modules, by name: [`MODULES`] for our images, [`ROOT_MODULES`] for those with their own
    /// init.
    pub wanted: &'a [&'a str],
}

/// A source of the modules of one kernel. It is untrusted: only regular files are read, up to the given
/// limit.
pub trait ModuleTree: std::fmt::Debug {
    /// Its path, for messages; the last component is the kernel's release.
    fn place(&self) -> &Path;

    /// Every file below `kernel/`, by its path in the tree.
    fn files(&self) -> io::Result<Vec<PathBuf>>;

    /// The content of the regular file `path` of the tree, at most `limit` bytes; `None` if it does not
    /// exist.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>>;
}

impl ModuleTree for Tree {
    fn place(&self) -> &Path {
        self.path()
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut left = vec![PathBuf::from("kernel")];
        // Links are not followed, because a link to a parent directory would cause an endless loop.
        while let Some(dir) = left.pop() {
            for name in self.names(&dir)? {
                let path = dir.join(name);
                if FileType::from_raw_mode(self.look(&path)?.st_mode).is_dir() {
                    left.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        Tree::read(self, path, limit)
    }
}

/// Why an initrd could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A file or directory could not be read.
    #[error("cannot read {path} for the initrd")]
    Read {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The guest binary cannot run as process 1.
    #[error(
        "{path} cannot be the first process of a guest: build it statically (target-feature=+crt-static)"
    )]
    GuestBinary {
        /// The file.
        path: PathBuf,
        /// Its actual format.
        #[source]
        source: KernelError,
    },
    /// The module tree belongs to another kernel.
    #[error("modules in {modules_root} are not for kernel {kernel_version}")]
    WrongKernel {
        /// The tree.
        modules_root: PathBuf,
        /// The kernel.
        kernel_version: String,
    },
    /// A module is neither in the tree nor in the kernel.
    #[error("kernel module {name} is neither under {modules_root} nor built into that kernel")]
    NoSuchModule {
        /// The module.
        name: String,
        /// The tree that was searched.
        modules_root: PathBuf,
    },
    /// A module file is damaged.
    #[error("{path} is not a kernel module")]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// An initrd that is not ours, or is damaged.
    #[error("{path} is no initrd that crabbox made")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// More modules than a guest can need to reach its disk.
    #[error("the modules of {modules_root} need more than {MODULES_LIMIT} others")]
    TooMany {
        /// The tree.
        modules_root: PathBuf,
    },
    /// A cycle of module dependencies.
    #[error("kernel module {name} depends on itself")]
    Circle {
        /// One of them.
        name: String,
    },
}

/// Builds the archive; its length is a multiple of four, so that a seed can be appended.
pub fn build(recipe: &InitrdRecipe<'_>) -> Result<Vec<u8>, InitrdError> {
    let guest = first_process(recipe.guest_binary)?;
    let place = recipe.modules.place();
    if place.file_name().and_then(std::ffi::OsStr::to_str) != Some(recipe.kernel_version) {
        return Err(InitrdError::WrongKernel {
            modules_root: place.to_owned(),
            kernel_version: recipe.kernel_version.to_owned(),
        });
    }
    let mut loading = Loading::new(recipe.modules)?;
    for name in recipe.wanted {
        loading.add(name)?;
    }

    let mut archive = skeleton(&guest);
    let order: Vec<_> = loading
        .ordered
        .iter()
        .map(|(name, _)| format!("{name}.ko\n"))
        .collect();
    archive.file(ORDER, 0o644, order.concat().as_bytes());
    for (name, module) in &loading.ordered {
        archive.file(&format!("modules/{name}.ko"), 0o644, module);
    }
    Ok(archive.finish())
}

/// The initrd `archive` of an earlier build with `guest_binary` in place of its process 1: kernel and modules
/// work with any root file system.
pub(crate) fn with_guest(archive: &[u8], from: &Path, guest_binary: &Path) -> Result<Vec<u8>, InitrdError> {
    let guest = first_process(guest_binary)?;
    let damaged = || InitrdError::Damaged {
        path: from.to_owned(),
    };
    let entries = cpio::read(archive).ok_or_else(damaged)?;
    let modules: Vec<_> = entries
        .iter()
        .filter(|entry| entry.name.starts_with("modules/"))
        .collect();
    if !modules.iter().any(|entry| entry.name == ORDER) {
        return Err(damaged());
    }
    let mut writer = skeleton(&guest);
    for module in modules {
        writer.file(module.name, 0o644, module.content);
    }
    Ok(writer.finish())
}

/// All parts of an initrd except the modules.
fn skeleton(guest: &[u8]) -> Writer {
    let mut archive = Writer::new();
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory, 0o755);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, guest);
    archive
}

fn first_process(guest_binary: &Path) -> Result<Vec<u8>, InitrdError> {
    let unread = |source| InitrdError::Read {
        path: guest_binary.to_owned(),
        source,
    };
    let guest = files::read_regular(guest_binary, GUEST_LIMIT).map_err(unread)?;
    kernel::check_static_program(&guest).map_err(|source| InitrdError::GuestBinary {
        path: guest_binary.to_owned(),
        source,
    })?;
    Ok(guest)
}

/// The modules of one tree, while they are sorted into loading order.
struct Loading<'a> {
    tree: &'a dyn ModuleTree,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    ordered: Vec<(String, Vec<u8>)>,
    open: BTreeSet<String>,
}

impl<'a> Loading<'a> {
    fn new(tree: &'a dyn ModuleTree) -> Result<Self, InitrdError> {
        let found = tree.files().map_err(|source| InitrdError::Read {
            path: tree.place().join("kernel"),
            source,
        })?;
        let files = found
            .into_iter()
            .filter_map(|path| Some((module_name(&path)?, path)));
        let list = read(tree, Path::new(BUILT_IN), LIST_LIMIT)?;
        let built_in = built_in(&String::from_utf8_lossy(&list)).collect();
        Ok(Self {
            tree,
            files: files.collect(),
            built_in,
            ordered: Vec::new(),
            open: BTreeSet::new(),
        })
    }

    /// Adds `name` after all its dependencies.
    fn add(&mut self, name: &str) -> Result<(), InitrdError> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || self.ordered.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        if !self.open.insert(name.clone()) {
            return Err(InitrdError::Circle { name });
        }
        if self.open.len() > MODULES_LIMIT {
            return Err(InitrdError::TooMany {
                modules_root: self.tree.place().to_owned(),
            });
        }
        let path = self
            .files
            .get(&name)
            .cloned()
            .ok_or_else(|| InitrdError::NoSuchModule {
                name: name.clone(),
                modules_root: self.tree.place().to_owned(),
            })?;
        let module = uncompressed(self.tree, &path)?;
        let depends = modinfo::depends(&module).ok_or_else(|| InitrdError::NotAModule {
            path: self.tree.place().join(&path),
        })?;
        for dependency in depends {
            self.add(&dependency)?;
        }
        self.ordered.push((name, module));
        Ok(())
    }
}

/// The modules that a tree's `modules.builtin` names.
fn built_in(list: &str) -> impl Iterator<Item = String> {
    list.lines().filter_map(|line| module_name(Path::new(line)))
}

/// Whether a tree's `modules.builtin` names the module `name`.
pub(crate) fn is_built_in(list: &str, name: &str) -> bool {
    built_in(list).any(|known| known == name)
}

/// The kernel's name for a module file, regardless of compression.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// The file `path` of `tree`, which must exist.
fn read(tree: &dyn ModuleTree, path: &Path, limit: u64) -> Result<Vec<u8>, InitrdError> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no regular file of that name");
    tree.read(path, limit)
        .and_then(|content| content.ok_or_else(missing))
        .map_err(|source| InitrdError::Read {
            path: tree.place().join(path),
            source,
        })
}

fn uncompressed(tree: &dyn ModuleTree, path: &Path) -> Result<Vec<u8>, InitrdError> {
    let bytes = read(tree, path, MODULE_LIMIT)?;
    let unpacked = match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("xz") => bounded(lzma_rust2::XzReader::new(bytes.as_slice(), true)),
        Some("gz") => bounded(flate2::read::GzDecoder::new(bytes.as_slice())),
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(bytes.as_slice())
            .map_err(io::Error::other)
            .and_then(bounded),
        _ => Ok(bytes),
    };
    unpacked.map_err(|source| InitrdError::Read {
        path: tree.place().join(path),
        source,
    })
}

/// Decompresses all of `packed`, up to the size limit of a module.
fn bounded(packed: impl Read) -> io::Result<Vec<u8>> {
    let mut module = Vec::new();
    packed.take(MODULE_LIMIT + 1).read_to_end(&mut module)?;
    if module.len() as u64 > MODULE_LIMIT {
        let why = format!("it unpacks to more than {MODULE_LIMIT} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cpio::reader;

    const VERSION: &str = "6.1.0-9-test";

    /// A module tree with the shape of Debian's, and a static "guest".
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(VERSION);
        let drivers = root.join("kernel/drivers");
        std::fs::create_dir_all(&drivers).unwrap();
        for (name, depends) in [
            ("virtio", ""),
            ("virtio-mmio", "virtio"),
            ("virtio_blk", "virtio"),
            ("failover", ""),
            ("net_failover", "failover"),
            ("virtio_net", "virtio,net_failover"),
            ("vmw_vsock_virtio_transport", "virtio"),
            ("loop_a", "loop_b"),
            ("loop_b", "loop_a"),
            ("orphan", "gone"),
        ] {
            std::fs::write(drivers.join(format!("{name}.ko")), modinfo::sample(depends)).unwrap();
        }
        std::fs::write(root.join("modules.builtin"), "kernel/fs/overlayfs/overlay.ko\n").unwrap();
        let mut guest = vec![0; 128];
        guest[..6].copy_from_slice(b"\x7fELF\x02\x01");
        guest[16] = 3;
        guest[18] = 62;
        std::fs::write(dir.path().join("guest"), guest).unwrap();
        (dir, root)
    }

    fn build_in(dir: &tempfile::TempDir, root: &Path, extra: &[&str]) -> Result<Vec<u8>, InitrdError> {
        build(&InitrdRecipe {
            guest_binary: &dir.path().join("guest"),
            modules: &Tree::open(root).unwrap(),
            kernel_version: VERSION,
            wanted: &[&MODULES, extra].concat(),
        })
    }

    fn order(archive: &[u8]) -> Vec<String> {
        let entries = reader::read(archive);
        let (_, _, order) = entries.iter().find(|(name, ..)| name == "modules/order").unwrap();
        let names: Vec<String> = std::str::from_utf8(order)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        for name in &names {
            assert!(
                entries
                    .iter()
                    .any(|(entry, ..)| *entry == format!("modules/{name}")),
                "{name} is in it"
            );
        }
        names
    }

    #[test]
    fn dependencies_come_first_and_built_in_modules_are_left_out() {
        let (dir, root) = tree();
        let archive = build_in(&dir, &root, &[]).unwrap();
        let expected = [
            "virtio.ko",
            "virtio_mmio.ko",
            "virtio_blk.ko",
            "failover.ko",
            "net_failover.ko",
            "virtio_net.ko",
            "vmw_vsock_virtio_transport.ko",
        ];
        assert_eq!(order(&archive), expected);
        let entries = reader::read(&archive);
        assert_eq!(
            entries
                .iter()
                .find(|(name, ..)| name == "init")
                .map(|(_, mode, _)| *mode),
            Some(0o100_755)
        );
        assert_eq!(
            archive,
            build_in(&dir, &root, &[]).unwrap(),
            "the same input gives the same bytes"
        );
    }

    #[test]
    fn another_first_process_and_the_same_modules() {
        let (dir, root) = tree();
        let archive = build_in(&dir, &root, &[]).unwrap();
        let other = dir.path().join("other");
        let mut guest = std::fs::read(dir.path().join("guest")).unwrap();
        guest.push(7);
        std::fs::write(&other, &guest).unwrap();
        let from = Path::new("initrd.img");
        let again = with_guest(&archive, from, &other).unwrap();
        assert_eq!(order(&again), order(&archive));
        assert_eq!(again.len(), archive.len() + 4, "only the first process differs");
        assert_eq!(
            with_guest(&again, from, &dir.path().join("guest")).unwrap(),
            archive
        );
        for bad in [&archive[..archive.len() / 2], b"text"] {
            assert!(matches!(
                with_guest(bad, from, &other),
                Err(InitrdError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let (dir, root) = tree();
        let plain = root.join("kernel/drivers/virtio.ko");
        let module = std::fs::read(&plain).unwrap();
        std::fs::remove_file(&plain).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
        xz.write_all(&module).unwrap();
        std::fs::write(root.join("kernel/drivers/virtio.ko.xz"), xz.finish().unwrap()).unwrap();
        let entries = reader::read(&build_in(&dir, &root, &[]).unwrap());
        let (_, _, found) = entries
            .iter()
            .find(|(name, ..)| name == "modules/virtio.ko")
            .unwrap();
        assert_eq!(*found, module);
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let (dir, root) = tree();
        let message = |extra: &str| build_in(&dir, &root, &[extra]).unwrap_err().to_string();
        assert!(message("kvm").starts_with("kernel module kvm is neither under "));
        assert!(message("orphan").starts_with("kernel module gone is neither under "));
        assert_eq!(message("loop_a"), "kernel module loop_a depends on itself");
        std::fs::write(root.join("kernel/drivers/virtio.ko"), "damaged").unwrap();
        assert!(message("virtio").ends_with("virtio.ko is not a kernel module"));
    }

    #[test]
    fn a_chain_of_modules_without_an_end_is_refused() {
        let (dir, root) = tree();
        for number in 0..=MODULES_LIMIT {
            let module = modinfo::sample(&format!("chain{}", number + 1));
            std::fs::write(root.join(format!("kernel/chain{number}.ko")), module).unwrap();
        }
        let error = build_in(&dir, &root, &["chain0"]).unwrap_err();
        assert!(matches!(error, InitrdError::TooMany { .. }), "{error:?}");
    }

    #[test]
    fn what_a_tree_has_in_place_of_a_file_is_not_read() {
        let (dir, root) = tree();
        let list = root.join(BUILT_IN);
        for target in ["/dev/zero", "/etc/passwd", "modules.builtin", "kernel"] {
            std::fs::remove_file(&list).unwrap();
            std::os::unix::fs::symlink(target, &list).unwrap();
            let error = build_in(&dir, &root, &[]).unwrap_err();
            assert!(matches!(error, InitrdError::Read { .. }), "{target}: {error:?}");
        }
        std::fs::remove_file(&list).unwrap();
        let long = std::fs::File::create(&list).unwrap();
        long.set_len(1 << 40).unwrap();
        let error = build_in(&dir, &root, &[]).unwrap_err();
        assert!(matches!(error, InitrdError::Read { .. }), "{error:?}");
    }

    #[test]
    fn a_tree_of_another_kernel_is_refused() {
        let (dir, root) = tree();
        let recipe = InitrdRecipe {
            guest_binary: &dir.path().join("guest"),
            modules: &Tree::open(&root).unwrap(),
            kernel_version: "6.1.0-8",
            wanted: &MODULES,
        };
        let message = build(&recipe).unwrap_err().to_string();
        assert!(message.ends_with("are not for kernel 6.1.0-8"), "{message}");
    }

    #[test]
    fn a_dynamic_guest_is_refused() {
        let (_dir, root) = tree();
        let recipe = InitrdRecipe {
            guest_binary: Path::new("/bin/sh"),
            modules: &Tree::open(&root).unwrap(),
            kernel_version: VERSION,
            wanted: &MODULES,
        };
        assert!(matches!(
            build(&recipe).unwrap_err(),
            InitrdError::GuestBinary { .. }
        ));
    }
}
