//! A sync that sends only what changed since the last one, for a tree that is still as that one left it.
//!
//! It must never begin unless the whole tree was checked.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;

use crabbox_agent_protocol::SyncRequest;

use super::lost::Deletions;
use super::{PendingChanges, Way, any_named, drop_go_fingerprint, settle, tell_go};
use crate::failure::{At as _, Failure};
use crate::index::Tree;
use crate::names::Names;
use crate::record::{Head, Known, Part, Place, Writing, each_of, part_of};
use crate::remove::make_way;
use crate::rows::{Rows, unread};
use crate::seen::FileState;
use crate::sights::ScanResults;

#[derive(Debug)]
pub(super) struct Patch<'a> {
    place: &'a Place,
    rows: Rows,
    /// What was seen of the rows after everything had arrived.
    now: Option<ScanResults>,
    stale: Vec<u32>,
    removed: Names,
    unlike: Arc<Names>,
    parts: u32,
    count: usize,
    /// Parts of the record that this sync rewrites.
    touched: BTreeSet<u32>,
    /// The part that was last loaded for a lookup.
    asked: Option<Part>,
    /// Whether the set of paths has changed.
    has_moved: bool,
}

impl<'a> Patch<'a> {
    pub(super) fn begin(
        place: &'a Place,
        request: &SyncRequest,
        head: &Head,
        mut rows: Rows,
        removed: Names,
        unlike: Names,
    ) -> Result<Self, Failure> {
        let parts = head.parts;
        let mut touched: BTreeSet<u32> = removed.iter().map(|path| part_of(path, parts)).collect();
        for number in 0..rows.len() {
            let row = rows.get(number)?.ok_or_else(unread)?;
            touched.insert(part_of(row.path, parts));
        }
        drop_go_fingerprint(place)?;
        let mut lost = Deletions::begin(place)?;
        removed.iter().try_for_each(|path| lost.put(path))?;
        lost.prune(request, &rows.gone, &rows)?;
        let stale: Vec<u32> = (0..u32::try_from(rows.len()).unwrap_or(u32::MAX)).collect();
        make_way(&mut rows, &stale)?;
        Ok(Self {
            place,
            now: None,
            stale,
            removed,
            unlike: Arc::new(unlike),
            parts,
            count: head.count,
            touched,
            asked: None,
            has_moved: false,
            rows,
        })
    }

    /// Rewrites a part: the rows of unaffected paths, and what was seen of those that arrived.
    fn write(&mut self, part: u32, now: &mut ScanResults) -> Result<(), Failure> {
        let (parts, rows, removed) = (self.parts, &mut self.rows, &self.removed);
        let mut writing = Writing::begin(self.place, part)?;
        let (mut next, mut before, mut replaced, mut came) = (0, 0_usize, 0_usize, 0_usize);
        // Rows that arrived are inserted in the order of their paths.
        let mut put_until =
            |path: Option<&[u8]>, writing: &mut Writing, rows: &mut Rows| -> Result<(), Failure> {
                while let Some(row) = rows.get(next)? {
                    if path.is_some_and(|path| row.path > path) {
                        break;
                    }
                    if part_of(row.path, parts) == part {
                        came += 1;
                        if let Some(seen) = now.get(next)? {
                            writing.put(&Known {
                                identity: row.identity,
                                seen,
                                path: row.path,
                            })?;
                        }
                    }
                    next += 1;
                }
                Ok(())
            };
        each_of(self.place, part, |known| {
            before += 1;
            if rows.find(known.path)?.is_some() {
                replaced += 1;
            } else if !removed.contains(known.path) {
                put_until(Some(known.path), &mut writing, rows)?;
                writing.put(&known)?;
            }
            Ok(true)
        })?;
        put_until(None, &mut writing, rows)?;
        self.has_moved |= came > replaced;
        self.count = self.count.saturating_sub(before) + writing.count;
        writing.end()
    }
}

impl Tree for Patch<'_> {
    fn unlike(&self) -> Arc<Names> {
        Arc::clone(&self.unlike)
    }

    fn sends(&mut self, path: &[u8]) -> Result<bool, Failure> {
        self.rows.find(path).map(|found| found.is_some())
    }

    fn any_sent(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Failure> {
        any_named(&mut self.rows, &self.stale, take)
    }

    fn known(&mut self, path: &[u8]) -> Result<Option<FileState>, Failure> {
        if let Some(number) = self.rows.find(path)? {
            return match &mut self.now {
                Some(now) => now.get(number),
                None => Ok(None),
            };
        }
        let number = part_of(path, self.parts);
        let asked = self.asked.take().filter(|part| part.number == number);
        let part = match asked {
            Some(part) => part,
            None => Part::load(self.place, number)?,
        };
        Ok(self.asked.insert(part).seen(path))
    }
}

impl Way for Patch<'_> {
    fn rows(&mut self) -> &mut Rows {
        &mut self.rows
    }

    fn stale(&self) -> &[u32] {
        &self.stale
    }

    fn lay(&mut self) -> Result<PendingChanges, Failure> {
        let mut now = settle(self.place, &mut self.rows, None)?;
        self.has_moved = !self.removed.is_empty();
        let mut unsettled = 0;
        for number in 0..self.rows.len() {
            unsettled += u64::from(now.get(number)?.is_none());
        }
        for part in self.touched.clone() {
            self.write(part, &mut now)?;
        }
        self.asked = None;
        self.now = Some(now);
        Ok(PendingChanges {
            parts: self.parts,
            count: self.count,
            unsettled,
        })
    }

    fn tell(&mut self) -> Result<(), Failure> {
        if !self.has_moved {
            return Ok(());
        }
        tell_go(self.place, |file, path| {
            let mut out = std::io::BufWriter::with_capacity(crate::bytes::BUFFER, file);
            // The Go program reads the paths as a set, so their order does not matter.
            for part in 0..self.parts {
                each_of(self.place, part, |known| {
                    let written = out.write_all(known.path).and_then(|()| out.write_all(b"\0"));
                    written.at(path).map(|()| true)
                })?;
            }
            out.flush().at(path)
        })
    }
}
