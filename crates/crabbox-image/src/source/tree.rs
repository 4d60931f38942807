//! A root tree being filled: every name is looked up as the guest will look it up, with the tree as `/`.
//!
//! The kernel resolves (`openat2(2)` with `RESOLVE_IN_ROOT`), so that neither `..` nor a symbolic link, absolute or not, can
//! reach anything of this host, whatever order entries come in.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use crabbox_host::files::FileError;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod,
    fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

/// How often a name is looked up anew because something was renamed meanwhile.
const OPEN_ATTEMPTS: u32 = 10_000;

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// What every entry has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the unix epoch.
    pub(crate) modified: i64,
    /// Extended attributes, by name.
    pub(crate) attributes: Vec<(OsString, Vec<u8>)>,
}

/// What an entry is.
pub(crate) enum Kind<'a> {
    Directory,
    File(&'a mut dyn Read),
    Symlink(&'a Path),
    /// Another name of a file that is in the tree.
    Link(&'a Path),
    Fifo,
}

/// A name that is no place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaves;

/// `path` without a leading `/` and without `.`; refused when it has a `..`.
pub(crate) fn inside(path: &Path) -> Result<PathBuf, Leaves> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => return Err(Leaves),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

impl Tree {
    /// Makes the directory `path`, which must not be there yet, as the root of a new tree.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        std::fs::create_dir(path).map_err(|source| FileError::io("create directory", path, source))?;
        Self::open(path)
    }

    /// The tree in the directory `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| FileError::io("open directory", path, source))?;
        fchmod(&root, Mode::from_raw_mode(0o755))
            .map_err(|source| FileError::io("set the mode of", path, source))?;
        Ok(Self { root })
    }

    /// The directory `path`, as the guest sees it.
    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        self.look_up(path, OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// Opens `path` as the guest would. Where a `..` is on the way and anything on this machine is renamed or mounted at that
    /// moment, the kernel cannot be sure that the way stays inside, and asks to be asked again (openat2(2)).
    fn look_up(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..OPEN_ATTEMPTS {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The same, made with what is missing above it.
    fn made_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::NOENT) => {
                let (parent, name) = split(path);
                let parent = self.made_directory(parent)?;
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                self.directory(path)
            }
            other => other,
        }
    }

    /// Makes the entry `path`, in place of whatever has its name; a directory that is there keeps its content.
    pub(crate) fn put(&self, path: &Path, kind: Kind<'_>, facts: &Facts) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            // The root itself: only a directory makes sense, and only what it looks like.
            return Ok(settle(&self.root, facts)?);
        }
        let (parent, name) = split(path);
        let parent = self.made_directory(parent)?;
        let there = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_dir());
        if !(there && matches!(kind, Kind::Directory)) {
            remove(&parent, name)?;
        }
        match kind {
            Kind::Directory => {
                if !there {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                }
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                settle(&openat(&parent, name, flags, Mode::empty())?, facts)?;
            }
            Kind::File(content) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&parent, name, flags, Mode::from_raw_mode(0o600))?);
                io::copy(content, &mut file)?;
                settle(&file, facts)?;
            }
            Kind::Symlink(target) => {
                symlinkat(target, &parent, name)?;
                settle_name(&parent, name, facts)?;
            }
            Kind::Link(target) => {
                let (dir, old) = split(target);
                linkat(self.directory(dir)?, old, &parent, name, AtFlags::empty())?;
            }
            Kind::Fifo => {
                mknodat(
                    &parent,
                    name,
                    FileType::Fifo,
                    Mode::from_raw_mode(facts.mode & 0o7777),
                    0,
                )?;
                settle_name(&parent, name, facts)?;
            }
        }
        Ok(())
    }

    /// Removes `path` with all below it; nothing is there is no error.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path);
        match self.directory(parent) {
            Ok(parent) => remove(&parent, name),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes everything in the directory `path`, and not the directory.
    pub(crate) fn empty(&self, path: &Path) -> io::Result<()> {
        let dir = match self.directory(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for entry in std::fs::read_dir(own_name(&dir))? {
            remove(&dir, &entry?.file_name())?;
        }
        Ok(())
    }

    /// Opens the regular file `path` as the guest would; `None` when there is none.
    pub(crate) fn file(&self, path: &Path) -> io::Result<Option<File>> {
        match self.look_up(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC) {
            Ok(fd) => {
                let file = File::from(fd);
                Ok(file.metadata()?.is_file().then_some(file))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (
        path.parent().unwrap_or(Path::new("")),
        path.file_name().unwrap_or(OsStr::new(".")),
    )
}

/// A path that leads to an open directory, whatever happens to its name.
fn own_name(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Does not follow links below, and the name itself is a directory.
        Err(Errno::ISDIR | Errno::PERM) => std::fs::remove_dir_all(own_name(parent).join(name)),
        Err(error) => Err(error.into()),
    }
}

/// Owner first: changing it takes the set-id bits away.
fn settle(file: &impl std::os::fd::AsFd, facts: &Facts) -> Result<(), Errno> {
    fchown(
        file,
        Some(Uid::from_raw(facts.uid)),
        Some(Gid::from_raw(facts.gid)),
    )?;
    fchmod(file, Mode::from_raw_mode(facts.mode & 0o7777))?;
    for (name, value) in &facts.attributes {
        fsetxattr(file, name, value, XattrFlags::empty())?;
    }
    futimens(file, &times(facts))
}

fn settle_name(parent: &OwnedFd, name: &OsStr, facts: &Facts) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(facts.uid), Gid::from_raw(facts.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(parent, name, &times(facts), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(facts: &Facts) -> Timestamps {
    let at = Timespec {
        tv_sec: facts.modified,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_way_through_dots_is_found_while_things_are_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::create(&dir.path().join("root")).unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("usr/lib/os-release"), "ID=x").unwrap();
        std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (one, other) = (dir.path().join("one"), dir.path().join("other"));
                std::fs::create_dir(&one).unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            let looks: Vec<_> = (0..20_000)
                .map(|_| Ok::<_, io::Error>(tree.file(Path::new("etc/os-release"))?.is_some()))
                .collect();
            done.store(true, Ordering::Relaxed);
            for look in looks {
                assert!(look.unwrap());
            }
        });
    }
}
