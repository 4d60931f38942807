//! Removes a tree, entry by entry, through directory descriptors.
//!
//! Each directory is opened with the kernel's flags against links, mounts and `..`, so that a tree that is
//! changed meanwhile cannot lead elsewhere. A tree may be deeper than a process may have descriptors or
//! stack: a bounded number of directories is open, and one that was closed is opened again as the `..` of the
//! one below, if that is still the same directory. It must never delete anything outside the named tree.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, fstat, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::{FileError, parent_of};

/// Maximum number of directories of a tree that are open at the same time, besides the one being read.
const OPEN_LIMIT: usize = 32;

/// Removes `path` and everything in it. Succeeds if it is already gone, because teardown may run more than
/// once.
///
/// If the path is a symbolic link, only the link is removed. A directory or file on which something is
/// mounted (including a bind mount) is refused with [`FileError::MountPoint`]; earlier entries may be gone by
/// then.
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

/// Removes the entry `name` of the open directory `parent` with everything in it, like [`remove_tree`];
/// `path` is its path for messages.
pub(crate) fn remove_entry(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FileError> {
    // Extended and shortened with each level: a new path per level would take the square of the depth.
    let mut path = path.to_owned();
    let mut levels: Vec<Level> = Level::unless_removed(parent, name, &path)?.into_iter().collect();
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.next_name(&path)? {
            path.push(&name);
            match Level::unless_removed(level.dir(&path)?, &name, &path)? {
                Some(below) => levels.push(below),
                None => drop(path.pop()),
            }
            if let Some(distant) = levels.len().checked_sub(OPEN_LIMIT + 2) {
                levels[distant].listing = None;
            }
            continue;
        }
        let Some(emptied) = levels.pop() else { break };
        let above = match levels.last_mut() {
            Some(above) => {
                above.open_above(&emptied, &path)?;
                above.dir(&path)?
            }
            None => parent,
        };
        remove_directory(above, &emptied.name, &path)?;
        path.pop();
    }
    Ok(())
}

/// A directory that is being emptied.
struct Level {
    /// Its name in the directory above.
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
    /// Its entries. The directory being read is always open; distant ones above it are closed.
    listing: Option<Dir>,
}

impl Level {
    /// Removes the entry `name` of `parent` unless it is a directory; that is opened.
    fn unless_removed(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<Option<Self>, FileError> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(None),
            Err(Errno::BUSY) => return Err(mounted_on(path)),
            // Linux returns EISDIR for a directory; POSIX permits EPERM, and opening it below distinguishes
            // the two.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(source) => return Err(FileError::io("remove", path, source)),
        }
        let Some(dir) = open_dir(parent, name, path)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            name: name.to_owned(),
            identity: identity(&dir, path)?,
            listing: Some(listing(dir, path)?),
        }))
    }

    /// The next entry; the entries are read from the descriptor itself, so that a directory needs one
    /// descriptor, not two.
    fn next_name(&mut self, path: &Path) -> Result<Option<OsString>, FileError> {
        let failed = |source| FileError::io("list", path, source);
        while let Some(entry) = self.listing.as_mut().and_then(Dir::read) {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }

    /// Its descriptor; `path` is for the message.
    fn dir(&self, path: &Path) -> Result<BorrowedFd<'_>, FileError> {
        let open = self.listing.as_ref().ok_or(Errno::BADF);
        open.and_then(Dir::fd)
            .map_err(|source| FileError::io("open the directory of", path, source))
    }

    /// Opens it again, if it was closed, from the directory `below` at `path`. What was removed is not listed
    /// again.
    fn open_above(&mut self, below: &Self, path: &Path) -> Result<(), FileError> {
        if self.listing.is_some() {
            return Ok(());
        }
        let failed = |source| FileError::io("open the directory of", path, source);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(below.dir(path)?, "..", flags, Mode::empty()).map_err(failed)?;
        // Somebody may have moved the one below to another place.
        if identity(&dir, path)? != self.identity {
            return Err(failed(Errno::STALE));
        }
        self.listing = Some(listing(dir, path)?);
        Ok(())
    }
}

fn identity(dir: &OwnedFd, path: &Path) -> Result<(u64, u64), FileError> {
    let facts = fstat(dir).map_err(|source| FileError::io("look at", path, source))?;
    Ok((facts.st_dev, facts.st_ino))
}

fn listing(dir: OwnedFd, path: &Path) -> Result<Dir, FileError> {
    Dir::new(dir).map_err(|source| FileError::io("list", path, source))
}

fn mounted_on(path: &Path) -> FileError {
    FileError::MountPoint {
        path: path.to_owned(),
    }
}

fn remove_directory(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FileError> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(mounted_on(path)),
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
                return Err(mounted_on(path));
            }
            // The kernel could not exclude a concurrent rename (openat2(2)), so try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(source) => return Err(FileError::io("open directory", path, source)),
        }
    }
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

    /// A directory with `depth` levels below it; the first of them have a file and directories beside the
    /// next level.
    fn deep(dir: &Path, depth: usize) -> std::path::PathBuf {
        let tree = dir.join("deep");
        std::fs::create_dir(&tree).unwrap();
        let mut at = std::fs::File::open(&tree).map(OwnedFd::from).unwrap();
        let mode = Mode::from_raw_mode(0o700);
        for level in 0..depth {
            rustix::fs::mkdirat(&at, "n", mode).unwrap();
            if level < 2 * OPEN_LIMIT {
                rustix::fs::mkdirat(&at, "after", mode).unwrap();
                rustix::fs::mkdirat(&at, "b", mode).unwrap();
                openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, mode).unwrap();
            }
            at = openat(&at, "n", OFlags::DIRECTORY | OFlags::RDONLY, mode).unwrap();
        }
        tree
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_path_and_than_a_process_has_descriptors() {
        const FEW: u64 = 100;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        if limit.is_none_or(|limit| limit > FEW) {
            // The limit is the process's: other tests need more.
            let name = "a_tree_may_be_deeper_than_a_path_and_than_a_process_has_descriptors";
            let again = crate::command::Cmd::new("sh")
                .args(["-c", &format!("ulimit -n {FEW} && exec \"$@\""), "sh"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", &format!("files::remove::tests::{name}")])
                .capture()
                .unwrap();
            // With another name it would succeed without a test.
            assert!(again.stdout_text().contains("1 passed"), "{again:?}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for depth in [OPEN_LIMIT - 1, OPEN_LIMIT, OPEN_LIMIT + 1, OPEN_LIMIT + 2, 3000] {
            let tree = deep(dir.path(), depth);
            remove_tree(&tree).unwrap();
            assert!(!tree.exists(), "{depth}");
        }
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
