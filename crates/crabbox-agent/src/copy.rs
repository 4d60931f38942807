//! Copies of the user's own: what there is at a path, and putting something there that is sent.
//!
//! What comes is made in a private directory beside its place, and only all of it is put there. Nothing may give way to it but files and links, and
//! what is in its way must leave everything as it was. Where another file system is mounted inside the place, a disk that fills there is
//! noticed when other parts are in place already.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crabbox_agent_protocol::{PIECE, Reply, Stream};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, Timespec};
use rustix::io::Errno;

use crate::bytes::{is_absent, listed, path, show};
use crate::failure::{At as _, Failure};
use crate::receive::{Into, receive, times};
use crate::remove::remove_tree;
use crate::talk::{Heard, Talk};

/// A list is sent when it has grown to this, in bytes.
const LIST: usize = PIECE - 8192;

/// What a copy is called where it is made.
const COPY: &str = "c";

/// How the names of directories begin in which copies are made.
const STAGE: &str = ".crabbox-cp.";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A path as a user writes it: a tilde is the home directory.
pub(crate) fn at_home(given: &str) -> Result<PathBuf, Failure> {
    let Some(below) = given.strip_prefix("~/").or((given == "~").then_some("")) else {
        return Ok(PathBuf::from(given));
    };
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| {
        Failure::Refused("the user of the lease has no home directory (HOME is not set)".to_owned())
    })?;
    Ok(match below.trim_matches('/') {
        "" => PathBuf::from(home),
        below => Path::new(&home).join(below),
    })
}

/// Sends what there is at a path and below it.
pub(crate) fn tree(talk: &mut Talk, given: &str, follow: bool) -> Result<(), Failure> {
    let top = at_home(given)?;
    let meta = match top.symlink_metadata() {
        Err(error) if is_absent(&error) => {
            return Err(Failure::Refused(format!("{} does not exist", show(&top))));
        }
        meta => meta.at(&top)?,
    };
    if meta.is_symlink() && !follow {
        return Err(Failure::Refused(format!(
            "{} is a symbolic link; -L copies what it leads to",
            show(&top)
        )));
    }
    let meta = if follow { top.metadata().at(&top)? } else { meta };
    let mut walk = Walk {
        talk,
        top: &top,
        follow,
        list: Vec::new(),
        above: Vec::new(),
    };
    walk.tell(&meta, b"")?;
    walk.enter(&meta, b"")?;
    let list = std::mem::take(&mut walk.list);
    talk.send_list(&list)
}

struct Walk<'a> {
    talk: &'a mut Talk,
    top: &'a Path,
    follow: bool,
    list: Vec<u8>,
    /// Device and inode of the directories that it is in.
    above: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn tell(&mut self, meta: &Metadata, name: &[u8]) -> Result<(), Failure> {
        let kind = meta.file_type();
        self.list.push(match () {
            () if kind.is_dir() => b'd',
            () if kind.is_file() => b'f',
            () if kind.is_symlink() => b'l',
            () if kind.is_fifo() => b'p',
            () if kind.is_socket() => b's',
            () if kind.is_block_device() => b'b',
            () => b'c',
        });
        self.list.extend_from_slice(name);
        self.list.push(0);
        if self.list.len() >= LIST {
            self.talk.send(Stream::Data, &self.list)?;
            self.list.clear();
        }
        Ok(())
    }

    /// Goes on below `name`, where that is a directory. All of it can be looked at, or there is no copy.
    fn enter(&mut self, meta: &Metadata, name: &[u8]) -> Result<(), Failure> {
        if !meta.is_dir() {
            return Ok(());
        }
        let full = self.full(name);
        let identity = (meta.dev(), meta.ino());
        if self.above.contains(&identity) {
            return Err(Failure::Refused(format!(
                "{} leads back to a directory that it is in",
                show(&full)
            )));
        }
        self.above.push(identity);
        for entry in std::fs::read_dir(&full).at(&full)? {
            let leaf = entry.at(&full)?.file_name();
            let mut below = name.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(leaf.as_bytes());
            let at = self.full(&below);
            let meta = match at.symlink_metadata() {
                // One that has gone meanwhile is no problem.
                Err(error) if is_absent(&error) => continue,
                Ok(meta) if meta.is_symlink() && self.follow => at.metadata().at(&at)?,
                meta => meta.at(&at)?,
            };
            self.tell(&meta, &below)?;
            self.enter(&meta, &below)?;
        }
        self.above.pop();
        Ok(())
    }

    fn full(&self, name: &[u8]) -> PathBuf {
        if name.is_empty() {
            self.top.to_owned()
        } else {
            self.top.join(path(name))
        }
    }
}

