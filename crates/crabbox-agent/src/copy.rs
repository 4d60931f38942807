//! The lease's side of `cp`: lists what is at a path, and puts there what the client sends.
//!
//! A copy is received in a private directory beside its destination and moved there once complete. Only files
//! and links may be replaced, and if something else is in the way, everything must stay as it was. If another
//! file system is mounted inside the destination, a full disk there is only noticed after other parts are in
//! place.

mod place;

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crabbox_agent_protocol::{PIECE, Reply, Stream};
use rustix::fs::{CWD, Mode, OFlags};

use crate::bytes::{is_absent, listed, path, show};
use crate::failure::{At as _, Failure};
use crate::receive::{Into, receive};
use crate::remove::remove_tree;
use crate::seen::Dirs;
use crate::talk::{ClientMessage, Conversation};
use place::Move;

/// The list is sent in chunks of about this size, in bytes.
const LIST: usize = PIECE - 8192;

/// The name of the copy in its staging directory.
const COPY: &str = "c";

/// The prefix of the names of staging directories.
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

/// Sends the list of what is at a path and below it.
pub(crate) fn tree(talk: &mut Conversation, given: &str, follow: bool) -> Result<(), Failure> {
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
    talk: &'a mut Conversation,
    top: &'a Path,
    follow: bool,
    list: Vec<u8>,
    /// Device and inode of the directories above the current one.
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

    /// Lists what is below `name` if that is a directory. Any error fails the copy, since it would be
    /// incomplete.
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
                // Skip a file that was deleted meanwhile.
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

/// Receives a copy and moves it to a path.
pub(crate) fn put(talk: &mut Conversation, to: &str, name: &str, make: bool) -> Result<(), Failure> {
    let names = talk.list()?;
    let names: Vec<&[u8]> = listed(&names).collect();
    // Directories created on the way get the modes that a login shell would give them.
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
        dirs: Dirs::below(stage.dir.try_clone().at(&stage.path)?),
        aside: stage.path.join("aside"),
        name: &mut |number| Ok(names.get(number).map(|name| name.to_vec())),
    };
    let taken = match talk.hear()? {
        ClientMessage::Request(first) => receive(talk, into, first),
        ClientMessage::Piece => Err(Failure::Refused("the client sent a piece of nothing".to_owned())),
    };
    // Messages name the destination, not the staging directory.
    taken.map_err(|failure| failure.elsewhere(&stage.path.join(COPY), &to))?;
    let parent = rustix::fs::openat(CWD, beside, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty()).at(beside)?;
    let copy = Move {
        from: stage.dir.as_fd(),
        name: Path::new(COPY),
        to: parent.as_fd(),
        leaf: Path::new(leaf),
        shown: &to,
    };
    copy.fits()?;
    copy.carry_out()?;
    drop(stage);
    talk.say(&Reply::Received {})
}

/// A private staging directory beside the destination; removed on drop with everything in it.
struct Stage {
    path: PathBuf,
    dir: OwnedFd,
    /// The directory that it is in.
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
                // Try another name if this one is taken.
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
        // If this fails, the leftover is private and its name says what it is.
        remove_tree(&self.beside, &self.name).ok();
    }
}
