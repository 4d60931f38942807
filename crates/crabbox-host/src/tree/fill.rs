//! Fills a tree: entries with owners and modes, directories that crabbox adds, and their removal.
//!
//! Whatever has the name of a new entry is removed first, so that nothing must ever be written through a link
//! or a second name. What crabbox itself adds ([`Tree::make_directory`], [`Tree::write`]) is resolved without
//! any link of the tree.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::{AS_GUEST, Tree, WITHOUT_LINKS, names, split};
use crate::files::{self, FileError};

/// Maximum number of links through which a missing directory is made; as many as the kernel follows.
const LINKS_LIMIT: u32 = 40;
/// How many directories may be missing on the way to an entry, those behind links included: twice the depth of
/// the deepest entry that is unpacked.
const STEPS_LIMIT: u32 = 512;

/// What is still allowed on the way to a missing directory.
#[derive(Clone, Copy)]
struct Most {
    links: u32,
    steps: u32,
}

/// The attributes of every entry.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Permission and set-id bits; the file type bits are ignored.
    pub mode: u32,
    /// Owner. The id -1, which means "no change" in system calls, becomes root.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Seconds since the unix epoch.
    pub modified: i64,
    /// Extended attributes, by name.
    pub attributes: Vec<(OsString, Vec<u8>)>,
}

/// The kind of an entry.
pub enum Kind<'a> {
    /// A directory; an existing one keeps its contents.
    Directory,
    /// A regular file; this function writes its content into the new, empty file.
    File(&'a mut dyn FnMut(&mut File) -> io::Result<()>),
    /// A symbolic link, with its target.
    Symlink(&'a Path),
    /// A hard link to a file in the tree.
    Link(&'a Path),
    /// A named pipe.
    Fifo,
}

impl std::fmt::Debug for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory => "Directory",
            Self::File(_) => "File",
            Self::Symlink(_) => "Symlink",
            Self::Link(_) => "Link",
            Self::Fifo => "Fifo",
        })
    }
}

