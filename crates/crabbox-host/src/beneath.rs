//! Files below one directory, reached without a symbolic link in any part of their path.
//!
//! Every file with bytes from a guest or a repository is created through [`Beneath`]. The kernel itself
//! refuses symbolic links, `..` and magic links in the path (openat2(2)), and a file appears under its name
//! complete or not at all. Nothing here may accept a path that is not an [`EntryPath`], or follow a link in
//! place of the file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::entry_path::EntryPath;
use crate::random;

mod look;

/// No component of a path may be a link of any kind, and none may lead out of the directory.
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Prefix of a temporary file's name, by which leftovers of a crash are recognised.
pub const TEMPORARY: &str = ".crabbox-tmp-";

/// Why a file below a directory could not be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    /// A part of the path is a symbolic link.
    #[error("{} is reached through a symbolic link, which is not followed", path.display())]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// The path exists and is not a regular file.
    #[error("{} is there already and is {what}", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What it is: `a directory`, `a device`, …
        what: &'static str,
    },
    /// The file must be new but exists already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// The attempted operation, as a verb phrase that the path completes.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl BeneathError {
    fn io(attempt: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            attempt,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Interprets an errno of a path resolution without links.
    fn walk(attempt: &'static str, path: &Path, errno: Errno) -> Self {
        match errno {
            // openat2(2): ELOOP for a link under NO_SYMLINKS, EXDEV for a way out under BENEATH.
            Errno::LOOP | Errno::XDEV => Self::Link {
                path: path.to_owned(),
            },
            errno => Self::io(attempt, path, errno),
        }
    }

    /// Whether there is no such file or directory.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a listed entry is gone: it does not exist, or it or a part of its path was replaced by
    /// something else.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Link { .. } | Self::InTheWay { .. } => true,
            Self::Io { source, .. } => [Errno::NOENT, Errno::NOTDIR, Errno::NXIO]
                .iter()
                .any(|errno| source.raw_os_error() == Some(errno.raw_os_error())),
            Self::Exists { .. } => false,
        }
    }
}

/// The system's error, for an error message that names the path itself.
impl From<BeneathError> for io::Error {
    fn from(error: BeneathError) -> Self {
        match error {
            BeneathError::Io { source, .. } => source,
            error => Self::other(error),
        }
    }
}

/// A name for an object that is not a regular file.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "no regular file",
    }
}

/// What happens to an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An existing regular file or link is replaced atomically; anything else is an error.
    Replace,
    /// Nothing is replaced.
    Refuse,
}

/// An open directory, and its path for messages.
#[derive(Debug)]
pub struct Beneath {
    handle: OwnedFd,
    path: PathBuf,
}

