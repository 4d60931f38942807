//! What is seen of a path: enough to know that it is the very file that a sync brought.
//!
//! Kind, mode, size, both times and inode stand for the content, because nobody can change a file and keep its change time. What is beyond a
//! link must never pass for a file of the tree.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use crate::bytes::{parent, path};

const NANO: i128 = 1_000_000_000;

/// A time of a file, in nanoseconds of the unix epoch when it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Time {
    fn parse(text: &[u8]) -> Option<Self> {
        let all: i128 = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some(Self {
            seconds: all.div_euclid(NANO).try_into().ok()?,
            nanoseconds: all.rem_euclid(NANO).try_into().ok()?,
        })
    }

    pub(crate) fn nanos(self) -> i128 {
        i128::from(self.seconds) * NANO + i128::from(self.nanoseconds)
    }
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    Other,
}

impl Kind {
    pub(crate) fn letter(self) -> u8 {
        match self {
            Self::File => b'f',
            Self::Link => b'l',
            Self::Other => b'?',
        }
    }

    pub(crate) fn of(letter: &[u8]) -> Option<Self> {
        match letter {
            b"f" => Some(Self::File),
            b"l" => Some(Self::Link),
            b"?" => Some(Self::Other),
            _ => None,
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) size: u64,
    pub(crate) inode: u64,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
    pub(crate) mode: u32,
    pub(crate) kind: Kind,
}

impl Seen {
    pub(crate) fn of(meta: &Metadata) -> Self {
        let kind = if meta.is_file() {
            Kind::File
        } else if meta.is_symlink() {
            Kind::Link
        } else {
            Kind::Other
        };
        let time = |seconds, nanoseconds: i64| Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        Self {
            size: meta.size(),
            inode: meta.ino(),
            modified: time(meta.mtime(), meta.mtime_nsec()),
            changed: time(meta.ctime(), meta.ctime_nsec()),
            mode: meta.mode() & 0o7777,
            kind,
        }
    }

    /// Of what stands at `name`, seen from the workdir, without following a link in its last place.
    pub(crate) fn at(name: &[u8]) -> std::io::Result<Self> {
        path(name).symlink_metadata().map(|meta| Self::of(&meta))
    }

    /// As the record has it: `<kind> <mode> <size> <mtime> <ctime> <inode>`.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self {
            size, inode, mode, ..
        } = self;
        out.push(self.kind.letter());
        // Writing to a vector does not fail.
        write!(
            out,
            " {mode:o} {size} {} {} {inode}",
            self.modified.nanos(),
            self.changed.nanos()
        )
        .ok();
    }

    /// Reads the six words of a record.
    pub(crate) fn parse<'a>(words: &mut impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut text = || words.next().and_then(|word| std::str::from_utf8(word).ok());
        let kind = Kind::of(text()?.as_bytes())?;
        let mode = u32::from_str_radix(text()?, 8).ok()?;
        let size = text()?.parse().ok()?;
        let modified = Time::parse(text()?.as_bytes())?;
        let changed = Time::parse(text()?.as_bytes())?;
        Some(Self {
            inode: text()?.parse().ok()?,
            size,
            modified,
            changed,
            mode,
            kind,
        })
    }
}

/// A time of the manifest.
pub(crate) fn time(text: &[u8]) -> Option<Time> {
    Time::parse(text)
}

/// Which directories are directories of the tree, all the way down from the workdir, and not links.
#[derive(Debug, Default)]
pub(crate) struct Dirs {
    pub(crate) known: HashMap<Vec<u8>, bool>,
}

impl Dirs {
    /// Whether `dir`, seen from the workdir, is one.
    pub(crate) fn own(&mut self, dir: &[u8]) -> bool {
        if dir.is_empty() {
            return true;
        }
        if let Some(answer) = self.known.get(dir) {
            return *answer;
        }
        let answer = self.own(parent(dir)) && path(dir).symlink_metadata().is_ok_and(|meta| meta.is_dir());
        self.known.insert(dir.to_vec(), answer);
        answer
    }

    /// What stands at `name` in a directory of the tree.
    pub(crate) fn look(&mut self, name: &[u8]) -> Option<Seen> {
        if self.own(parent(name)) {
            Seen::at(name).ok()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_down_is_read_again(size: u64, inode: u64, seconds: i64, nanoseconds in 0..1_000_000_000_u32, mode in 0..0o10000_u32) {
            let time = Time { seconds, nanoseconds };
            let seen = Seen { size, inode, modified: time, changed: Time { seconds: 7, nanoseconds: 8 }, mode, kind: Kind::Link };
            let mut text = Vec::new();
            seen.put(&mut text);
            let words = &mut text.split(|byte| *byte == b' ');
            prop_assert_eq!(Seen::parse(words), Some(seen));
            prop_assert_eq!(words.next(), None);
        }
    }
}
