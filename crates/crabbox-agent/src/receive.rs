//! Taking what is sent of the tree: directories, files and links.
//!
//! A new file is made in its place: a sync that breaks off leaves it without a record, so that the next one sends it again. One that is there is
//! replaced whole, by a rename. A partial file must never stay where a whole one was.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::Request;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::bytes::{discard, path};
use crate::failure::{At as _, Failure};
use crate::talk::{Heard, Talk, out_of_order};

/// Where what comes is made.
pub(crate) struct Into<'a> {
    /// What the names are seen from.
    pub(crate) root: &'a Path,
    /// Where something is made whose place is taken.
    pub(crate) aside: PathBuf,
    /// The names by their numbers.
    pub(crate) name: &'a dyn Fn(usize) -> Option<PathBuf>,
}

/// Takes all until [`Request::Received`]; `first` was heard already.
pub(crate) fn receive(talk: &mut Talk, into: &Into<'_>, first: Request) -> Result<(), Failure> {
    let mut taking = Taking {
        into,
        file: None,
        late: Vec::new(),
    };
    let done = take_all(talk, &mut taking, first);
    if let (Err(_), Some(open)) = (&done, taking.file.take()) {
        // A full disk gets its room back.
        std::fs::remove_file(&open.at).ok();
    }
    done
}

fn take_all(talk: &mut Talk, taking: &mut Taking<'_>, first: Request) -> Result<(), Failure> {
    let mut heard = Heard::Request(first);
    loop {
        match heard {
            Heard::Piece => taking.piece(talk.piece())?,
            Heard::Request(Request::Received {}) => return taking.end(),
            Heard::Request(request) => taking.begin(request)?,
        }
        heard = talk.hear()?;
    }
}

struct Taking<'a> {
    into: &'a Into<'a>,
    file: Option<Open>,
    /// Directories that get their mode, and some their time, when they are full.
    late: Vec<(PathBuf, u32, Option<i64>)>,
}

/// A file on its way.
struct Open {
    file: File,
    /// Where it is made.
    at: PathBuf,
    /// Where it goes.
    to: PathBuf,
    mode: u32,
    modified: Timespec,
    end: u64,
    is_hollow: bool,
}

