//! Lists what has changed in a tree since its last sync, without changing anything.
//!
//! The list holds `<state> <identity> <mode> <path>` records, NUL after each. States: M changed, N new, D
//! gone, L a link or something else that is not a regular file, U could not be examined. The record `-` comes
//! first if there is a record of a sync to compare with; otherwise the list is empty. Neither the list nor
//! the names of the tree must ever be held in memory whole.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use crabbox_agent_protocol::{PIECE, Reply, Stream};
use rustix::io::Errno;

use crate::bytes::{leaf, path, push};
use crate::failure::Failure;
use crate::receive::NEW;
use crate::record::{Head, Known, Place, each};
use crate::seen::{Dirs, FileState, Kind};
use crate::talk::Conversation;

/// Directories that are never synced.
const SKIPPED: [&[u8]; 2] = [b".git", b".crabbox"];

/// The list is sent in chunks of about this size, in bytes.
const LIST: usize = PIECE - 8192;

/// Sends the list.
pub(crate) fn send(talk: &mut Conversation, lease_dir: &str, name: &str) -> Result<(), Failure> {
    let place = Place::new(lease_dir, name);
    if let Some(head) = Head::load(&place)
        && std::env::set_current_dir(&place.workdir).is_ok()
    {
        let mut list = List {
            talk,
            waiting: b"-\0".to_vec(),
            dirs: Dirs::default(),
        };
        let mut known = Marks::default();
        each(&place, Some(&head), |was| {
            known.add(was.path);
            list.known(&was)
        })?;
        known.sort();
        wanted(&mut |name| {
            if known.has(name) {
                Ok(())
            } else {
                list.unknown(name)
            }
        })?;
        list.flush()?;
    }
    talk.say(&Reply::End {})
}

/// The list being sent.
struct List<'a> {
    talk: &'a mut Conversation,
    waiting: Vec<u8>,
    dirs: Dirs,
}

impl List<'_> {
    fn say(&mut self, state: char, identity: &[u8], mode: u32, name: &[u8]) -> Result<(), Failure> {
        // Writing to a vector does not fail.
        write!(
            self.waiting,
            "{state} {} {mode:o} ",
            String::from_utf8_lossy(identity)
        )
        .ok();
        push(&mut self.waiting, name);
        if self.waiting.len() >= LIST {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let sent = self.talk.send(Stream::Data, &self.waiting);
        self.waiting.clear();
        sent
    }

    /// Reports what became of a file of the record.
    fn known(&mut self, was: &Known<'_>) -> Result<(), Failure> {
        let facts = |seen: FileState| (seen.size, seen.modified, seen.changed, seen.inode);
        let now = match self.dirs.stat(was.path) {
            Ok(stat) => Some(FileState::of_stat(&stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            // The file may still exist.
            Err(_) => return self.say('U', was.identity, 0, was.path),
        };
        match now {
            None => self.say('D', was.identity, 0, was.path),
            Some(now) if is_directory(&now, was.path) => self.say('D', was.identity, 0, was.path),
            Some(now) if was.seen.kind != Kind::File || now.kind != Kind::File => {
                let same = was.seen.kind == Kind::Link
                    && now.kind == Kind::Link
                    && (now.changed, now.inode) == (was.seen.changed, was.seen.inode);
                if same {
                    return Ok(());
                }
                self.say('L', was.identity, 0, was.path)
            }
            Some(now) if facts(now) == facts(was.seen) => Ok(()),
            Some(now) => self.say('M', was.identity, now.mode, was.path),
        }
    }

    /// Reports a path that no sync brought.
    fn unknown(&mut self, name: &[u8]) -> Result<(), Failure> {
        match self.dirs.look(name).filter(|now| !is_directory(now, name)) {
            Some(now) if now.kind == Kind::File => self.say('N', b"0", now.mode, name),
            Some(now) => self.say('L', b"0", now.mode, name),
            None => Ok(()),
        }
    }
}

/// A set of names that keeps 16 bytes per name: two hashes with random keys, so that names which collide
/// cannot be crafted and two names of a tree practically never do.
#[derive(Default)]
struct Marks {
    keys: [RandomState; 2],
    marks: Vec<u128>,
}

impl Marks {
    fn mark(&self, name: &[u8]) -> u128 {
        let [high, low] = self.keys.each_ref().map(|key| u128::from(key.hash_one(name)));
        high << 64 | low
    }

    fn add(&mut self, name: &[u8]) {
        self.marks.push(self.mark(name));
    }

    /// To be called once after all names were added.
    fn sort(&mut self) {
        self.marks.sort_unstable();
    }

    fn has(&self, name: &[u8]) -> bool {
        self.marks.binary_search(&self.mark(name)).is_ok()
    }
}

fn is_directory(now: &FileState, name: &[u8]) -> bool {
    now.kind == Kind::Other && path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

/// Passes every non-directory below `start` to `take`, by its path relative to the current directory. Links
/// are not followed, and directories that cannot be read are skipped.
fn below(start: &[u8], take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut todo = vec![start.to_vec()];
    while let Some(dir) = todo.pop() {
        let at = if dir.is_empty() { path(b".") } else { path(&dir) };
        let Ok(entries) = std::fs::read_dir(at) else {
            continue;
        };
        // A read error ends the listing of this directory.
        for entry in entries.map_while(Result::ok) {
            let leaf = entry.file_name();
            let mut name = dir.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(leaf.as_bytes());
            // Skip a file that was deleted since we listed it.
            let Ok(meta) = path(&name).symlink_metadata() else {
                continue;
            };
            if !meta.is_dir() {
                take(&name)?;
            } else if !SKIPPED.contains(&leaf.as_bytes()) {
                todo.push(name);
            }
        }
    }
    Ok(())
}

/// Passes every candidate path to `take`, some twice. In a git repository, ignored files are left out.
fn wanted(each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    // The temporary file of a killed sync is not a change made by the guest.
    let take: &mut dyn FnMut(&[u8]) -> Result<(), Failure> = &mut |name| {
        if leaf(name) == NEW.as_bytes() {
            Ok(())
        } else {
            each(name)
        }
    };
    if path(b".git").is_dir() {
        let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let named = crate::git::names(&args, |name| {
            if name.ends_with(b"/") {
                return Ok(());
            }
            if path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                // A submodule was synced without its repository, so git here knows only its directory.
                return below(name, take);
            }
            take(name)
        });
        match named {
            Ok(true) => return Ok(()),
            Err(Failure::Gone) => return Err(Failure::Gone),
            // This is not a git repository, or git is not installed.
            Ok(false) | Err(_) => {}
        }
    }
    below(b"", take)
}