/// Takes a copy and puts it to a path.
pub(crate) fn put(talk: &mut Talk, to: &str, name: &str, make: bool) -> Result<(), Failure> {
    let names = talk.list()?;
    let names: Vec<&[u8]> = listed(&names).collect();
    // Directories on the way are as those of a login shell.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut to = at_home(to)?;
    if make {
        std::fs::create_dir_all(&to).at(&to)?;
    }
    if to.is_dir() {
        to.push(name);
    }
    let beside = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(beside).at(beside)?;
    let leaf = to.file_name().unwrap_or(OsStr::new("."));
    let stage = Stage::new(beside)?;
    let into = Into {
        root: &stage.path,
        aside: stage.path.join("aside"),
        name: &|number| names.get(number).map(|name| path(name).to_owned()),
    };
    let taken = match talk.hear()? {
        Heard::Request(first) => receive(talk, &into, first),
        Heard::Piece => Err(Failure::Refused("the client sent a piece of nothing".to_owned())),
    };
    // What a message names is its place, and not where it is made.
    taken.map_err(|failure| failure.elsewhere(&stage.path.join(COPY), &to))?;
    let (from, copy) = (stage.dir.as_fd(), Path::new(COPY));
    let parent = rustix::fs::openat(CWD, beside, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty()).at(beside)?;
    fits(from, copy, parent.as_fd(), Path::new(leaf), &to)?;
    place(from, copy, parent.as_fd(), Path::new(leaf), &to)?;
    drop(stage);
    talk.say(&Reply::Received {})
}

/// A private directory beside the place of a copy; it goes with all that is left in it.
struct Stage {
    path: PathBuf,
    dir: OwnedFd,
    /// What it is in.
    beside: OwnedFd,
    name: PathBuf,
}

impl Stage {
    fn new(beside: &Path) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = rustix::fs::openat(CWD, beside, flags, Mode::empty()).at(beside)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut word = u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id());
        loop {
            let name = PathBuf::from(format!("{STAGE}{word:016x}"));
            let path = beside.join(&name);
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                // Whoever guesses the name keeps nobody from another one.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    word = word.wrapping_add(1 << 32);
                }
                made => {
                    made.at(beside)?;
                    let dir = rustix::fs::openat(&within, &name, DIRECTORY, Mode::empty()).at(&path)?;
                    return Ok(Self {
                        path,
                        dir,
                        beside: within,
                        name,
                    });
                }
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What stays is private and has a name that says what it is.
        remove_tree(&self.beside, &self.name).ok();
    }
}

fn look(within: BorrowedFd<'_>, leaf: &Path) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(within, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn names(dir: impl AsFd, shown: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).at(shown)? {
        let entry = entry.at(shown)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(path(name).to_owned());
        }
    }
    Ok(names)
}

/// Opens a directory of a copy, of whose mode nobody wants to be kept out while it is made.
fn open_copy(from: BorrowedFd<'_>, name: &Path, stat: &Stat, shown: &Path) -> Result<OwnedFd, Failure> {
    if stat.st_mode & 0o700 != 0o700 {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700);
        rustix::fs::chmodat(from, name, mode, AtFlags::empty()).at(shown)?;
    }
    rustix::fs::openat(from, name, DIRECTORY, Mode::empty()).at(shown)
}

