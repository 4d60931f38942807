//! The record of the last finished sync, split into parts so that an edit rewrites only the part it belongs
//! to.
//!
//! `index`: a header line, then the deleted paths. `rows.K`: `<identity> <what was seen> <path>` of the files
//! of some directories. An incomplete record must never pass for a complete one; without a record, everything
//! is compared again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bytes::{BUFFER, Records, Replacing, discard, listed, open, parent, push, read, write};
use crate::failure::{At as _, Failure};
use crate::seen::{Dirs, FileState, Kind};

/// The number of parts for a large tree.
pub(crate) const PARTS: u32 = 8;
/// With fewer files than this, more than one part would only mean more files to write.
pub(crate) const SMALL: usize = 4000;
/// More threads than this only contend in the kernel.
const THREADS: usize = 4;

/// Where a tree is, and where the metadata of its syncs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// `<workRoot>/<leaseID>`.
    pub(crate) lease: PathBuf,
    /// The name of the tree's directory in the lease.
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

    /// A metadata file.
    pub(crate) fn of(&self, leaf: impl AsRef<Path>) -> PathBuf {
        self.meta.join(leaf)
    }

    fn part(&self, part: u32) -> PathBuf {
        self.of(format!("rows.{part}"))
    }
}

/// Which part a path belongs to.
pub(crate) fn part_of(path: &[u8], parts: u32) -> u32 {
    crc32fast::hash(parent(path)) % parts.max(1)
}

/// The header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Fingerprint of the recorded sync; empty if that sync did not bring everything.
    pub(crate) fingerprint: String,
    pub(crate) parts: u32,
    /// How many files there are.
    pub(crate) count: usize,
    /// Paths that were to be absent, NUL after each.
    pub(crate) gone: Vec<u8>,
}

impl Head {
    /// The header of the record of `place`, if this version can read it.
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
            gone: gone[1..].to_vec(),
        })
    }

    pub(crate) fn write(&self, place: &Place) -> Result<(), Failure> {
        let Self {
            fingerprint,
            parts,
            count,
            gone,
        } = self;
        let line = format!(
            "{{\"version\": 3, \"fingerprint\": \"{fingerprint}\", \"parts\": {parts}, \"count\": {count}}}\n"
        );
        write(&place.of("index"), &[line.as_bytes(), gone])
    }
}

/// A file of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) identity: &'a [u8],
    pub(crate) seen: FileState,
    pub(crate) path: &'a [u8],
}

impl<'a> Known<'a> {
    fn parse(row: &'a [u8]) -> Option<Self> {
        let mut words = row.splitn(8, |byte| *byte == b' ');
        let identity = words.next()?;
        let seen = FileState::parse(&mut words)?;
        let path = words.next().filter(|path| !path.is_empty())?;
        Some(Self { identity, seen, path })
    }

    /// Appends its row.
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.identity);
        out.push(b' ');
        self.seen.put(out);
        out.push(b' ');
        push(out, self.path);
    }
}

/// A part being written.
#[derive(Debug)]
pub(crate) struct Writing {
    to: PathBuf,
    new: Replacing,
    /// Rows that are not in the file yet.
    waiting: Vec<u8>,
    /// The number of rows.
    pub(crate) count: usize,
}

impl Writing {
    pub(crate) fn begin(place: &Place, part: u32) -> Result<Self, Failure> {
        let to = place.part(part);
        Ok(Self {
            new: Replacing::begin(&to)?,
            to,
            waiting: Vec::new(),
            count: 0,
        })
    }

    pub(crate) fn put(&mut self, known: &Known<'_>) -> Result<(), Failure> {
        known.put(&mut self.waiting);
        self.count += 1;
        if self.waiting.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.new.file.write_all(&self.waiting).at(&self.new.path)?;
        self.waiting.clear();
        Ok(())
    }

    /// Moves the finished file into place.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.flush()?;
        self.new.put(&self.to)
    }
}

/// The longest row, in bytes: no path of Linux is longer than 4096.
const ROW: usize = 8192;

