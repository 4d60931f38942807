//! Lists the files below a directory that match patterns.
//!
//! Directories where no pattern can match are not read, so that a problem there cannot fail the listing. A
//! link counts as its target if that is in the tree; anything outside must never be opened or named to the
//! client. A match that cannot be sent is reported.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::{Glob, PIECE, Reach, Stream, is_below};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::bytes::{leaf, parent, path, show};
use crate::failure::{At as _, Failure, said};
use crate::seen::{Dirs, FileState, Time};
use crate::talk::Conversation;

/// The list is sent in chunks of about this size, in bytes.
const LIST: usize = PIECE - 8192;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Which files are listed.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Files that match one of these are listed.
    pub(crate) patterns: Vec<Glob>,
    /// Directories of these names are skipped.
    pub(crate) skipped: Vec<String>,
    /// Whether to list only files written since the last command began; `since` is when it did.
    pub(crate) written: bool,
    pub(crate) since: Option<Time>,
    /// Whether a file with several names is listed once.
    pub(crate) once: bool,
}

impl Choice {
    fn file(&self, name: &[u8]) -> Reach {
        let reach = self.patterns.iter().map(|pattern| pattern.file(name));
        reach.max().unwrap_or(Reach::No)
    }

    fn below(&self, name: &[u8]) -> Reach {
        let reach = self.patterns.iter().map(|pattern| pattern.below(name));
        reach.max().unwrap_or(Reach::No)
    }

    fn is_late(&self, stat: &Stat) -> bool {
        let is_late = |since| FileState::of_stat(stat).modified > since;
        !self.written || self.since.is_some_and(is_late)
    }

    fn skips(&self, leaf: &[u8]) -> bool {
        self.skipped.iter().any(|skipped| skipped.as_bytes() == leaf)
    }
}

/// Sends the list of matching files below `dir`.
pub(crate) fn list(talk: &mut Conversation, dir: &str, choice: &Choice) -> Result<(), Failure> {
    std::env::set_current_dir(dir).at(Path::new(dir))?;
    let mut walk = Walk {
        root: std::env::current_dir().at(Path::new(dir))?,
        talk,
        choice,
        list: Vec::new(),
        todo: Vec::new(),
        dirs: Dirs::default(),
        seen: HashSet::new(),
        linked: Vec::new(),
    };
    walk.enter(b"", b"")?;
    while let Some((name, real)) = walk.todo.pop() {
        walk.enter(&name, &real)?;
    }
    // Links come last: by now, a file that is also matched under its own name has been listed under it.
    for (name, identity) in std::mem::take(&mut walk.linked) {
        let kind = walk.kind(identity);
        walk.say(kind, &name)?;
    }
    let list = std::mem::take(&mut walk.list);
    walk.talk.send_list(&list)
}

/// Device and inode, which two names of one file share.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

struct Walk<'a> {
    talk: &'a mut Conversation,
    choice: &'a Choice,
    /// The canonical path of the directory.
    root: PathBuf,
    list: Vec<u8>,
    /// Directories still to read: the path as named to the client, and the real path without links.
    todo: Vec<(Vec<u8>, Vec<u8>)>,
    dirs: Dirs,
    /// The files listed so far, if each is to be listed once.
    seen: HashSet<Identity>,
    /// Names of links with the identity of their targets.
    linked: Vec<(Vec<u8>, Identity)>,
}

/// Where a link leads.
enum Target {
    /// To something that exists in the tree.
    Inside(Vec<u8>, Stat),
    /// Outside of the tree or nowhere, with the reason.
    No(String),
}

