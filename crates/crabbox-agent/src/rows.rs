//! The manifest as it came: what the tree is to be, a record each, and what is to be absent.
//!
//! `<identity> <kind> <mode> <size> <mtime> <path>` records, the record `-`, then the deleted paths; NUL after each. It is kept as the bytes that
//! came, because there may be hundreds of thousands.

use crate::bytes::listed;
use crate::failure::Failure;
use crate::seen::{Kind, Seen, Time, time};

/// One file or link that the tree is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Stands for the content on the other side, hex; `0` when it does not.
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

    /// Whether what is there now is what was to be sent.
    pub(crate) fn is(&self, now: &Seen) -> bool {
        let same_mode = self.kind != Kind::File || self.mode & 0o777 == now.mode & 0o777;
        // A file system that keeps whole seconds cuts the rest.
        let same_time = self.modified == now.modified
            || (now.modified.nanoseconds == 0 && self.modified.seconds == now.modified.seconds);
        self.kind == now.kind && self.size == now.size && same_mode && same_time
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) data: Vec<u8>,
    /// Where each record begins.
    starts: Vec<u32>,
    /// The numbers of the records in the order of their paths.
    order: Vec<u32>,
    /// What is to be absent.
    pub(crate) gone: Vec<Vec<u8>>,
}

impl Rows {
    /// Reads a manifest.
    pub(crate) fn parse(data: Vec<u8>) -> Result<Self, Failure> {
        let strange = |record: &[u8]| {
            let text = String::from_utf8_lossy(record);
            Failure::Refused(format!(
                "the manifest has a record that is none: {}",
                text.escape_debug()
            ))
        };
        let (mut starts, mut gone, mut at, mut is_gone) = (Vec::new(), Vec::new(), 0, false);
        for record in data.split(|byte| *byte == 0) {
            let start = at;
            at += record.len() + 1;
            match record {
                b"" => {}
                b"-" if !is_gone => is_gone = true,
                path if is_gone => gone.push(path.to_vec()),
                record if Row::parse(record).is_some() => {
                    starts.push(
                        u32::try_from(start)
                            .map_err(|_| Failure::Refused("the manifest is too long".to_owned()))?,
                    );
                }
                record => return Err(strange(record)),
            }
        }
        let mut rows = Self {
            order: (0..u32::try_from(starts.len()).unwrap_or(u32::MAX)).collect(),
            data,
            starts,
            gone,
        };
        let mut order = std::mem::take(&mut rows.order);
        order.sort_by(|a, b| rows.path(*a).cmp(rows.path(*b)));
        rows.order = order;
        Ok(rows)
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The one with this number, if there is one.
    pub(crate) fn get(&self, number: usize) -> Option<Row<'_>> {
        let start = usize::try_from(*self.starts.get(number)?).ok()?;
        let record = self.data.get(start..)?.split(|byte| *byte == 0).next()?;
        Row::parse(record)
    }

    /// All of them, in the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).filter_map(|number| self.get(number))
    }

    fn path(&self, number: u32) -> &[u8] {
        let row = usize::try_from(number).ok().and_then(|number| self.get(number));
        row.map_or(&[], |row| row.path)
    }

    /// The number of the record of a path.
    pub(crate) fn find(&self, path: &[u8]) -> Option<usize> {
        let place = self
            .order
            .binary_search_by(|number| self.path(*number).cmp(path))
            .ok()?;
        usize::try_from(self.order[place]).ok()
    }
}

/// The paths of a manifest that an earlier sync left, however much of it is whole.
pub(crate) fn paths(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    listed(data)
        .take_while(|record| *record != b"-")
        .filter_map(Row::parse)
        .map(|row| row.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_found_in_and_refused_when_it_is_none() {
        let data = b"a1 f 644 3 1700000000123456789 z y\x000 l 777 4 -1 b\x00-\x00old\x00older\x00".to_vec();
        let rows = Rows::parse(data).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows.find(b"b"), rows.find(b"z y"), rows.find(b"z")),
            (Some(1), Some(0), None)
        );
        assert_eq!(
            rows.get(1).unwrap().modified,
            Time {
                seconds: -1,
                nanoseconds: 999_999_999
            }
        );
        assert_eq!(rows.gone, [b"old".to_vec(), b"older".to_vec()]);
        for bad in [
            &b"a1 f 644 3 x y\x00"[..],
            b"a1 f 644 3\x00",
            b"a1 d 644 3 1 y\x00",
            b"a1 f 648 3 1 y\x00",
            b"a1 f 644 3 1 \x00",
        ] {
            assert!(Rows::parse(bad.to_vec()).is_err(), "{bad:?}");
            assert_eq!(paths(bad).count(), 0);
        }
    }

    #[test]
    fn a_file_system_of_whole_seconds_cuts_a_time_and_nothing_else_does() {
        let rows = Rows::parse(b"1 f 100644 3 5000000007 a\x00".to_vec()).unwrap();
        let row = rows.get(0).unwrap();
        let at = |seconds, nanoseconds| Seen {
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
            !row.is(&Seen { size: 4, ..at(5, 7) })
                && !row.is(&Seen {
                    mode: 0o600,
                    ..at(5, 7)
                })
        );
    }
}
