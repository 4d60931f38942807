//! What a tar archive is an archive of: a root tree, or an image in one of the formats of container tools.
//! Told by the names in it, and never by its own name.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use crabbox_host::archive::Reader;
use crabbox_host::tree;

use super::{compression, oci};

/// Directories at the root of a Linux tree, which no image format has at its own.
const OF_A_TREE: [&str; 10] = [
    "bin", "dev", "etc", "home", "lib", "opt", "root", "sbin", "usr", "var",
];

/// The content of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// A root tree.
    Tree,
    /// An OCI image layout.
    Layout,
    /// What `docker save` writes. Its newer versions write an OCI image layout, too.
    Saved,
}

/// Looks through the archive in `file` until it is known. One that cannot be read counts as a tree: unpacking
/// it reports the error.
pub(super) fn of(file: File) -> Packing {
    let Ok(content) = compression::reader(file) else {
        return Packing::Tree;
    };
    let mut reader = Reader::new(content);
    let mut found = Packing::Tree;
    while let Ok(Some(member)) = reader.next_member() {
        let Ok(path) = tree::inside(Path::new(OsStr::from_bytes(&member.path))) else {
            continue;
        };
        if path == Path::new(oci::LAYOUT) {
            return Packing::Layout;
        }
        if path == Path::new(oci::SAVED) {
            found = Packing::Saved;
        }
        let is_of_a_tree = |name: &OsStr| OF_A_TREE.iter().any(|dir| name == *dir);
        if matches!(path.components().next(), Some(Component::Normal(name)) if is_of_a_tree(name)) {
            return Packing::Tree;
        }
    }
    found
}
