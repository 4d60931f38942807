//! An untrusted root tree: every name in it is looked up with the tree as `/`, or without following links at
//! all.
//!
//! The kernel resolves (`openat2(2)` with `RESOLVE_IN_ROOT` or `RESOLVE_NO_SYMLINKS`) and every change is
//! made on a descriptor, so that neither `..` nor a symbolic link, absolute or relative, can reach a file of
//! this host, in whatever order entries are made. It must never return a path of the tree for others to open.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, readlinkat, statat};
use rustix::io::Errno;

use crate::budget::Budget;
use crate::files::FileError;
use crate::resolved::open_resolved;

mod fill;

pub use fill::{Facts, Kind};

/// As the guest would resolve it: links are followed, but stay inside the tree.
const AS_GUEST: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Without any link in the path.
const WITHOUT_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// The tree.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    path: PathBuf,
    /// The times of the directories that were put into it, by inode: every entry that is made in one changes
    /// its time.
    times: Mutex<BTreeMap<u64, i64>>,
}

/// The name is not a valid path in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name leaves the tree by `..`")]
pub struct Leaves;

/// `path` without a leading `/` and without `.`; refused when it has a `..`.
pub fn inside(path: &Path) -> Result<PathBuf, Leaves> {
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
    /// Creates the directory `path` (0755), which must not exist yet, as the root of a new tree.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        std::fs::create_dir(path).map_err(|source| FileError::io("create directory", path, source))?;
        let tree = Self::open(path)?;
        rustix::fs::fchmod(&tree.root, Mode::from_raw_mode(0o755))
            .map_err(|source| FileError::io("set the mode of", path, source))?;
        Ok(tree)
    }

    /// Opens the tree in the directory `path`, which the caller trusts to be the right one.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| FileError::io("open directory", path, source))?;
        Ok(Self::of(root, path.to_owned()))
    }

    /// The directory `path` of this tree, as its guest sees it, as a separate tree; `None` if it does not
    /// exist. Links that lead out of it do not resolve.
    pub fn below(&self, path: &Path) -> io::Result<Option<Self>> {
        let found = self.look_up(path, OFlags::DIRECTORY, AS_GUEST);
        Ok(absent(found)?.map(|root| Self::of(root, self.shown(path))))
    }

    fn of(root: OwnedFd, path: PathBuf) -> Self {
        let times = Mutex::default();
        Self { root, path, times }
    }

    /// The path with which it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free space on its file system.
    pub fn room(&self) -> io::Result<Budget> {
        Budget::free_space(&self.root)
    }

    /// The path of `path` on this host, for messages.
    pub fn shown(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// Opens `path`.
    fn look_up(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        open_resolved(self.root.as_fd(), path, flags | OFlags::CLOEXEC, resolve)
    }

    /// Opens the regular file `path` as the guest would; `None` if it does not exist. Nothing else is opened:
    /// opening a device may have effects, opening a pipe may block.
    pub fn file(&self, path: &Path) -> io::Result<Option<File>> {
        self.regular(path, AS_GUEST)
    }

    /// The same without any link in the path.
    pub fn plain_file(&self, path: &Path) -> io::Result<Option<File>> {
        self.regular(path, WITHOUT_LINKS)
    }

    fn regular(&self, path: &Path, resolve: ResolveFlags) -> io::Result<Option<File>> {
        let Some(found) = absent(self.look_up(path, OFlags::PATH, resolve))? else {
            return Ok(None);
        };
        if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Some(opened) = absent(self.look_up(path, flags, resolve))? else {
            return Ok(None);
        };
        let file = File::from(opened);
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// The content of the regular file `path`, as the guest sees it, at most `limit` bytes; `None` if it does
    /// not exist. Longer content is an error ([`io::ErrorKind::FileTooLarge`]).
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.file(path)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            let why = format!("it is longer than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok(Some(content))
    }

    /// The attributes of `path`, without any link in the path; for a link at its end, its own attributes.
    pub fn look(&self, path: &Path) -> io::Result<Stat> {
        let (parent, name) = split(path);
        let parent = self.look_up(parent, OFlags::PATH | OFlags::DIRECTORY, WITHOUT_LINKS)?;
        Ok(statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The target of the symbolic link `path`, unchanged.
    pub fn link_target(&self, path: &Path) -> io::Result<PathBuf> {
        let (parent, name) = split(path);
        let parent = self.look_up(parent, OFlags::PATH | OFlags::DIRECTORY, WITHOUT_LINKS)?;
        let target = readlinkat(&parent, name, Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.to_bytes())))
    }

    /// The sorted names in the directory `path`, without any link in the path; empty if there is no such
    /// directory.
    pub fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match absent(self.look_up(path, OFlags::DIRECTORY, WITHOUT_LINKS))? {
            Some(dir) => names(&dir),
            None => Ok(Vec::new()),
        }
    }

    /// Whether `path` is a directory or could be created as one, without any link in the path: nothing else
    /// is in its place.
    pub fn is_real_directory(&self, path: &Path) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match self.look_up(path, flags, WITHOUT_LINKS) {
            Ok(_) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::LOOP | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Separates a missing path, or one of the wrong kind, from other errors.
fn absent<T>(found: Result<T, Errno>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (
        path.parent().unwrap_or(Path::new("")),
        path.file_name().unwrap_or(OsStr::new(".")),
    )
}

#[cfg(test)]
mod tests;
