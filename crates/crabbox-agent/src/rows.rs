//! The manifest as received: one record for each path the tree is to have, and the paths that are to be
//! absent.
//!
//! `<identity> <kind> <mode> <size> <mtime> <path>` records sorted by path, the record `-`, then the deleted
//! paths; NUL after each. It is kept in a file and read a block at a time: it must never be held in memory
//! whole, because there may be hundreds of thousands of records.

use std::fs::File;
use std::io::{BufRead, BufWriter, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::bytes::{BUFFER, Replacing};
use crate::failure::{At as _, Failure};
use crate::seen::{FileState, Kind, Time, time};

/// The number of records in a block.
const BLOCK: usize = 128;

/// The longest record, in bytes: no path of Linux is longer than 4096.
pub(crate) const RECORD: usize = 8192;

/// One file or link that the tree is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Identifies the content on the client, in hex; `0` if it does not.
    pub(crate) identity: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) modified: Time,
    pub(crate) path: &'a [u8],
}

impl<'a> Row<'a> {
    fn parse(record: &'a [u8]) -> Option<Self> {
        let mut words = record.splitn(6, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(words.next()?).ok();
        let identity = text()?.as_bytes();
        let kind = Kind::of(text()?.as_bytes())?;
        let mode = u32::from_str_radix(text()?, 8).ok()?;
        let size = text()?.parse().ok()?;
        let modified = time(text()?.as_bytes())?;
        let path = words.next().filter(|path| !path.is_empty())?;
        Some(Self {
            identity,
            kind,
            mode,
            size,
            modified,
            path,
        })
    }

    /// The path of a record that is known to be valid.
    fn path_of(record: &'a [u8]) -> &'a [u8] {
        record.splitn(6, |byte| *byte == b' ').nth(5).unwrap_or_default()
    }

    /// Whether what is there now matches this row.
    pub(crate) fn is(&self, now: &FileState) -> bool {
        let same_mode = self.kind != Kind::File || self.mode & 0o777 == now.mode & 0o777;
        // A file system with whole seconds drops the fraction.
        let same_time = self.modified == now.modified
            || (now.modified.nanoseconds == 0 && self.modified.seconds == now.modified.seconds);
        self.kind == now.kind && self.size == now.size && same_mode && same_time
    }
}

/// Where a block begins.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// The offset in the file.
    at: u64,
    /// The offset of its first path in [`Rows::heads`].
    head: u32,
}

/// The manifest.
#[derive(Debug)]
pub(crate) struct Rows {
    file: File,
    /// The path of the file, for messages.
    shown: PathBuf,
    starts: Vec<Start>,
    /// The first path of each block, concatenated.
    heads: Vec<u8>,
    /// Where the records end.
    end: u64,
    count: usize,
    /// The paths that are to be absent, NUL after each.
    pub(crate) gone: Vec<u8>,
    /// The block that was read last.
    block: Block,
}

/// The records of a block.
#[derive(Debug, Default)]
struct Block {
    number: Option<usize>,
    data: Vec<u8>,
    /// Where each record ends.
    ends: Vec<u32>,
}

impl Block {
    fn record(&self, place: usize) -> Option<&[u8]> {
        let at = |place: usize| usize::try_from(*self.ends.get(place)?).ok();
        let start = match place.checked_sub(1) {
            Some(before) => at(before)? + 1,
            None => 0,
        };
        self.data.get(start..at(place)?)
    }
}

/// A manifest being received into its file.
#[derive(Debug)]
pub(crate) struct Coming {
    rows: Rows,
    /// The beginning of a record that is still incomplete.
    rest: Vec<u8>,
    last: Vec<u8>,
    is_gone: bool,
}

impl Coming {
    /// Receives into an empty file; `shown` is its path for messages.
    pub(crate) fn into(file: File, shown: PathBuf) -> Self {
        Self {
            rows: Rows {
                file,
                shown,
                starts: Vec::new(),
                heads: Vec::new(),
                end: 0,
                count: 0,
                gone: Vec::new(),
                block: Block::default(),
            },
            rest: Vec::new(),
            last: Vec::new(),
            is_gone: false,
        }
    }