impl Taking<'_> {
    fn begin(&mut self, request: Request) -> Result<(), Failure> {
        match &request {
            Request::Hole { bytes } => return self.hole(*bytes),
            // The file before it is whole.
            Request::Directory { .. } | Request::File { .. } | Request::Link { .. } => self.finish()?,
            other => return Err(out_of_order(other)),
        }
        match request {
            Request::Directory {
                path: name,
                mode,
                seconds,
            } => self.directory(&self.into.root.join(path(&name)), mode, seconds),
            Request::File {
                number,
                mode,
                seconds,
                nanoseconds,
            } => {
                let to = self.path(number)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let make = |at: &Path| rustix::fs::openat(CWD, at, flags, Mode::from_raw_mode(0o600));
                let (at, file): (_, OwnedFd) = self.made(&to, make)?;
                self.file = Some(Open {
                    file: file.into(),
                    at,
                    to,
                    mode,
                    modified: timespec(seconds, nanoseconds),
                    end: 0,
                    is_hollow: false,
                });
                Ok(())
            }
            Request::Link {
                number,
                seconds,
                nanoseconds,
                target,
            } => {
                let to = self.path(number)?;
                let (at, ()) = self.made(&to, |at| rustix::fs::symlinkat(path(&target), CWD, at))?;
                let times = times(timespec(seconds, nanoseconds));
                rustix::fs::utimensat(CWD, &at, &times, AtFlags::SYMLINK_NOFOLLOW).at(&to)?;
                put(&at, &to)
            }
            other => Err(out_of_order(&other)),
        }
    }

    fn path(&self, number: u32) -> Result<PathBuf, Failure> {
        let name = usize::try_from(number)
            .ok()
            .and_then(|number| (self.into.name)(number));
        name.map(|name| self.into.root.join(name))
            .ok_or_else(|| Failure::Refused(format!("the client has not named an entry {number}")))
    }

    fn directory(&mut self, name: &Path, mode: u32, seconds: Option<i64>) -> Result<(), Failure> {
        match std::fs::DirBuilder::new().mode(mode | 0o700).create(name) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.at(name)?,
        }
        let meta = name.symlink_metadata().at(name)?;
        if !meta.is_dir() {
            return Err(Errno::NOTDIR).at(name);
        }
        let now = meta.permissions().mode() & 0o7777;
        if now & 0o300 != 0o300 {
            std::fs::set_permissions(name, std::fs::Permissions::from_mode(now | 0o700)).at(name)?;
            self.late.push((name.to_owned(), mode, seconds));
        } else if now != mode || seconds.is_some() {
            self.late.push((name.to_owned(), mode, seconds));
        }
        Ok(())
    }

    /// Makes something at `to`, or beside the tree where something stands there; and says where.
    fn made<T>(&self, to: &Path, make: impl Fn(&Path) -> Result<T, Errno>) -> Result<(PathBuf, T), Failure> {
        match make(to) {
            Err(Errno::EXIST) => {
                let at = self.into.aside.clone();
                discard(&at)?;
                let made = make(&at).at(to)?;
                Ok((at, made))
            }
            made => Ok((to.to_owned(), made.at(to)?)),
        }
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let open = self.open()?;
        open.file.write_all(bytes).at(&open.to)?;
        open.end += bytes.len() as u64;
        open.is_hollow = false;
        Ok(())
    }

    fn hole(&mut self, bytes: u64) -> Result<(), Failure> {
        let open = self.open()?;
        open.end += bytes;
        open.file.seek(SeekFrom::Start(open.end)).at(&open.to)?;
        open.is_hollow = true;
        Ok(())
    }

    fn open(&mut self) -> Result<&mut Open, Failure> {
        self.file
            .as_mut()
            .ok_or_else(|| Failure::Refused("the client sent a piece of no file".to_owned()))
    }

    /// Ends the file that is open.
    fn finish(&mut self) -> Result<(), Failure> {
        let Some(open) = &self.file else {
            return Ok(());
        };
        if open.is_hollow {
            open.file.set_len(open.end).at(&open.to)?;
        }
        rustix::fs::fchmod(&open.file, Mode::from_raw_mode(open.mode)).at(&open.to)?;
        rustix::fs::futimens(&open.file, &times(open.modified)).at(&open.to)?;
        put(&open.at, &open.to)?;
        self.file = None;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.finish()?;
        // A directory that nobody may write to gets its mode when it is full.
        for (name, mode, seconds) in self.late.iter().rev() {
            std::fs::set_permissions(name, std::fs::Permissions::from_mode(*mode)).at(name)?;
            if let Some(seconds) = seconds {
                rustix::fs::utimensat(
                    CWD,
                    name,
                    &times(timespec(*seconds, 0)),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .at(name)?;
            }
        }
        Ok(())
    }
}

fn timespec(seconds: i64, nanoseconds: u32) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    }
}

pub(crate) fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        last_modification: modified,
    }
}

/// Puts what was made into its place.
fn put(at: &Path, to: &Path) -> Result<(), Failure> {
    if at == to {
        return Ok(());
    }
    match rustix::fs::renameat(CWD, at, CWD, to) {
        Err(Errno::XDEV) => copy(at, to),
        moved => moved.at(to),
    }
}

/// The workdir is another file system than its surroundings.
fn copy(at: &Path, to: &Path) -> Result<(), Failure> {
    let meta = at.symlink_metadata().at(at)?;
    std::fs::remove_file(to).at(to)?;
    if meta.is_symlink() {
        let target = std::fs::read_link(at).at(at)?;
        std::os::unix::fs::symlink(target, to).at(to)?;
    } else {
        std::fs::copy(at, to).at(to)?;
    }
    let seen = crate::seen::Seen::of(&meta).modified;
    let times = times(timespec(seen.seconds, seen.nanoseconds));
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).at(to)?;
    std::fs::remove_file(at).at(at)
}
