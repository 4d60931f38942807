//! The metadata of a path that shows whether it is still the very file that a sync brought.
//!
//! Kind, mode, size, both times and inode stand for the content, because a file cannot be changed without
//! changing its ctime. Nothing beyond a link must ever pass for a file of the tree.

use std::fs::Metadata;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use crabbox_agent_protocol::is_below;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::bytes::{leaf, parent, path};

const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

const NANO: i128 = 1_000_000_000;

/// A file time; written as nanoseconds since the unix epoch.
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

/// The length of a packed [`FileState`], in bytes.
pub(crate) const SIZE: usize = 48;

/// The type of a path.
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

/// What was seen of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    pub(crate) size: u64,
    pub(crate) inode: u64,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
    pub(crate) mode: u32,
    pub(crate) kind: Kind,
}

impl FileState {
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

    pub(crate) fn of_stat(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            inode: stat.st_ino,
            modified: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            changed: Time {
                seconds: stat.st_ctime,
                nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
            },
            mode: stat.st_mode & 0o7777,
            kind,
        }
    }

    /// Looks at `name`, relative to the workdir, without following a link in the last component.
    pub(crate) fn at(name: &[u8]) -> std::io::Result<Self> {
        path(name).symlink_metadata().map(|meta| Self::of(&meta))
    }

    /// Appends the form used in the record: `<kind> <mode> <size> <mtime> <ctime> <inode>`.
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

    /// Packs into [`SIZE`] bytes; all zero for not seen.
    pub(crate) fn pack(seen: Option<&Self>) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        if let Some(seen) = seen {
            bytes[0] = seen.kind.letter();
            bytes[4..8].copy_from_slice(&seen.mode.to_le_bytes());
            bytes[8..16].copy_from_slice(&seen.size.to_le_bytes());
            bytes[16..24].copy_from_slice(&seen.inode.to_le_bytes());
            for (at, time) in [(24, seen.modified), (36, seen.changed)] {
                bytes[at..at + 8].copy_from_slice(&time.seconds.to_le_bytes());
                bytes[at + 8..at + 12].copy_from_slice(&time.nanoseconds.to_le_bytes());
            }
        }
        bytes
    }

    /// The reverse of [`Self::pack`].
    pub(crate) fn unpack(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let short = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let time = |at: usize| {
            Some(Time {
                seconds: long(at)?.cast_signed(),
                nanoseconds: short(at + 8)?,
            })
        };
        Some(Self {
            kind: Kind::of(bytes.get(..1)?)?,
            mode: short(4)?,
            size: long(8)?,
            inode: long(16)?,
            modified: time(24)?,
            changed: time(36)?,
        })
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

/// Parses a time of the manifest.
pub(crate) fn time(text: &[u8]) -> Option<Time> {
    Time::parse(text)
}

/// How many directories along a path are held open at most: a process may have about a thousand descriptors.
const HELD: usize = 64;

/// Opens directories of the tree without following any link below the workdir. The last directory and those
/// above it stay open, because neighbouring paths usually follow each other.
#[derive(Debug, Default)]
pub(crate) struct Dirs {
    /// What paths are relative to; the current directory if `None`.
    root: Option<OwnedFd>,
    /// The open directories along `at`, each with the length of its path in `at`.
    way: Vec<(usize, OwnedFd)>,
    at: Vec<u8>,
    /// The last path that could not be entered, and why.
    none: Option<(Vec<u8>, Errno)>,
}

impl Dirs {
    /// For paths relative to `root`.
    pub(crate) fn below(root: OwnedFd) -> Self {
        Self {
            root: Some(root),
            ..Self::default()
        }
    }

    /// Opens `dir`.
    pub(crate) fn enter(&mut self, dir: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if let Some((none, errno)) = &self.none
            && is_below(dir, none)
        {
            return Err(*errno);
        }
        // The root is above everything, so the open directories can stay for the next call.
        if dir.is_empty() {
            return Ok(self.root.as_ref().map_or(CWD, |root| root.as_fd()));
        }
        while self
            .way
            .last()
            .is_some_and(|(length, _)| !is_below(dir, &self.at[..*length]))
        {
            self.way.pop();
        }
        self.at.clear();
        self.at.extend_from_slice(dir);
        let mut start = self.way.last().map_or(0, |(length, _)| length + 1);
        while start <= dir.len() {
            let rest = &dir[start..];
            let end = start + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let within = match (self.way.last(), &self.root) {
                (Some((_, above)), _) => above.as_fd(),
                (None, Some(root)) => root.as_fd(),
                (None, None) => CWD,
            };
            match rustix::fs::openat(within, &dir[start..end], DIRECTORY, Mode::empty()) {
                Ok(opened) => {
                    // Beyond this depth, directories in the middle are reopened when needed.
                    self.way.truncate(HELD - 1);
                    self.way.push((end, opened));
                }
                Err(errno) => {
                    self.none = Some((dir[..end].to_vec(), errno));
                    return Err(errno);
                }
            }
            start = end + 1;
        }
        self.way
            .last()
            .map(|(_, opened)| opened.as_fd())
            .ok_or(Errno::NOENT)
    }

    /// The path at or above the last failed one that could not be entered.
    pub(crate) fn none(&self) -> Option<&[u8]> {
        self.none.as_ref().map(|(none, _)| none.as_slice())
    }

    /// Whether `dir` is a directory of the tree.
    pub(crate) fn own(&mut self, dir: &[u8]) -> bool {
        self.enter(dir).is_ok()
    }

    /// The stat of `name` in a directory of the tree.
    pub(crate) fn stat(&mut self, name: &[u8]) -> Result<Stat, Errno> {
        let within = self.enter(parent(name))?;
        rustix::fs::statat(within, leaf(name), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The same as a [`FileState`]; `None` on any error.
    pub(crate) fn look(&mut self, name: &[u8]) -> Option<FileState> {
        self.stat(name).ok().map(|stat| FileState::of_stat(&stat))
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
            let seen = FileState { size, inode, modified: time, changed: Time { seconds: 7, nanoseconds: 8 }, mode, kind: Kind::Link };
            let mut text = Vec::new();
            seen.put(&mut text);
            let words = &mut text.split(|byte| *byte == b' ');
            prop_assert_eq!(FileState::parse(words), Some(seen));
            prop_assert_eq!(words.next(), None);
            prop_assert_eq!(FileState::unpack(&FileState::pack(Some(&seen))), Some(seen));
            prop_assert_eq!(FileState::unpack(&FileState::pack(None)), None);
        }
    }

    #[test]
    fn a_directory_is_entered_only_where_it_and_all_above_it_are_directories() {
        let dir = tempfile::tempdir().unwrap();
        // Deeper than the number of directories held open.
        let levels: Vec<String> = (0..HELD + 20).map(|level| format!("d{level}")).collect();
        let deep = levels.join("/");
        std::fs::create_dir_all(dir.path().join(&deep)).unwrap();
        std::fs::create_dir_all(dir.path().join("d0/other")).unwrap();
        std::fs::write(dir.path().join("d0/file"), "12").unwrap();
        std::fs::write(dir.path().join(&deep).join("file"), "123").unwrap();
        std::os::unix::fs::symlink("d0", dir.path().join("link")).unwrap();
        let mut dirs = Dirs::below(std::fs::File::open(dir.path()).unwrap().into());
        let deep = deep.trim_end_matches('/');
        let middle = &deep[..deep.len() / 2];
        let middle = &middle[..middle.rfind('/').unwrap()];
        for _ in 0..2 {
            assert_eq!(dirs.look(format!("{deep}/file").as_bytes()).unwrap().size, 3);
            assert_eq!(dirs.look(b"d0/file").unwrap().size, 2);
            assert!(dirs.own(middle.as_bytes()) && dirs.own(b"d0/other") && dirs.own(b""));
            assert!(dirs.way.len() <= HELD);
            // A prefix of a name is a different name.
            for none in ["d", "d0/file", "link", "link/other", "d0/o", "d0/absent/d"] {
                assert!(!dirs.own(none.as_bytes()), "{none}");
                assert!(dirs.look(format!("{none}/file").as_bytes()).is_none(), "{none}");
            }
            assert_eq!(dirs.none(), Some(&b"d0/absent"[..]));
            assert_eq!(dirs.look(b"link").unwrap().kind, Kind::Link);
        }
    }
}