/// Passes the rows of a part to `take` until that returns false. The last row of a truncated file is dropped,
/// since it could name another path.
pub(crate) fn each_of(
    place: &Place,
    part: u32,
    mut take: impl FnMut(Known<'_>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let path = place.part(part);
    let Some(file) = open(&path)? else {
        return Ok(());
    };
    let mut rows = Records::of(file, ROW);
    while let Some(row) = rows.record().at(&path)? {
        if let Some(known) = Known::parse(row)
            && !take(known)?
        {
            break;
        }
    }
    Ok(())
}

/// Passes every file of a record to `take`, even of a record that a sync was about to replace: each row is
/// valid or not by itself.
pub(crate) fn each(
    place: &Place,
    head: Option<&Head>,
    mut take: impl FnMut(Known<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for part in 0..head.map_or(0, |head| head.parts) {
        each_of(place, part, |known| take(known).map(|()| true))?;
    }
    Ok(())
}

/// Removes a part.
pub(crate) fn discard_part(place: &Place, part: u32) -> Result<(), Failure> {
    discard(&place.part(part))
}

/// A part loaded for lookups: its bytes, and where its rows start, ordered by path.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) number: u32,
    data: Vec<u8>,
    starts: Vec<u32>,
}

impl Part {
    pub(crate) fn load(place: &Place, number: u32) -> Result<Self, Failure> {
        let mut data = read(&place.part(number))?;
        // The last row of a truncated file could name another path.
        data.truncate(data.iter().rposition(|byte| *byte == 0).unwrap_or(0));
        let (mut starts, mut at) = (Vec::new(), 0);
        for row in data.split(|byte| *byte == 0) {
            // A row beyond 4 GiB is left out, so its file counts as unknown.
            if let (Some(_), Ok(start)) = (Known::parse(row), u32::try_from(at)) {
                starts.push(start);
            }
            at += row.len() + 1;
        }
        let mut part = Self {
            number,
            data,
            starts: Vec::new(),
        };
        let path = |start: &u32| part.known(*start).map(|known| known.path);
        if !starts.is_sorted_by_key(path) {
            starts.sort_by(|a, b| path(a).cmp(&path(b)));
        }
        part.starts = starts;
        Ok(part)
    }

    fn known(&self, start: u32) -> Option<Known<'_>> {
        let tail = self.data.get(usize::try_from(start).ok()?..)?;
        Known::parse(listed(tail).next()?)
    }

    /// What was seen at a path.
    pub(crate) fn seen(&self, path: &[u8]) -> Option<FileState> {
        let order = |start: &u32| self.known(*start).map_or(&[][..], |known| known.path).cmp(path);
        let place = self.starts.binary_search_by(order).ok()?;
        self.known(self.starts[place]).map(|known| known.seen)
    }
}

/// Parses these bytes as a header and as a part.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: &[u8]) {
    Head::parse(bytes);
    let mut rows = Records::of(bytes, ROW);
    while let Ok(Some(row)) = rows.record() {
        Known::parse(row);
    }
}

/// Whether every file of the record is unchanged, and every path that was absent still is. The workdir must
/// be the current directory.
pub(crate) fn is_unchanged(place: &Place, head: &Head) -> bool {
    let mut dirs = Dirs::default();
    let back = |path: &[u8]| dirs.look(path).is_some_and(|now| now.kind != Kind::Other);
    if listed(&head.gone).any(back) {
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
            let read = each_of(place, part, |known| {
                if differs.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                if dirs.look(known.path) != Some(known.seen) {
                    differs.store(true, Ordering::Relaxed);
                }
                count += 1;
                Ok(true)
            });
            if read.is_err() {
                differs.store(true, Ordering::Relaxed);
            }
            if differs.load(Ordering::Relaxed) {
                return count;
            }
        }
    };
    let count: usize = if threads == 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            // A panic aborts the agent; where it does not, the count of 0 makes the record not match.
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
            gone: b"a b\0c\0".to_vec(),
        };
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().to_str().unwrap(), "w");
        std::fs::create_dir_all(&place.meta).unwrap();
        head.write(&place).unwrap();
        assert_eq!(Head::load(&place), Some(head));
        let empty = b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 1, \"count\": 0}\n";
        assert!(Head::parse(empty).is_some());
        for bad in [
            &b""[..],
            b"\n",
            b"{}\n",
            &empty[..20],
            b"{\"version\": 2, \"fingerprint\": \"\", \"parts\": 1, \"count\": 0}\n",
            b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 0, \"count\": 0}\n",
            b"{\"version\": 3, \"fingerprint\": \"\", \"parts\": 99, \"count\": 0}\n",
        ] {
            assert_eq!(Head::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_row_that_was_cut_is_none_and_the_others_are_found_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().to_str().unwrap(), "w");
        std::fs::create_dir_all(&place.meta).unwrap();
        let row = |path: &str| format!("1 f 644 3 5 6 7 {path}");
        for paths in [["a", "a b", "c"], ["c", "a", "a b"]] {
            let text = paths.map(row).join("\0");
            std::fs::write(place.part(1), format!("{text}\0no row\0{}", row("cut"))).unwrap();
            let mut found = Vec::new();
            each_of(&place, 1, |known| {
                found.push(known.path.to_vec());
                Ok(found.len() < 3)
            })
            .unwrap();
            assert_eq!(found, paths.map(|path| path.as_bytes().to_vec()));
            let part = Part::load(&place, 1).unwrap();
            assert!(paths.iter().all(|path| part.seen(path.as_bytes()).is_some()));
            assert!(part.seen(b"cut").is_none() && part.seen(b"b").is_none());
        }
        let written = Known {
            identity: b"ff",
            seen: Part::load(&place, 1).unwrap().seen(b"a").unwrap(),
            path: b"new",
        };
        let mut new = Writing::begin(&place, 1).unwrap();
        new.put(&written).unwrap();
        // Until the new part is complete, the old one stays in place.
        assert!(Part::load(&place, 1).unwrap().seen(b"a").is_some());
        new.end().unwrap();
        let part = Part::load(&place, 1).unwrap();
        assert_eq!((part.seen(b"new"), part.seen(b"a")), (Some(written.seen), None));
    }
}