    /// Takes the next chunk.
    pub(crate) fn take(&mut self, mut piece: &[u8]) -> Result<(), Failure> {
        let whole = piece;
        while let Some(cut) = piece.iter().position(|byte| *byte == 0) {
            if self.rest.is_empty() {
                self.record(&piece[..cut])?;
            } else {
                let mut record = std::mem::take(&mut self.rest);
                record.extend_from_slice(&piece[..cut]);
                self.record(&record)?;
            }
            piece = &piece[cut + 1..];
        }
        self.rest.extend_from_slice(piece);
        if self.rest.len() > RECORD {
            return Err(strange(&self.rest));
        }
        (&self.rows.file).write_all(whole).at(&self.rows.shown)
    }

    fn record(&mut self, record: &[u8]) -> Result<(), Failure> {
        if self.is_gone {
            if !record.is_empty() {
                crate::bytes::push(&mut self.rows.gone, record);
            }
            return Ok(());
        }
        let rows = &mut self.rows;
        if record == b"-" {
            self.is_gone = true;
            return Ok(());
        }
        let row = Row::parse(record).filter(|_| record.len() <= RECORD);
        // Lookups rely on the order of the records.
        let row = row.filter(|row| rows.count == 0 || self.last.as_slice() < row.path);
        let row = row.ok_or_else(|| strange(record))?;
        if rows.count.is_multiple_of(BLOCK) {
            let head = u32::try_from(rows.heads.len())
                .map_err(|_| Failure::Refused("the manifest is too long".to_owned()))?;
            rows.starts.push(Start { at: rows.end, head });
            rows.heads.extend_from_slice(row.path);
        }
        self.last.clear();
        self.last.extend_from_slice(row.path);
        rows.count += 1;
        rows.end += record.len() as u64 + 1;
        if u32::try_from(rows.count).is_err() {
            return Err(Failure::Refused("the manifest is too long".to_owned()));
        }
        Ok(())
    }

    /// Ends the manifest.
    pub(crate) fn end(self) -> Result<Rows, Failure> {
        if self.rest.is_empty() {
            Ok(self.rows)
        } else {
            Err(strange(&self.rest))
        }
    }
}

fn strange(record: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(&record[..record.len().min(RECORD)]);
    Failure::Refused(format!(
        "the manifest has an invalid or misplaced record: {}",
        text.escape_debug()
    ))
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The row with this number, if there is one.
    pub(crate) fn get(&mut self, number: usize) -> Result<Option<Row<'_>>, Failure> {
        if number >= self.count {
            return Ok(None);
        }
        self.open(number / BLOCK)?;
        let row = self.block.record(number % BLOCK).and_then(Row::parse);
        row.ok_or_else(unread).map(Some)
    }