impl Beneath {
    /// Opens the directory `path`, which the caller chose: links in the path are followed.
    pub fn open(path: &Path) -> Result<Self, BeneathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| BeneathError::io("open directory", path, errno))?;
        Ok(Self {
            handle,
            path: path.to_owned(),
        })
    }

    /// The path with which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The full path of `below`, for a message.
    pub fn full(&self, below: &EntryPath) -> PathBuf {
        self.path.join(below.as_path())
    }

    /// Opens `below` with `flags`, following no link. `NONBLOCK` is always set, so that a named pipe cannot
    /// block the caller.
    pub fn open_file(&self, below: &EntryPath, flags: OFlags, mode: Mode) -> Result<File, BeneathError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat2(&self.handle, below.as_path(), flags, mode, NO_LINKS)
            .map(File::from)
            .map_err(|errno| BeneathError::walk("open", &self.full(below), errno))
    }

    /// The directory `below`, which must exist.
    pub fn dir(&self, below: &EntryPath) -> Result<Self, BeneathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let handle = self.open_file(below, flags, Mode::empty())?;
        Ok(Self {
            handle: handle.into(),
            path: self.full(below),
        })
    }

    /// Whether a file system is mounted on the directory `below`: then nothing can be renamed into it from
    /// here. Linux before 5.8 does not report mounts, so there only another device number shows it.
    pub fn is_mounted_on(&self, below: &EntryPath) -> Result<bool, BeneathError> {
        let inner = self.dir(below)?;
        let facts = |dir: &Self| {
            rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
                .map(|facts| (facts.stx_dev_major, facts.stx_dev_minor, facts.stx_mnt_id))
                .map_err(|errno| BeneathError::io("inspect", dir.path(), errno))
        };
        Ok(facts(self)? != facts(&inner)?)
    }

    /// The directory `below`; it and missing parents are created with permission bits `mode` less the umask.
    pub fn make_dirs(&self, below: Option<&EntryPath>, mode: u32) -> Result<Self, BeneathError> {
        let mut at = self.again()?;
        let parts = below.into_iter().flat_map(EntryPath::parts);
        for part in parts {
            let part = EntryPath::exact(part).map_err(|_| at.unnamed())?;
            match rustix::fs::mkdirat(&at.handle, part.as_path(), Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(BeneathError::io("create directory", &at.full(&part), errno)),
            }
            at = at.dir(&part).map_err(|error| match error {
                BeneathError::Io { source, path, .. } if source.kind() == io::ErrorKind::NotADirectory => {
                    BeneathError::InTheWay {
                        path,
                        what: "not a directory",
                    }
                }
                error => error,
            })?;
        }
        Ok(at)
    }

    /// Starts a file that will be `below`; its parents must exist. The umask is applied to `mode`; with
    /// `mode` for the owner only, the file never has wider permissions. Until [`Placing::commit`] it has a
    /// temporary name.
    pub fn begin(&self, below: &EntryPath, mode: u32) -> Result<Placing, BeneathError> {
        let (parent, leaf) = below.split();
        let dir = match &parent {
            Some(parent) => self.dir(parent)?,
            None => self.again()?,
        };
        let leaf = EntryPath::exact(leaf).map_err(|_| dir.unnamed())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let word = random::bytes::<8>().map_err(|source| BeneathError::io("name", &dir.path, source))?;
        let word = u64::from_ne_bytes(word);
        let temporary =
            EntryPath::exact(format!("{TEMPORARY}{word:016x}").as_bytes()).map_err(|_| dir.unnamed())?;
        let file = dir.open_file(&temporary, flags, Mode::from_raw_mode(mode))?;
        Ok(Placing {
            file,
            dir,
            temporary: Some(temporary),
            leaf,
        })
    }

    /// Opens the regular file `below` for appending; creates it with permission bits `mode` if it does not
    /// exist.
    pub fn append(&self, below: &EntryPath, mode: u32) -> Result<File, BeneathError> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let file = self.open_file(below, flags, Mode::from_raw_mode(mode))?;
        regular(&file, &self.full(below))?;
        Ok(file)
    }

    /// Removes the file `below`, or the link of that name.
    pub fn remove(&self, below: &EntryPath) -> Result<(), BeneathError> {
        let (parent, leaf) = below.split();
        let dir = match &parent {
            Some(parent) => self.dir(parent)?,
            None => self.again()?,
        };
        rustix::fs::unlinkat(&dir.handle, leaf, AtFlags::empty())
            .map_err(|errno| BeneathError::io("remove", &self.full(below), errno))
    }

    /// Renames the entry `from` of this directory to `to` of the directory `dir`; both are single names.
    pub fn rename(
        &self,
        from: &EntryPath,
        dir: &Self,
        to: &EntryPath,
        flags: RenameFlags,
    ) -> Result<(), BeneathError> {
        let (_, from) = from.split();
        let (_, name) = to.split();
        let renamed = if flags == RenameFlags::NOREPLACE {
            name_anew((self, from), (dir, name))
        } else {
            rustix::fs::renameat_with(self, from, dir, name, flags)
        };
        renamed.map_err(|errno| match errno {
            Errno::EXIST => BeneathError::Exists { path: dir.full(to) },
            errno => BeneathError::io("write", &dir.full(to), errno),
        })
    }

    /// The directory of `below`, created with permission bits `mode` if missing, and the name in it.
    pub fn parent_of(&self, below: &EntryPath, mode: u32) -> Result<(Self, EntryPath), BeneathError> {
        let (parent, leaf) = below.split();
        let dir = self.make_dirs(parent.as_ref(), mode)?;
        let leaf = EntryPath::exact(leaf).map_err(|_| dir.unnamed())?;
        Ok((dir, leaf))
    }

    /// The names in this directory, in no order.
    pub fn names(&self) -> Result<Vec<EntryPath>, BeneathError> {
        let failed = |errno| BeneathError::io("list", &self.path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Only `.` and `..` are not valid entry names.
            names.extend(EntryPath::exact(entry.file_name().to_bytes()));
        }
        Ok(names)
    }

    fn again(&self) -> Result<Self, BeneathError> {
        let handle = self
            .handle
            .try_clone()
            .map_err(|source| BeneathError::io("open directory", &self.path, source))?;
        Ok(Self {
            handle,
            path: self.path.clone(),
        })
    }

    fn unnamed(&self) -> BeneathError {
        BeneathError::io("name a file in", &self.path, Errno::INVAL)
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Refuses anything but a regular file.
pub(crate) fn regular(file: &File, path: &Path) -> Result<(), BeneathError> {
    let facts = rustix::fs::fstat(file).map_err(|errno| BeneathError::io("inspect", path, errno))?;
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => Ok(()),
        kind => Err(BeneathError::InTheWay {
            path: path.to_owned(),
            what: describe(kind),
        }),
    }
}

