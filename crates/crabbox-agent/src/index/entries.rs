//! Reads the entries of an index one at a time, because there may be hundreds of thousands.
//!
//! A length in the file is not trusted; it must never lead beyond the end of the file.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt as _;

use super::STAT;
use crate::bytes::BUFFER;

/// Bits of an entry's flags.
pub(super) const EXTENDED: u16 = 0x4000;
const LENGTH: u16 = 0x0fff;

/// The longest object id, in bytes.
const IDS: usize = 32;

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// The stat(2) data of the file.
    pub(super) stat: [u8; STAT],
    id: [u8; IDS],
    ids: usize,
    pub(super) flags: u16,
    /// The extended flags.
    pub(super) more: u16,
    pub(super) name: Vec<u8>,
}

/// A big-endian number of four bytes.
pub(super) fn number(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

impl Entry {
    pub(super) fn id(&self) -> &[u8] {
        &self.id[..self.ids]
    }

    pub(super) fn mode(&self) -> u32 {
        number(&self.stat, 24).unwrap_or(0)
    }

    /// When the file was modified, in unix seconds.
    pub(super) fn modified(&self) -> u32 {
        number(&self.stat, 8).unwrap_or(0)
    }

    /// Appends everything between the stat data and the end of the name.
    pub(super) fn words(&self, out: &mut Vec<u8>, flags: u16, more: u16) {
        out.extend_from_slice(self.id());
        out.extend_from_slice(&flags.to_be_bytes());
        if flags & EXTENDED != 0 {
            out.extend_from_slice(&more.to_be_bytes());
        }
        out.extend_from_slice(&self.name);
    }
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct Part<'f> {
    file: &'f File,
    at: u64,
    end: u64,
}

impl<'f> Part<'f> {
    pub(super) fn of(file: &'f File, at: u64, end: u64) -> Self {
        Self { file, at, end }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// The entries that were not read yet.
#[derive(Debug)]
pub(super) struct Entries<'f> {
    from: BufReader<Part<'f>>,
    left: u32,
    /// Where the next one begins.
    pub(super) at: u64,
    entry: Entry,
}

impl<'f> Entries<'f> {
    /// The first `count` entries between `at` and `end` of a file, for a repository whose object ids have
    /// `ids` bytes.
    pub(super) fn of(file: &'f File, (at, end): (u64, u64), count: u32, ids: usize) -> Self {
        Self {
            from: BufReader::with_capacity(BUFFER, Part::of(file, at, end)),
            left: count,
            at,
            entry: Entry {
                stat: [0; STAT],
                id: [0; IDS],
                ids,
                flags: 0,
                more: 0,
                name: Vec::new(),
            },
        }
    }

    /// The next entry.
    pub(super) fn entry(&mut self) -> Result<Option<&Entry>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        let (from, entry) = (&mut self.from, &mut self.entry);
        let mut two = [0; 2];
        from.read_exact(&mut entry.stat)?;
        from.read_exact(&mut entry.id[..entry.ids])?;
        from.read_exact(&mut two)?;
        entry.flags = u16::from_be_bytes(two);
        entry.more = 0;
        let mut length = STAT + entry.ids + 2;
        if entry.flags & EXTENDED != 0 {
            from.read_exact(&mut two)?;
            entry.more = u16::from_be_bytes(two);
            length += 2;
        }
        entry.name.clear();
        let mut padded = 0;
        if entry.flags & LENGTH < LENGTH {
            entry.name.resize(usize::from(entry.flags & LENGTH), 0);
            from.read_exact(&mut entry.name)?;
        } else {
            from.read_until(0, &mut entry.name)?;
            if entry.name.pop() != Some(0) {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
            padded = 1;
        }
        length += entry.name.len();
        // Names are padded with one to eight NULs.
        let padding = 8 - length % 8;
        from.read_exact(&mut [0; 8][padded..padding])?;
        self.at += (length + padding) as u64;
        self.left = left;
        Ok(Some(&self.entry))
    }
}
