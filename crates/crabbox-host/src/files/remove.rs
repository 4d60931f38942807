//! Removes a tree, entry by entry, through directory descriptors.
//!
//! Each directory is opened with the kernel's flags against links, mounts and `..`, so that a tree that is changed meanwhile
//! cannot lead elsewhere. It must never delete anything outside the named tree.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

use super::{FileError, parent_of};

/// Removes `path` and everything in it. Succeeds if it is already gone, because teardown may run more than once.
///
/// If the path is a symbolic link, only the link is removed. A directory or file on which something is mounted
/// (including a bind mount) is refused with [`FileError::MountPoint`]; earlier entries may be gone by then.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let name = path.file_name().ok_or_else(|| FileError::NoName {
        path: path.to_owned(),
    })?;
    let parent = match std::fs::File::open(parent_of(path)) {
        Ok(parent) => parent,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FileError::io("open the directory of", path, source)),
    };
    remove_entry(parent.as_fd(), name, path)
}

/// Removes the entry `name` of the open directory `parent` with everything in it, like [`remove_tree`]; `path` is its path
/// for messages.
pub(crate) fn remove_entry(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FileError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => {
            return Err(FileError::MountPoint {
                path: path.to_owned(),
            });
        }
        // Linux returns EISDIR for a directory; POSIX permits EPERM, and opening it below distinguishes the two.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(source) => return Err(FileError::io("remove", path, source)),
    }
    let Some(dir) = open_dir(parent, name, path)? else {
        return Ok(());
    };
    empty(dir, path)?;
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(FileError::MountPoint {
            path: path.to_owned(),
        }),
        Err(source) => Err(FileError::io("remove directory", path, source)),
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(parent, name, flags, Mode::empty(), resolve) {
            Ok(dir) => return Ok(Some(dir)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => {
                return Err(FileError::MountPoint {
                    path: path.to_owned(),
                });
            }
            // The kernel could not exclude a concurrent rename (openat2(2)), so try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(source) => return Err(FileError::io("open directory", path, source)),
        }
    }
}

/// Empties `dir` and closes it. The entries are read from the descriptor itself, so that each level of a deep tree needs one
/// descriptor, not two.
fn empty(dir: OwnedFd, path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::io("list", path, source);
    let mut dir = Dir::new(dir).map_err(failed)?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(|source| FileError::io("list", path, source))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_entry(dir.fd().map_err(failed)?, name, &path.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    #[test]
    fn a_tree_goes_and_what_its_links_point_at_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("keep"), "x").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("keep").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("never/there")).unwrap();
    }

    #[test]
    fn a_link_as_the_root_is_removed_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(target.is_dir() && std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn a_mount_below_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, point) = (dir.path().join("outside"), dir.path().join("tree/mnt"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&point).unwrap();
        std::fs::write(outside.join("keep"), "x").unwrap();
        // A bind mount of the same file system: comparing device numbers would not notice it.
        mount_bind(&outside, &point).unwrap();
        let error = remove_tree(&dir.path().join("tree"));
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert!(matches!(error, Err(FileError::MountPoint { path }) if path == point));
        assert!(outside.join("keep").exists());
        remove_tree(&dir.path().join("tree")).unwrap();
    }

    #[test]
    fn a_mounted_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (source, point) = (dir.path().join("source"), dir.path().join("point"));
        std::fs::write(&source, "x").unwrap();
        std::fs::write(&point, "").unwrap();
        mount_bind(&source, &point).unwrap();
        let error = remove_tree(&point);
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert!(matches!(error, Err(FileError::MountPoint { .. })), "{error:?}");
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(matches!(
            remove_tree(Path::new("/")),
            Err(FileError::NoName { .. })
        ));
        assert!(matches!(
            remove_tree(Path::new("/tmp/..")),
            Err(FileError::NoName { .. })
        ));
    }
}
