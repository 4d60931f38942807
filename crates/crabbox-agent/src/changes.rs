//! What has changed in a tree since its last sync; it only looks.
//!
//! `<state> <identity> <mode> <path>` records, NUL after each. States: M changed, N new, D gone, L a link or something else that is no file. The
//! record `-` comes first when there is a record of a sync to compare with, and nothing at all when there is none. Neither the list nor
//! the names of the tree must ever be held whole.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;

use crabbox_agent_protocol::{PIECE, Reply, Stream};

use crate::bytes::{path, push};
use crate::failure::Failure;
use crate::files::walk;
use crate::record::{Head, Known, Place, each};
use crate::seen::{Dirs, Kind, Seen};
use crate::talk::Talk;

/// Directories that nobody syncs.
const SKIPPED: [&[u8]; 2] = [b".git", b".crabbox"];

/// The list is sent when it has grown to this, in bytes.
const LIST: usize = PIECE - 8192;

/// Sends the list.
pub(crate) fn send(talk: &mut Talk, lease_dir: &str, name: &str) -> Result<(), Failure> {
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

/// The list on its way.
struct List<'a> {
    talk: &'a mut Talk,
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

    /// What became of a file of the record.
    fn known(&mut self, was: &Known<'_>) -> Result<(), Failure> {
        let facts = |seen: Seen| (seen.size, seen.modified, seen.changed, seen.inode);
        match self.dirs.look(was.path) {
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

    /// What there is at a path that no sync brought.
    fn unknown(&mut self, name: &[u8]) -> Result<(), Failure> {
        match self.dirs.look(name).filter(|now| !is_directory(now, name)) {
            Some(now) if now.kind == Kind::File => self.say('N', b"0", now.mode, name),
            Some(now) => self.say('L', b"0", now.mode, name),
            None => Ok(()),
        }
    }
}

/// Names by which others are known again, in 16 bytes each: hashes by keys that nobody knows before, of which no two of a tree are one.
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

    /// All of them are there.
    fn sort(&mut self) {
        self.marks.sort_unstable();
    }

    fn has(&self, name: &[u8]) -> bool {
        self.marks.binary_search(&self.mark(name)).is_ok()
    }
}

fn is_directory(now: &Seen, name: &[u8]) -> bool {
    now.kind == Kind::Other && path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

/// Gives all below a directory to `take`.
fn below(start: &[u8], take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut taken = Ok(());
    let mut each = |name: Vec<u8>| {
        if taken.is_ok() {
            taken = take(&name);
        }
    };
    walk(start, &SKIPPED, &mut |name, _| each(name), &mut |_| {});
    taken
}

/// Gives every path that could be wanted to `take`, some twice; git leaves out what is ignored, if it is there.
fn wanted(take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    if path(b".git").is_dir() {
        let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let named = crate::git::names(&args, |name| {
            if name.ends_with(b"/") {
                return Ok(());
            }
            if path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                // A submodule came without its repository: git here knows its name alone.
                return below(name, take);
            }
            take(name)
        });
        match named {
            Ok(true) => return Ok(()),
            Err(Failure::Gone) => return Err(Failure::Gone),
            // It is no repository of git's, or there is no git.
            Ok(false) | Err(_) => {}
        }
    }
    below(b"", take)
}