impl Walk<'_> {
    fn say(&mut self, kind: u8, text: &[u8]) -> Result<(), Failure> {
        self.list.push(kind);
        self.list.extend_from_slice(text);
        self.list.push(0);
        if self.list.len() >= LIST {
            self.talk.send(Stream::Data, &self.list)?;
            self.list.clear();
        }
        Ok(())
    }

    /// Reports a problem with a path, according to how a pattern reaches it.
    fn problem(&mut self, reach: Reach, name: &[u8], why: &str) -> Result<(), Failure> {
        let kind = match reach {
            Reach::No => return Ok(()),
            Reach::Wide => b'w',
            Reach::Named => b'p',
        };
        let shown = if name.is_empty() { b"." } else { name };
        self.say(kind, format!("{}: {why}", show(path(shown))).as_bytes())
    }

    fn open(&mut self, real: &[u8]) -> Result<OwnedFd, Errno> {
        if real.is_empty() {
            return rustix::fs::open(".", DIRECTORY, Mode::empty());
        }
        let above = self.dirs.enter(parent(real))?;
        rustix::fs::openat(above, leaf(real), DIRECTORY, Mode::empty())
    }

    fn enter(&mut self, name: &[u8], real: &[u8]) -> Result<(), Failure> {
        let reach = self.choice.below(name);
        let opened = self.open(real).and_then(Dir::new);
        let mut dir = match opened {
            Ok(dir) => dir,
            Err(errno) => return self.problem(reach, name, &said(&errno.into())),
        };
        while let Some(entry) = dir.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return self.problem(reach, name, &said(&errno.into())),
            };
            let leaf = entry.file_name().to_bytes();
            if leaf == b"." || leaf == b".." {
                continue;
            }
            let (name, real) = (joined(name, leaf), joined(real, leaf));
            // Some file systems do not report the type.
            let (file, below) = match entry.file_type() {
                FileType::Directory => (Reach::No, self.choice.below(&name)),
                FileType::Symlink | FileType::Unknown => (self.choice.file(&name), self.choice.below(&name)),
                _ => (self.choice.file(&name), Reach::No),
            };
            if file.max(below) == Reach::No {
                continue;
            }
            // Skip a file that was deleted meanwhile.
            if let Ok(stat) = self.dirs.stat(&real) {
                self.found(name, real, &stat, (file, below))?;
            }
        }
        Ok(())
    }

    /// Handles an entry; `file` and `below` say how patterns reach it as a file and as a directory.
    fn found(
        &mut self,
        name: Vec<u8>,
        real: Vec<u8>,
        stat: &Stat,
        (file, below): (Reach, Reach),
    ) -> Result<(), Failure> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            if below != Reach::No && !self.choice.skips(leaf(&name)) {
                self.todo.push((name, real));
            }
            return Ok(());
        }
        if kind == FileType::Symlink {
            return self.link(name, &real, stat, (file, below));
        }
        if file == Reach::No || !self.choice.is_late(stat) {
            return Ok(());
        }
        if kind != FileType::RegularFile {
            return self.problem(file, &name, irregular(kind));
        }
        if !self.choice.once {
            return self.say(b'f', &name);
        }
        // If a link led to its directory, this is not the file's own name.
        if name != real {
            self.linked.push((name, identity(stat)));
            return Ok(());
        }
        let kind = self.kind(identity(stat));
        self.say(kind, &name)
    }

    fn kind(&mut self, identity: Identity) -> u8 {
        if self.seen.insert(identity) { b'f' } else { b'd' }
    }

    fn link(
        &mut self,
        name: Vec<u8>,
        real: &[u8],
        stat: &Stat,
        (file, below): (Reach, Reach),
    ) -> Result<(), Failure> {
        // `**` does not follow links, and a directory wanted as a whole should not be listed twice.
        let into = below == Reach::Named;
        if file == Reach::No && !into {
            return Ok(());
        }
        let (target, found) = match self.target(real) {
            Target::Inside(target, found) => (target, found),
            // A pattern that goes through the link matches nothing, and the reason is reported.
            Target::No(why) if file == Reach::No => return self.problem(Reach::Wide, &name, &why),
            Target::No(why) if self.choice.is_late(stat) => return self.problem(file, &name, &why),
            Target::No(_) => return Ok(()),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if into => {
                // A link to a directory above itself would recurse forever.
                if !target.is_empty() && !is_below(parent(real), &target) {
                    self.todo.push((name, target));
                }
                Ok(())
            }
            _ if file == Reach::No || !self.choice.is_late(&found) => Ok(()),
            FileType::Directory => self.problem(
                Reach::Wide,
                &name,
                "is a link to a directory, and followed only where a pattern names it",
            ),
            FileType::RegularFile if self.choice.once => {
                self.linked.push((name, identity(&found)));
                Ok(())
            }
            FileType::RegularFile => self.say(b'f', &name),
            kind => self.problem(file, &name, irregular(kind)),
        }
    }

    fn target(&mut self, real: &[u8]) -> Target {
        let target = match within(&self.root, real) {
            Ok(target) => target,
            Err(why) => return Target::No(why),
        };
        let mut parts = target.split(|byte| *byte == b'/');
        if let Some(skipped) = parts.find(|part| self.choice.skips(part)) {
            return Target::No(format!("is a link into {}", show(path(skipped))));
        }
        match self.stat(&target) {
            Ok(stat) => Target::Inside(target, stat),
            Err(errno) => Target::No(format!("is a link that leads nowhere ({})", said(&errno.into()))),
        }
    }

    fn stat(&mut self, target: &[u8]) -> Result<Stat, Errno> {
        if target.is_empty() {
            return rustix::fs::statat(CWD, ".", AtFlags::empty());
        }
        self.dirs.stat(target)
    }
}

/// The path of `name` within the tree at `root` with all links resolved, or why it is not in the tree.
pub(crate) fn within(root: &Path, name: &[u8]) -> Result<Vec<u8>, String> {
    let full = root.join(path(name));
    let target = std::fs::canonicalize(&full).map_err(|error| {
        if full.is_symlink() {
            format!("is a link that leads nowhere ({})", said(&error))
        } else {
            said(&error)
        }
    })?;
    match target.strip_prefix(root) {
        Ok(target) => Ok(target.as_os_str().as_bytes().to_vec()),
        Err(_) => Err("leads out of the tree".to_owned()),
    }
}

fn irregular(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "is a pipe, not a regular file",
        FileType::Socket => "is a socket, not a regular file",
        _ => "is a device, not a regular file",
    }
}

fn joined(dir: &[u8], leaf: &[u8]) -> Vec<u8> {
    let mut name = dir.to_vec();
    if !name.is_empty() {
        name.push(b'/');
    }
    name.extend_from_slice(leaf);
    name
}