/// Whether [`place`] finds nothing in its way.
fn fits(
    from: BorrowedFd<'_>,
    name: &Path,
    to: BorrowedFd<'_>,
    leaf: &Path,
    shown: &Path,
) -> Result<(), Failure> {
    let in_the_way = |what| {
        Err(Failure::Refused(format!(
            "{} is there already and is {what}",
            show(shown)
        )))
    };
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).at(shown)?;
    let is_directory = kind(&stat) == FileType::Directory;
    match (is_directory, look(to, leaf).at(shown)?.as_ref().map(kind)) {
        (_, None) | (false, Some(FileType::RegularFile | FileType::Symlink)) => Ok(()),
        (true, Some(FileType::Directory)) => {
            let from = open_copy(from, name, &stat, shown)?;
            let to = rustix::fs::openat(to, leaf, DIRECTORY, Mode::empty()).at(shown)?;
            for child in names(&from, shown)? {
                fits(from.as_fd(), &child, to.as_fd(), &child, &shown.join(&child))?;
            }
            rustix::fs::fchmod(&from, Mode::from_raw_mode(stat.st_mode & 0o7777)).at(shown)
        }
        (true, Some(_)) => in_the_way("not a directory"),
        (false, Some(FileType::Directory)) => in_the_way("a directory"),
        (false, Some(_)) => in_the_way("not a regular file"),
    }
}

/// Puts the copy in place. Directories are merged; a file or link replaces a file or a link.
fn place(
    from: BorrowedFd<'_>,
    name: &Path,
    to: BorrowedFd<'_>,
    leaf: &Path,
    shown: &Path,
) -> Result<(), Failure> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).at(shown)?;
    if kind(&stat) != FileType::Directory {
        return match rustix::fs::renameat(from, name, to, leaf) {
            Err(Errno::XDEV) => carry(from, name, to, leaf, &stat).at(shown),
            moved => moved.at(shown),
        };
    }
    if look(to, leaf).at(shown)?.is_none() {
        match move_directory(from, name, to, leaf, &stat) {
            // The destination is another file system than what it is in.
            Err(Errno::XDEV) => rustix::fs::mkdirat(to, leaf, Mode::RWXU).at(shown)?,
            moved => return moved.at(shown),
        }
    }
    let from = open_copy(from, name, &stat, shown)?;
    let to = rustix::fs::openat(to, leaf, DIRECTORY, Mode::empty()).at(shown)?;
    for child in names(&from, shown)? {
        place(from.as_fd(), &child, to.as_fd(), &child, &shown.join(&child))?;
    }
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777)).at(shown)?;
    rustix::fs::futimens(&to, &times(modified(&stat))).at(shown)
}

/// Moves a directory, which has to be writable for that: its `..` changes.
fn move_directory(
    from: BorrowedFd<'_>,
    name: &Path,
    to: BorrowedFd<'_>,
    leaf: &Path,
    stat: &Stat,
) -> Result<(), Errno> {
    let mode = stat.st_mode & 0o7777;
    let is_closed = mode & 0o200 == 0;
    if is_closed {
        rustix::fs::chmodat(from, name, Mode::from_raw_mode(mode | 0o200), AtFlags::empty())?;
    }
    rustix::fs::renameat_with(from, name, to, leaf, RenameFlags::NOREPLACE).or_else(|errno| match errno {
        // A kernel or a file system that knows no flags; what is there was looked at a moment ago, and a directory that is full stays.
        Errno::NOSYS | Errno::INVAL => rustix::fs::renameat(from, name, to, leaf),
        errno => Err(errno),
    })?;
    if is_closed {
        rustix::fs::chmodat(to, leaf, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}

/// Copies a file or link into another file system, and there renames it to its place.
fn carry(
    from: BorrowedFd<'_>,
    name: &Path,
    to: BorrowedFd<'_>,
    leaf: &Path,
    stat: &Stat,
) -> Result<(), std::io::Error> {
    let new = PathBuf::from(format!("{STAGE}{:x}", std::process::id()));
    let make = || -> Result<(), std::io::Error> {
        if kind(stat) == FileType::Symlink {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, &new)?;
            rustix::fs::utimensat(to, &new, &times(modified(stat)), AtFlags::SYMLINK_NOFOLLOW)?;
        } else {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut old = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut copy = File::from(rustix::fs::openat(to, &new, flags, Mode::RUSR | Mode::WUSR)?);
            std::io::copy(&mut old, &mut copy)?;
            rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            rustix::fs::futimens(&copy, &times(modified(stat)))?;
        }
        Ok(rustix::fs::renameat(to, &new, to, leaf)?)
    };
    let made = make();
    if made.is_err() {
        rustix::fs::unlinkat(to, &new, AtFlags::empty()).ok();
    }
    made
}

#[expect(
    clippy::useless_conversion,
    reason = "the types of these fields differ between machines"
)]
fn modified(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime.into(),
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}