/// A file that is being written: it has a temporary name in the same directory, which is removed when this is
/// dropped without a commit.
#[derive(Debug)]
pub struct Placing {
    file: File,
    dir: Beneath,
    temporary: Option<EntryPath>,
    leaf: EntryPath,
}

impl Placing {
    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Its final path.
    pub fn path(&self) -> PathBuf {
        self.dir.full(&self.leaf)
    }

    /// Adds the permission bits `more` for an executable, as far as the umask permits the corresponding read
    /// bits.
    pub fn make_executable(&self) -> Result<(), BeneathError> {
        let path = self.path();
        let failed = |errno| BeneathError::io("make executable", &path, errno);
        let mode = rustix::fs::fstat(&self.file).map_err(failed)?.st_mode & 0o777;
        // Executable for everyone who may read it.
        let mode = Mode::from_raw_mode(mode | (mode & 0o444) >> 2);
        rustix::fs::fchmod(&self.file, mode).map_err(failed)
    }

    /// Gives the file its final name. An existing file is replaced atomically or kept, as `existing` says.
    pub fn commit(mut self, existing: Existing) -> Result<File, BeneathError> {
        let path = self.path();
        let temporary = self.temporary.take().ok_or_else(|| self.dir.unnamed())?;
        let named = self.name(&temporary, &path, existing);
        if named.is_err() {
            // The temporary file is removed when this is dropped; the error is returned below.
            self.temporary = Some(temporary);
        }
        named?;
        self.file
            .try_clone()
            .map_err(|source| BeneathError::io("keep open", &path, source))
    }

    fn name(&self, temporary: &EntryPath, path: &Path, existing: Existing) -> Result<(), BeneathError> {
        let (at, from, to) = (&self.dir, temporary.as_path(), self.leaf.as_path());
        let done = match existing {
            Existing::Replace => {
                match self.dir.kind(&self.leaf)? {
                    None | Some(FileType::RegularFile | FileType::Symlink) => {}
                    Some(kind) => {
                        return Err(BeneathError::InTheWay {
                            path: path.to_owned(),
                            what: describe(kind),
                        });
                    }
                }
                rustix::fs::renameat(at, from, at, to)
            }
            Existing::Refuse => name_anew((at, from), (at, to)),
        };
        done.map_err(|errno| match errno {
            Errno::EXIST => BeneathError::Exists {
                path: path.to_owned(),
            },
            errno => BeneathError::io("write", path, errno),
        })
    }
}

/// Renames an entry to an unused name. File systems without that kind of rename (NFS, 9p, early FUSE) report
/// an invalid flag.
fn name_anew<P: rustix::path::Arg + Copy, Q: rustix::path::Arg + Copy>(
    from: (&Beneath, P),
    to: (&Beneath, Q),
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => link_anew(from, to),
        done => done,
    }
}

/// The same in two steps; the first, a hard link, detects a used name. Directories and some file systems do
/// not support links; then the name is checked first, and an entry of the same name that is made in between
/// is lost.
fn link_anew<P: rustix::path::Arg + Copy, Q: rustix::path::Arg + Copy>(
    from: (&Beneath, P),
    to: (&Beneath, Q),
) -> Result<(), Errno> {
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => rustix::fs::unlinkat(from.0, from.1, AtFlags::empty()),
        Err(_) => match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from.0, from.1, to.0, to.1),
            Err(errno) => Err(errno),
        },
    }
}

impl Write for Placing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // A failure cannot be reported here.
            rustix::fs::unlinkat(&self.dir.handle, temporary.as_path(), AtFlags::empty()).ok();
        }
    }
}

#[cfg(test)]
mod tests;
