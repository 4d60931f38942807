//! Where a path leads, as a process sees it: in its root, its mounts and its working directory.
//!
//! Directories are compared by device and inode, because the same one has other names behind symbolic links,
//! in a jail and in another mount namespace. Nothing here may take a path in a jail for one of the host.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat};
use rustix::io::Errno;

use super::{ProcessInfo, proc_path};
use crate::resolved::open_resolved;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Device and inode of a directory.
type Identity = (u64, u64);

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The deepest directory on the way that exists.
    deepest: Identity,
    /// The directories above that one.
    above: Vec<Identity>,
    /// What follows on the path: names that do not exist, or a file.
    rest: Vec<OsString>,
}

impl Whereabouts {
    /// Whether this is inside the directory that exists as `dir`.
    pub fn is_inside(&self, dir: &Metadata) -> bool {
        let dir = (dir.dev(), dir.ino());
        (self.deepest == dir && !self.rest.is_empty()) || self.above.contains(&dir)
    }

    /// The names on the path after the directory at `dir`, where none of them is a directory that exists;
    /// `None` if the path does not lead there in this way.
    pub fn below(&self, dir: &Self) -> Option<&[OsString]> {
        let names = self.rest.strip_prefix(dir.rest.as_slice())?;
        (self.deepest == dir.deepest).then_some(names)
    }
}

/// Where `path` leads for this process; `None` if that cannot be told.
pub fn whereabouts(path: &Path) -> Option<Whereabouts> {
    let root = openat(CWD, "/", DIRECTORY, Mode::empty()).ok()?;
    follow(root.as_fd(), &std::path::absolute(path).ok()?)
}

/// Where `path` leads for `process`; `None` if that cannot be told, for example because it has ended.
pub fn whereabouts_for(process: &ProcessInfo, path: &Path) -> Option<Whereabouts> {
    let root = openat(CWD, proc_path(process.id.pid, "root"), DIRECTORY, Mode::empty()).ok()?;
    if path.is_absolute() {
        return follow(root.as_fd(), path);
    }
    // Both links have the names that the process's own mounts give them, so what they differ by is the way
    // from its root to its working directory.
    let cwd = process
        .cwd
        .as_deref()?
        .strip_prefix(process.root.as_deref()?)
        .ok()?;
    // The kernel appends this to the path of a directory that has been removed.
    let cwd = cwd.to_str()?.trim_end_matches(" (deleted)");
    follow(root.as_fd(), &Path::new("/").join(cwd).join(path))
}

fn follow(root: BorrowedFd<'_>, path: &Path) -> Option<Whereabouts> {
    let mut names: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect();
    let (mut at, exist) = loop {
        let (at, exist) = deepest(root, &names)?;
        let Some(up) = (exist..names.len()).find(|nth| names.get(*nth) == Some(&OsStr::new(".."))) else {
            break (at, exist);
        };
        // The directory that this leads out of existed when the process used the path.
        names.drain(up.checked_sub(1)?..=up);
    };
    let rest = names.iter().skip(exist).map(|name| (*name).to_owned()).collect();
    let deepest = identity(at.as_fd())?;
    let mut all = vec![deepest];
    // The directory above the topmost one is that one. A process that is confined to a directory by chroot(2)
    // alone is in the directories above that, too.
    loop {
        at = above(at.as_fd())?;
        let this = identity(at.as_fd())?;
        if all.last() == Some(&this) {
            break;
        }
        all.push(this);
    }
    Some(Whereabouts {
        deepest,
        above: all.split_off(1),
        rest,
    })
}

/// The deepest directory on the way that exists, and how many of the names lead to it; `None` if that cannot be
/// told, since one that cannot be looked for is not one that does not exist.
fn deepest(root: BorrowedFd<'_>, names: &[&OsStr]) -> Option<(OwnedFd, usize)> {
    for count in (0..=names.len()).rev() {
        let path = Path::new("/").join(names.iter().take(count).collect::<PathBuf>());
        // As the process would open it that has this root: links are followed, and none leads out of it.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match open_resolved(root, &path, DIRECTORY, resolve) {
            Ok(dir) => return Some((dir, count)),
            Err(error) if is_absence(error) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Whether the error says that there is no such directory, as opposed to one that cannot be looked for.
fn is_absence(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG
    )
}

fn above(dir: BorrowedFd<'_>) -> Option<OwnedFd> {
    openat(dir, "..", DIRECTORY, Mode::empty()).ok()
}

fn identity(dir: BorrowedFd<'_>) -> Option<Identity> {
    let stat = fstat(dir).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_the_same_directory_however_it_is_spelled() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("a/b");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", place.path().join("link")).unwrap();
        let at = |path: &str| whereabouts(&place.path().join(path)).unwrap();
        let want = dir.metadata().unwrap();
        for inside in [
            "a/b/file",
            "a/b/none",
            "link/b/file",
            "link/../a//./b/none/x",
            "a/b/none/../file",
            "none/../a/b/x",
        ] {
            assert!(at(inside).is_inside(&want), "{inside}");
        }
        for outside in ["a/b", "a/b/..", "a/bb", "a/b/../x", "b/file", "a/b/none/../../x"] {
            assert!(!at(outside).is_inside(&want), "{outside}");
        }
        assert_eq!(at("link/b/x/y").below(&at("a/b")).unwrap(), ["x", "y"]);
        assert_eq!(at("link/c/x").below(&at("a/b")), None);
        // A directory that does not exist is compared by its name in the deepest one that does.
        assert_eq!(at("link/gone/x").below(&at("a/gone")).unwrap(), ["x"]);
        assert_eq!(at("link/gone2/x").below(&at("a/gone")), None);
    }

    #[test]
    fn what_cannot_be_looked_for_is_not_taken_for_absent() {
        assert!(
            [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
                .into_iter()
                .all(is_absence)
        );
        for unknown in [Errno::AGAIN, Errno::ACCESS, Errno::MFILE, Errno::IO, Errno::STALE] {
            assert!(!is_absence(unknown), "{unknown}");
        }
    }
}
