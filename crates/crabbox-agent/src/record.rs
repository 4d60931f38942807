//! The record of the last finished sync, in parts, so that an edit is written down by looking at its part only.
//!
//! `index`: a line with what it is a record of, then the deleted paths. `rows.K`: `<identity> <what was seen> <path>` of the files of some
//! directories. A record that is not whole must never pass for one: then everything is compared anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bytes::{discard, listed, parent, push, read, write};
use crate::failure::Failure;
use crate::seen::{Dirs, Kind, Seen};

/// How many parts a large tree has.
pub(crate) const PARTS: u32 = 8;
/// Files below which parts would only be more files to write.
pub(crate) const SMALL: usize = 4000;
/// More threads than this only wait for each other in the kernel.
const THREADS: usize = 4;

/// Where a tree is, and where what is known of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// `<workRoot>/<leaseID>`.
    pub(crate) lease: PathBuf,
    /// The directory in it.
    pub(crate) name: String,
    pub(crate) workdir: PathBuf,
    pub(crate) meta: PathBuf,
}

impl Place {
    pub(crate) fn new(lease: &str, name: &str) -> Self {
        let lease = PathBuf::from(lease);
        Self {
            workdir: lease.join(name),
            meta: lease.join(".crabbox-sync").join(name),
            name: name.to_owned(),
            lease,
        }
    }

    /// A file of what is known.
    pub(crate) fn of(&self, leaf: impl AsRef<Path>) -> PathBuf {
        self.meta.join(leaf)
    }

    fn part(&self, part: u32) -> PathBuf {
        self.of(format!("rows.{part}"))
    }

    /// Removes what an earlier version of this program knew besides, of which no one may believe that it is still true.
    pub(crate) fn drop_older(&self) -> Result<(), Failure> {
        if !self.of("stamp").exists() {
            return Ok(());
        }
        for leaf in ["stamp", "hashes", "own", "ways", "paths.heads"] {
            discard(&self.of(leaf))?;
        }
        for part in 0..PARTS {
            discard(&self.of(format!("paths.{part}")))?;
        }
        Ok(())
    }
}

/// Which part a path belongs to.
pub(crate) fn part_of(path: &[u8], parts: u32) -> u32 {
    crc32fast::hash(parent(path)) % parts.max(1)
}

/// What a record is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the sync that it is of; empty when that did not bring everything.
    pub(crate) fingerprint: String,
    pub(crate) parts: u32,
    /// How many files there are.
    pub(crate) count: usize,
    /// What was absent.
    pub(crate) gone: Vec<Vec<u8>>,
}

impl Head {
    /// The one of `place`, if there is one that this version can read.
    pub(crate) fn load(place: &Place) -> Option<Self> {
        Self::parse(&read(&place.of("index")).ok()?)
    }

    /// `{"version": 3, "fingerprint": "…", "parts": 8, "count": 12}`, a new line, the paths.
    fn parse(data: &[u8]) -> Option<Self> {
        let cut = data.iter().position(|byte| *byte == b'\n')?;
        let (line, gone) = data.split_at(cut);
        let line = std::str::from_utf8(line).ok()?;
        let rest = line.strip_prefix(r#"{"version": 3, "fingerprint": ""#)?;
        let (fingerprint, rest) = rest.split_once(r#"", "parts": "#)?;
        let (parts, rest) = rest.split_once(r#", "count": "#)?;
        let parts = parts.parse().ok().filter(|parts| (1..=PARTS).contains(parts))?;
        let hex = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
        Some(Self {
            fingerprint: fingerprint.bytes().all(hex).then(|| fingerprint.to_owned())?,
            parts,
            count: rest.strip_suffix('}')?.parse().ok()?,
            gone: listed(&gone[1..]).map(<[u8]>::to_vec).collect(),
        })
    }

    pub(crate) fn write(&self, place: &Place) -> Result<(), Failure> {
        let Self {
            fingerprint,
            parts,
            count,
            gone,
        } = self;
        let mut data = format!(
            "{{\"version\": 3, \"fingerprint\": \"{fingerprint}\", \"parts\": {parts}, \"count\": {count}}}\n"
        )
        .into_bytes();
        for path in gone {
            push(&mut data, path);
        }
        write(&place.of("index"), &[&data])
    }
}

/// One file of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) identity: &'a [u8],
    pub(crate) seen: Seen,
    pub(crate) path: &'a [u8],
}

impl<'a> Known<'a> {
    fn parse(row: &'a [u8]) -> Option<Self> {
        let mut words = row.splitn(8, |byte| *byte == b' ');
        let identity = words.next()?;
        let seen = Seen::parse(&mut words)?;
        let path = words.next().filter(|path| !path.is_empty())?;
        Some(Self { identity, seen, path })
    }

    /// Appends its row.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.identity);
        out.push(b' ');
        self.seen.put(out);
        out.push(b' ');
        push(out, self.path);
    }
}

/// One part of a record.
#[derive(Debug)]
pub(crate) struct Part(Vec<u8>);

impl Part {
    pub(crate) fn load(place: &Place, part: u32) -> Result<Self, Failure> {
        read(&place.part(part)).map(Self)
    }

