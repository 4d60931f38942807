//! Receives directories, files and links of the tree.
//!
//! A new file is written directly to its path: an interrupted sync leaves it without a record, so the next
//! sync sends it again. An existing file is replaced atomically by a rename. A partial file must never
//! replace a complete one.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::Request;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;

use crate::bytes::{discard, leaf, parent, path};
use crate::carry::{Carry, times};
use crate::failure::{At as _, Failure};
use crate::seen::Dirs;
use crate::talk::{ClientMessage, Conversation, out_of_order};

/// Mode bits that a write clears, or that cannot be set when a file is created.
const SPECIAL: u32 = 0o7000;

/// The temporary name of a file that had to be copied to another file system, until it is complete. It is
/// fixed, so that the next sync finds what a killed one left, and unlike any name in a real tree.
pub(crate) const NEW: &str = ".crabbox-new-5d41b6a2";

/// Where received files go.
pub(crate) struct Into<'a> {
    /// The directory that names are relative to, for messages.
    pub(crate) root: &'a Path,
    /// The same directory, open.
    pub(crate) dirs: Dirs,
    /// The path where a file is written first if its own place is taken.
    pub(crate) aside: PathBuf,
    /// Looks up a name by its number.
    pub(crate) name: &'a mut dyn FnMut(usize) -> Result<Option<Vec<u8>>, Failure>,
}

/// Receives everything until [`Request::Received`]; `first` was read already.
pub(crate) fn receive(talk: &mut Conversation, into: Into<'_>, first: Request) -> Result<(), Failure> {
    let mut taking = Taking {
        into,
        file: None,
        late: Vec::new(),
        modes: Modes::default(),
    };
    let done = take_all(talk, &mut taking, first);
    if let (Err(_), Some(open)) = (&done, taking.file.take()) {
        // Free the space of the partial file: the disk may be full.
        if open.is_aside {
            discard(&taking.into.aside).ok();
        } else if let Ok(within) = taking.into.dirs.enter(parent(&open.name)) {
            rustix::fs::unlinkat(within, leaf(&open.name), AtFlags::empty()).ok();
        }
    }
    done
}

fn take_all(talk: &mut Conversation, taking: &mut Taking<'_>, first: Request) -> Result<(), Failure> {
    let mut heard = ClientMessage::Request(first);
    loop {
        match heard {
            ClientMessage::Piece => taking.piece(talk.piece())?,
            ClientMessage::Request(Request::Received {}) => return taking.end(),
            ClientMessage::Request(request) => taking.begin(request)?,
        }
        heard = talk.hear()?;
    }
}

struct Taking<'a> {
    into: Into<'a>,
    file: Option<Open>,
    /// Directories whose mode, and for some the time, is set once their contents are complete.
    late: Vec<(Vec<u8>, u32, Option<i64>)>,
    modes: Modes,
}

/// Modes that new files in a directory really get when created with them, so that the umask (or a default
/// ACL) is checked once per directory and mode.
#[derive(Default)]
struct Modes {
    dir: Vec<u8>,
    sound: Vec<u32>,
}

/// The file being received.
struct Open {
    file: File,
    /// Whether it is written outside the tree first.
    is_aside: bool,
    /// Its final path.
    name: Vec<u8>,
    /// The same, for messages.
    to: PathBuf,
    /// The mode that still has to be set.
    mode: Option<u32>,
    modified: Timespec,
    end: u64,
    is_hollow: bool,
}