    /// The number of the row of a path.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<usize>, Failure> {
        let before = self.first_behind(path);
        let Some(number) = before.checked_sub(1) else {
            return Ok(None);
        };
        self.open(number)?;
        let records = 0..self.block.ends.len();
        let path_of = |place| Row::path_of(self.block.record(place).unwrap_or_default());
        let place = first(records, |place| path_of(place) >= path);
        let found = place < self.block.ends.len() && path_of(place) == path;
        Ok(found.then_some(number * BLOCK + place))
    }

    /// The first block that begins after a path.
    fn first_behind(&self, path: &[u8]) -> usize {
        let head = |number: usize| {
            let at = |number: usize| self.starts.get(number).map(|start| place(start.head));
            let end = at(number + 1).unwrap_or(self.heads.len());
            at(number)
                .and_then(|start| self.heads.get(start..end))
                .unwrap_or_default()
        };
        first(0..self.starts.len(), |number| head(number) > path)
    }

    /// Loads a block into [`Self::block`].
    fn open(&mut self, number: usize) -> Result<(), Failure> {
        if self.block.number == Some(number) {
            return Ok(());
        }
        let start = self.starts.get(number).ok_or_else(unread)?.at;
        let end = self.starts.get(number + 1).map_or(self.end, |next| next.at);
        self.block.number = None;
        let length = usize::try_from(end - start).map_err(|_| unread())?;
        self.block.data.resize(length, 0);
        match self.file.read_exact_at(&mut self.block.data, start) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(unread()),
            read => read.at(&self.shown)?,
        }
        self.block.ends.clear();
        let ends = (0_u32..).zip(&self.block.data).filter(|(_, byte)| **byte == 0);
        self.block.ends.extend(ends.map(|(end, _)| end));
        self.block.number = Some(number);
        Ok(())
    }

    /// Writes the whole manifest as it was received.
    pub(crate) fn copy(&self, to: &Replacing) -> Result<(), Failure> {
        let (mut at, mut chunk) = (0, vec![0; BUFFER]);
        loop {
            match self.file.read_at(&mut chunk, at).at(&self.shown)? {
                0 => return Ok(()),
                count => {
                    (&to.file).write_all(&chunk[..count]).at(&to.path)?;
                    at += count as u64;
                }
            }
        }
    }

    /// Writes the paths of all rows, NUL after each.
    pub(crate) fn put_paths(&mut self, to: &File, shown: &Path) -> Result<(), Failure> {
        let mut out = BufWriter::with_capacity(BUFFER, to);
        for number in 0..self.len() {
            let row = self.get(number)?.ok_or_else(unread)?;
            out.write_all(row.path).at(shown)?;
            out.write_all(b"\0").at(shown)?;
        }
        out.flush().at(shown)
    }
}

/// The error when a record cannot be read back from the file.
pub(crate) fn unread() -> Failure {
    Failure::Refused(
        "the manifest cannot be read again: its file in the lease is not what was written".to_owned(),
    )
}