    /// Its rows. The last one of a file that was cut would name another path.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known<'_>> {
        let whole = self.0.iter().rposition(|byte| *byte == 0).unwrap_or(0);
        listed(&self.0[..whole]).filter_map(Known::parse)
    }

    pub(crate) fn write(place: &Place, part: u32, rows: &[u8]) -> Result<(), Failure> {
        write(&place.part(part), &[rows])
    }

    pub(crate) fn discard(place: &Place, part: u32) -> Result<(), Failure> {
        discard(&place.part(part))
    }
}

/// Reads these bytes as a head and as a part.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: &[u8]) {
    Head::parse(bytes);
    Part(bytes.to_vec()).known().for_each(drop);
}

/// Gives every file of a record to `take`, also of one that a sync was about to replace: what it says of a file is true or is not, whatever
/// became of the others.
pub(crate) fn each(
    place: &Place,
    head: Option<&Head>,
    mut take: impl FnMut(Known<'_>),
) -> Result<(), Failure> {
    for part in 0..head.map_or(0, |head| head.parts) {
        Part::load(place, part)?.known().for_each(&mut take);
    }
    Ok(())
}

/// Whether every file of the record is as it was seen, and what was absent still is. The workdir is the current directory.
pub(crate) fn is_unchanged(place: &Place, head: &Head) -> bool {
    let mut dirs = Dirs::default();
    let back = |path: &Vec<u8>| dirs.look(path).is_some_and(|now| now.kind != Kind::Other);
    if head.gone.iter().any(back) {
        return false;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if head.count > SMALL { cores.min(THREADS) } else { 1 };
    let (next, differs) = (std::sync::atomic::AtomicU32::new(0), AtomicBool::new(false));
    let work = || {
        let (mut dirs, mut count) = (Dirs::default(), 0);
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= head.parts {
                return count;
            }
            let Ok(loaded) = Part::load(place, part) else {
                differs.store(true, Ordering::Relaxed);
                return count;
            };
            for known in loaded.known() {
                if differs.load(Ordering::Relaxed) {
                    return count;
                }
                if dirs.look(known.path) != Some(known.seen) {
                    differs.store(true, Ordering::Relaxed);
                }
                count += 1;
            }
        }
    };
    let count: usize = if threads == 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            // A thread of ours that panicked has ended the process.
            started.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        })
    };
    !differs.into_inner() && count == head.count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_again_and_one_that_was_damaged_is_none() {
        let head = Head {
            fingerprint: "ab.12.ff".to_owned(),
            parts: 8,
            count: 12,
            gone: vec![b"a b".to_vec(), b"c".to_vec()],
        };
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().to_str().unwrap(), "w");
        std::fs::create_dir_all(&place.meta).unwrap();
        head.write(&place).unwrap();
        assert_eq!(Head::load(&place), Some(head));
        // As the versions before this one wrote it, in Python.
        let older = b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 1, \"count\": 0}\n";
        assert!(Head::parse(older).is_some());
        for bad in [
            &b""[..],
            b"\n",
            b"{}\n",
            &older[..20],
            b"{\"version\": 2, \"fingerprint\": \"\", \"parts\": 1, \"count\": 0}\n",
            b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 0, \"count\": 0}\n",
            b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 99, \"count\": 0}\n",
        ] {
            assert_eq!(Head::parse(bad), None, "{bad:?}");
        }
    }
}