impl Taking<'_> {
    fn begin(&mut self, request: Request) -> Result<(), Failure> {
        match &request {
            Request::Hole { bytes } => return self.hole(*bytes),
            // The previous file is complete.
            Request::Directory { .. } | Request::File { .. } | Request::Link { .. } => self.finish()?,
            other => return Err(out_of_order(other)),
        }
        match request {
            Request::Directory {
                path: name,
                mode,
                seconds,
            } => self.directory(name, mode, seconds),
            Request::File {
                number,
                mode,
                seconds,
                nanoseconds,
            } => self.begin_file(number, mode, timespec(seconds, nanoseconds)),
            Request::Link {
                number,
                seconds,
                nanoseconds,
                target,
            } => {
                let (name, to) = self.name(number)?;
                let make = |within: BorrowedFd<'_>, leaf: &Path| {
                    rustix::fs::symlinkat(path(&target), within, leaf)?;
                    let times = times(timespec(seconds, nanoseconds));
                    rustix::fs::utimensat(within, leaf, &times, AtFlags::SYMLINK_NOFOLLOW)
                };
                match self.made(&name, &to, make)? {
                    (true, ()) => self.put(&name, &to),
                    (false, ()) => Ok(()),
                }
            }
            other => Err(out_of_order(&other)),
        }
    }

    fn begin_file(&mut self, number: u32, mode: u32, modified: Timespec) -> Result<(), Failure> {
        let (name, to) = self.name(number)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let first = Mode::from_raw_mode(mode & !SPECIAL);
        let make = |within: BorrowedFd<'_>, leaf: &Path| rustix::fs::openat(within, leaf, flags, first);
        let (is_aside, file) = self.made(&name, &to, make)?;
        let dir = parent(&name);
        if self.modes.dir != dir {
            self.modes.dir.clear();
            self.modes.dir.extend_from_slice(dir);
            self.modes.sound.clear();
        }
        let is_sound = !is_aside
            && mode & SPECIAL == 0
            && (self.modes.sound.contains(&mode) || {
                let is_so = rustix::fs::fstat(&file).at(&to)?.st_mode & 0o7777 == mode;
                self.modes.sound.extend(is_so.then_some(mode));
                is_so
            });
        self.file = Some(Open {
            file: file.into(),
            is_aside,
            name,
            to,
            mode: (!is_sound).then_some(mode),
            modified,
            end: 0,
            is_hollow: false,
        });
        Ok(())
    }

    /// The name with this number, and its full path for messages.
    fn name(&mut self, number: u32) -> Result<(Vec<u8>, PathBuf), Failure> {
        let name = match usize::try_from(number) {
            Ok(number) => (self.into.name)(number)?,
            Err(_) => None,
        };
        let name =
            name.ok_or_else(|| Failure::Refused(format!("the client has not named an entry {number}")))?;
        let to = self.into.root.join(path(&name));
        Ok((name, to))
    }

    fn directory(&mut self, name: Vec<u8>, mode: u32, seconds: Option<i64>) -> Result<(), Failure> {
        let to = self.into.root.join(path(&name));
        let within = self.into.dirs.enter(parent(&name)).at(&to)?;
        match rustix::fs::mkdirat(within, leaf(&name), Mode::from_raw_mode(mode | 0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(&to),
        }
        let stat = rustix::fs::statat(within, leaf(&name), AtFlags::SYMLINK_NOFOLLOW).at(&to)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR).at(&to);
        }
        let now = stat.st_mode & 0o7777;
        if now & 0o300 != 0o300 {
            set_mode(within, leaf(&name), now | 0o700).at(&to)?;
        } else if now == mode && seconds.is_none() {
            return Ok(());
        }
        self.late.push((name, mode, seconds));
        Ok(())
    }

    /// Creates something with `make` at `name`, or outside the tree if something is there already; the flag
    /// says which (true: outside).
    fn made<T>(
        &mut self,
        name: &[u8],
        to: &Path,
        make: impl Fn(BorrowedFd<'_>, &Path) -> Result<T, Errno>,
    ) -> Result<(bool, T), Failure> {
        let within = self.into.dirs.enter(parent(name)).at(to)?;
        match make(within, path(leaf(name))) {
            Err(Errno::EXIST) => {
                discard(&self.into.aside)?;
                Ok((true, make(CWD, &self.into.aside).at(to)?))
            }
            made => Ok((false, made.at(to)?)),
        }
    }

    /// Moves what was made outside the tree to its place.
    fn put(&mut self, name: &[u8], to: &Path) -> Result<(), Failure> {
        let within = self.into.dirs.enter(parent(name)).at(to)?;
        let aside = self.into.aside.as_path();
        match rustix::fs::renameat(CWD, aside, within, leaf(name)) {
            // The workdir, or a directory in it, is on another file system.
            Err(Errno::XDEV) => {}
            moved => return moved.at(to),
        }
        let stat = rustix::fs::statat(CWD, aside, AtFlags::SYMLINK_NOFOLLOW).at(aside)?;
        // A leftover of a killed sync; no other sync can be running now.
        match rustix::fs::unlinkat(within, NEW, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at(to),
        }
        let carry = Carry {
            from: CWD,
            name: aside,
            to: within,
            new: Path::new(NEW),
            leaf: path(leaf(name)),
        };
        carry.out(&stat).at(to)?;
        discard(aside)
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

    /// Finishes the open file.
    fn finish(&mut self) -> Result<(), Failure> {
        let Some(open) = &self.file else {
            return Ok(());
        };
        if open.is_hollow {
            open.file.set_len(open.end).at(&open.to)?;
        }
        if let Some(mode) = open.mode {
            rustix::fs::fchmod(&open.file, Mode::from_raw_mode(mode)).at(&open.to)?;
        }
        rustix::fs::futimens(&open.file, &times(open.modified)).at(&open.to)?;
        if open.is_aside {
            let (name, to) = (open.name.clone(), open.to.clone());
            self.put(&name, &to)?;
        }
        self.file = None;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.finish()?;
        // A read-only directory gets its mode after its contents.
        for (name, mode, seconds) in self.late.iter().rev() {
            let to = self.into.root.join(path(name));
            let within = self.into.dirs.enter(parent(name)).at(&to)?;
            set_mode(within, leaf(name), *mode).at(&to)?;
            if let Some(seconds) = seconds {
                let times = times(timespec(*seconds, 0));
                rustix::fs::utimensat(within, leaf(name), &times, AtFlags::SYMLINK_NOFOLLOW).at(&to)?;
            }
        }
        Ok(())
    }
}

/// Changes the mode of a directory, without following a link in its place.
fn set_mode(within: BorrowedFd<'_>, leaf: &[u8], mode: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A directory that its owner may not read can only be opened with `O_PATH`, which does not allow
    // fchmod(2); chmod through `/proc/self/fd` works.
    let dir = rustix::fs::openat(within, leaf, flags, Mode::empty())?;
    let own = format!("/proc/self/fd/{}", dir.as_raw_fd());
    rustix::fs::chmodat(CWD, own.as_str(), Mode::from_raw_mode(mode), AtFlags::empty())
}

fn timespec(seconds: i64, nanoseconds: u32) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    }
}