/// Binary search: the first number for which `is_so` holds, which must then hold for all after it; the end of
/// the range if there is none.
fn first(numbers: std::ops::Range<usize>, is_so: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (numbers.start, numbers.end);
    while low < high {
        let middle = usize::midpoint(low, high);
        if is_so(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

fn place(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// Passes the paths of a manifest that an earlier sync left to `take`, as far as it is complete; `shown` is
/// its path for messages.
pub(crate) fn paths(
    from: impl BufRead,
    shown: &Path,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut records = crate::bytes::Records::of(from, RECORD);
    while let Some(record) = records.record().at(shown)? {
        if record == b"-" {
            break;
        }
        if let Some(row) = Row::parse(record) {
            take(row.path)?;
        }
    }
    Ok(())
}

/// Reads a manifest from bytes in memory.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn of_bytes(data: &[u8]) -> Result<Rows, Failure> {
    let file = rustix::fs::memfd_create("rows", rustix::fs::MemfdFlags::CLOEXEC).at(Path::new("rows"))?;
    let mut coming = Coming::into(file.into(), PathBuf::from("rows"));
    // In chunks that do not end with the records.
    for piece in data.chunks(7) {
        coming.take(piece)?;
    }
    coming.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_paths(data: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        paths(data, Path::new("pending"), |path| {
            all.push(path.to_vec());
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn a_manifest_is_read_found_in_and_refused_when_it_is_none() {
        let data = b"0 l 777 4 -1 b\x00a1 f 644 3 1700000000123456789 z y\x00-\x00old\x00older\x00";
        let mut rows = of_bytes(data).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (
                rows.find(b"b").unwrap(),
                rows.find(b"z y").unwrap(),
                rows.find(b"z").unwrap(),
                rows.find(b"a").unwrap()
            ),
            (Some(0), Some(1), None, None)
        );
        assert_eq!(
            rows.get(0).unwrap().unwrap().modified,
            Time {
                seconds: -1,
                nanoseconds: 999_999_999
            }
        );
        assert!(rows.get(2).unwrap().is_none());
        assert_eq!(rows.gone, b"old\0older\0");
        assert_eq!(all_paths(data), [b"b".to_vec(), b"z y".to_vec()]);
        for bad in [
            &b"a1 f 644 3 x y\x00"[..],
            b"a1 f 644 3\x00",
            b"a1 d 644 3 1 y\x00",
            b"a1 f 648 3 1 y\x00",
            b"a1 f 644 3 1 \x00",
        ] {
            assert!(of_bytes(bad).is_err(), "{bad:?}");
            assert!(all_paths(bad).is_empty());
        }
        // Out of order, twice, or cut.
        for bad in [
            &b"0 f 644 3 1 b\x000 f 644 3 1 a\x00"[..],
            b"0 f 644 3 1 b\x000 f 644 3 1 b\x00",
            b"0 f 644 3 1 a\x000 f 644 3 1 b",
        ] {
            assert!(of_bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_of_many_is_found_whatever_block_it_is_in() {
        use std::io::Write as _;
        for count in [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3] {
            let mut data = Vec::new();
            for number in 0..count {
                write!(
                    data,
                    "{number:x} f 644 {number} 1 d{:03}/f{number:05}\0",
                    number / 10
                )
                .unwrap();
            }
            let mut rows = of_bytes(&data).unwrap();
            assert_eq!(rows.len(), count);
            for number in (0..count).rev() {
                let path = format!("d{:03}/f{number:05}", number / 10);
                assert_eq!(rows.find(path.as_bytes()).unwrap(), Some(number));
                assert_eq!(rows.get(number).unwrap().unwrap().size, number as u64);
                assert_eq!(rows.find(format!("{path}x").as_bytes()).unwrap(), None);
            }
            assert!(
                rows.get(count).unwrap().is_none()
                    && rows.find(b"e").unwrap().is_none()
                    && rows.find(b"a").unwrap().is_none()
            );
        }
    }

    #[test]
    fn a_file_system_of_whole_seconds_cuts_a_time_and_nothing_else_does() {
        let mut rows = of_bytes(b"1 f 100644 3 5000000007 a\x00").unwrap();
        let row = rows.get(0).unwrap().unwrap();
        let at = |seconds, nanoseconds| FileState {
            size: 3,
            inode: 1,
            modified: Time { seconds, nanoseconds },
            changed: Time {
                seconds: 0,
                nanoseconds: 0,
            },
            mode: 0o644,
            kind: Kind::File,
        };
        assert!(row.is(&at(5, 7)) && row.is(&at(5, 0)));
        assert!(!row.is(&at(5, 8)) && !row.is(&at(6, 0)));
        assert!(
            !row.is(&FileState { size: 4, ..at(5, 7) })
                && !row.is(&FileState {
                    mode: 0o600,
                    ..at(5, 7)
                })
        );
    }

    #[test]
    fn a_file_that_fails_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("manifest");
        let said = |failure: Failure| failure.why();
        // Each of these files can only be written or only be read.
        let deaf = File::create(&at).unwrap();
        let mut coming = Coming::into(deaf, at.clone());
        coming.take(b"0 f 644 1 1 a\0").unwrap();
        let mut rows = coming.end().unwrap();
        let why = format!("{}: Bad file descriptor", at.display());
        assert_eq!(said(rows.get(0).unwrap_err()), why);
        let new = Replacing::begin(&dir.path().join("pending")).unwrap();
        assert_eq!(said(rows.copy(&new).unwrap_err()), why);
        let mut coming = Coming::into(File::open(&at).unwrap(), at.clone());
        assert_eq!(said(coming.take(b"0 f 644 1 1 a\0").unwrap_err()), why);
        // A truncated file causes no system error.
        let mut options = File::options();
        let file = options.read(true).write(true).open(&at).unwrap();
        let mut coming = Coming::into(file.try_clone().unwrap(), at);
        coming.take(b"0 f 644 1 1 a\0").unwrap();
        file.set_len(3).unwrap();
        let cut = coming.end().unwrap().get(0).unwrap_err();
        assert_eq!(said(cut), unread().why());
    }
}