impl Tree {
    /// Creates the entry `path`, as the guest resolves it, and missing parents; replaces whatever has its
    /// name.
    pub fn put(&self, path: &Path, kind: Kind<'_>, facts: &Facts) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            // For the root itself only a directory makes sense, and only its attributes are set.
            settle(&self.root, facts)?;
            return Ok(self.remember(&self.root, Some(facts.modified))?);
        }
        let (parent, name) = split(path);
        let parent = self.made_parent(parent)?;
        self.put_at(&parent, path, name, kind, facts)
    }

    fn put_at(
        &self,
        parent: &OwnedFd,
        path: &Path,
        name: &OsStr,
        kind: Kind<'_>,
        facts: &Facts,
    ) -> io::Result<()> {
        let is_directory = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_dir());
        if !(is_directory && matches!(kind, Kind::Directory)) {
            self.remove_at(parent, name, path)?;
        }
        match kind {
            Kind::Directory => {
                if !is_directory {
                    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                }
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(parent, name, flags, Mode::empty())?;
                settle(&dir, facts)?;
                self.remember(&dir, Some(facts.modified))?;
            }
            Kind::File(content) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
                content(&mut file)?;
                settle(&file, facts)?;
            }
            Kind::Symlink(target) => {
                symlinkat(target, parent, name)?;
                settle_name(parent, name, facts)?;
            }
            Kind::Link(target) => {
                let (dir, old) = split(target);
                let dir = self.look_up(dir, OFlags::DIRECTORY, AS_GUEST)?;
                linkat(dir, old, parent, name, AtFlags::empty())?;
            }
            Kind::Fifo => {
                mknodat(parent, name, FileType::Fifo, mode_of(facts), 0)?;
                settle_name(parent, name, facts)?;
            }
        }
        Ok(())
    }

    /// The directory `path` as the guest sees it, created with missing parents.
    fn made_parent(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let most = Most {
            links: LINKS_LIMIT,
            steps: STEPS_LIMIT,
        };
        self.made_behind(path, most)
    }

    /// The same, through at most as many missing directories and links to missing ones.
    fn made_behind(&self, path: &Path, most: Most) -> Result<OwnedFd, Errno> {
        match self.look_up(path, OFlags::DIRECTORY, AS_GUEST) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        // The calls are nested, and the targets of links, which an archive chooses, may be long.
        let steps = most.steps.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
        let most = Most { steps, ..most };
        let above = path.parent().ok_or(Errno::NOENT)?;
        let parent = self.made_behind(above, most)?;
        // Without a name the path ends with `..`, and only what is before it was missing.
        if let Some(name) = path.file_name() {
            match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    self.remember(&openat(&parent, name, flags, Mode::empty())?, None)?;
                }
                // A link that leads nowhere yet: its target may be an entry that is still to come.
                Err(Errno::EXIST) if most.links > 0 => {
                    let target = readlinkat(&parent, name, Vec::new())?;
                    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                    let target = match target.strip_prefix("/") {
                        Ok(inside) => inside.to_owned(),
                        Err(_) => above.join(target),
                    };
                    let links = most.links - 1;
                    self.made_behind(&target, Most { links, ..most })?;
                }
                Err(error) => return Err(error),
            }
        }
        self.look_up(path, OFlags::DIRECTORY, AS_GUEST)
    }

    /// Remembers the time of the directory `dir` for [`Tree::settle_times`]; `None` if it has none of its
    /// own.
    fn remember(&self, dir: &OwnedFd, modified: Option<i64>) -> Result<(), Errno> {
        let inode = rustix::fs::fstat(dir)?.st_ino;
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        match modified {
            Some(modified) => times.insert(inode, modified),
            // The inode may be that of a directory that is gone.
            None => times.remove(&inode),
        };
        Ok(())
    }

    /// Sets the time of every directory to that with which it was put into the tree, and of all others to
    /// `other`, in seconds since the epoch. To be called when no entry is made any more.
    pub fn settle_times(&self, other: i64) -> io::Result<()> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dirs = vec![PathBuf::new()];
        while let Some(path) = dirs.pop() {
            let dir = self.look_up(&path, OFlags::DIRECTORY, WITHOUT_LINKS)?;
            for name in names(&dir)? {
                let found = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(found.st_mode).is_dir() {
                    dirs.push(path.join(name));
                }
            }
            let modified = times.get(&rustix::fs::fstat(&dir)?.st_ino);
            futimens(&dir, &at(modified.copied().unwrap_or(other)))?;
        }
        Ok(())
    }

    /// Creates the directory `path` with its parents (0755, new ones owned by root), the last one owned by
    /// user and group `owner` if given. A link in the path or at its end is an error (`ELOOP`, `ENOTDIR`), as
    /// is anything else that is not a directory.
    pub fn make_directory(&self, path: &Path, owner: Option<u32>) -> io::Result<()> {
        let dir = self.real_directory(path)?;
        if let Some(owner) = owner {
            fchown(&dir, Some(user(owner)), Some(group(owner)))?;
        }
        // Set the mode after the owner, because changing the owner clears mode bits.
        fchmod(&dir, Mode::from_raw_mode(0o755))?;
        Ok(())
    }

    fn real_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.look_up(path, OFlags::DIRECTORY | OFlags::NOFOLLOW, WITHOUT_LINKS) {
            Err(Errno::NOENT) => {
                let (parent, name) = split(path);
                let parent = self.real_directory(parent)?;
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&parent, name, flags, Mode::empty())?;
                // Set the mode regardless of the umask.
                fchmod(&made, Mode::from_raw_mode(0o755))?;
                Ok(made)
            }
            other => other,
        }
    }

    /// Writes the file `path`, owned by root, with permission bits `mode` and the time `modified` (seconds
    /// since the epoch); replaces whatever has its name. Its directory must exist, without a link in the
    /// path.
    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32, modified: i64) -> io::Result<()> {
        let (parent, name) = split(path);
        let parent = self.look_up(parent, OFlags::DIRECTORY, WITHOUT_LINKS)?;
        self.remove_at(&parent, name, path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, name, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(bytes)?;
        fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(futimens(&file, &at(modified))?)
    }

    /// Removes `path` with everything in it, as the guest resolves it; succeeds if it does not exist.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.remove_as(path, AS_GUEST)
    }

    /// The same without any link in the path; a path through a link counts as missing.
    pub fn remove_plain(&self, path: &Path) -> io::Result<()> {
        self.remove_as(path, WITHOUT_LINKS)
    }

    fn remove_as(&self, path: &Path, resolve: ResolveFlags) -> io::Result<()> {
        let (parent, name) = split(path);
        match super::absent(self.look_up(parent, OFlags::DIRECTORY, resolve))? {
            Some(parent) => self.remove_at(&parent, name, path),
            None => Ok(()),
        }
    }

    /// Removes the contents of the directory `path`, but not the directory. Links on the way to it are
    /// followed as the guest does; if it is a link itself, there is nothing to remove.
    pub fn empty(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path);
        let Some(parent) = super::absent(self.look_up(parent, OFlags::DIRECTORY, AS_GUEST))? else {
            return Ok(());
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some(dir) = super::absent(openat(&parent, name, flags, Mode::empty()))? else {
            return Ok(());
        };
        for name in names(&dir)? {
            self.remove_at(&dir, &name, &path.join(&name))?;
        }
        Ok(())
    }

    /// Removes what has the name `path` unless it is a directory, so that a directory can be made there.
    pub fn make_way(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path);
        let Some(parent) = super::absent(self.look_up(parent, OFlags::DIRECTORY, AS_GUEST))? else {
            return Ok(());
        };
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => Ok(()),
            Ok(_) => self.remove_at(&parent, name, path),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes everything below the directory `path` except directories, without any link in the path:
    /// daemons rely on the owners and modes of the directories.
    pub fn remove_files(&self, path: &Path) -> io::Result<()> {
        let Some(dir) = super::absent(self.look_up(path, OFlags::DIRECTORY, WITHOUT_LINKS))? else {
            return Ok(());
        };
        for name in names(&dir)? {
            let below = path.join(&name);
            let found = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(found.st_mode).is_dir() {
                self.remove_files(&below)?;
            } else {
                self.remove_at(&dir, &name, &below)?;
            }
        }
        Ok(())
    }

    fn remove_at(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        files::remove_entry(parent.as_fd(), name, &self.shown(path)).map_err(|error| match error {
            FileError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    }
}

/// Sets the owner first, because that clears the set-id bits.
fn settle(file: &impl AsFd, facts: &Facts) -> Result<(), Errno> {
    fchown(file, Some(user(facts.uid)), Some(group(facts.gid)))?;
    fchmod(file, mode_of(facts))?;
    for (name, value) in &facts.attributes {
        fsetxattr(file, name, value, XattrFlags::empty())?;
    }
    futimens(file, &at(facts.modified))
}

fn settle_name(parent: &OwnedFd, name: &OsStr, facts: &Facts) -> Result<(), Errno> {
    let (uid, gid) = (user(facts.uid), group(facts.gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(parent, name, &at(facts.modified), AtFlags::SYMLINK_NOFOLLOW)
}

fn mode_of(facts: &Facts) -> Mode {
    Mode::from_raw_mode(facts.mode & 0o7777)
}

/// The id -1 would leave the owner unchanged.
fn user(id: u32) -> Uid {
    Uid::from_raw(if id == u32::MAX { 0 } else { id })
}

fn group(id: u32) -> Gid {
    Gid::from_raw(if id == u32::MAX { 0 } else { id })
}

fn at(seconds: i64) -> Timestamps {
    let at = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}
