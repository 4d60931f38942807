//! A sync with the whole manifest.
//!
//! It must never leave a path alone unless the record matches it on both sides.

use std::sync::Arc;

use crabbox_agent_protocol::SyncRequest;

use super::lost::Deletions;
use super::{PendingChanges, Way, any_named, drop_go_fingerprint, each_of_go, settle, tell_go};
use crate::bytes::{listed, open};
use crate::failure::Failure;
use crate::index::Tree;
use crate::names::Names;
use crate::record::{Head, Known, PARTS, Place, SMALL, Writing, discard_part, each, part_of};
use crate::remove::make_way;
use crate::rows::{Rows, paths, unread};
use crate::seen::{Dirs, FileState};
use crate::sights::ScanResults;

#[derive(Debug)]
pub(super) struct Whole<'a> {
    place: &'a Place,
    rows: Rows,
    /// First, what was seen of each path that is left alone; later, of every path that is as requested.
    now: ScanResults,
    stale: Vec<u32>,
    unlike: Arc<Names>,
}

impl<'a> Whole<'a> {
    pub(super) fn begin(
        place: &'a Place,
        request: &SyncRequest,
        mut rows: Rows,
        unlike: Names,
    ) -> Result<Self, Failure> {
        let head = Head::load(place);
        let lost = lost(place, head.as_ref(), &mut rows)?;
        drop_go_fingerprint(place)?;
        let mut gone = Vec::new();
        for path in listed(&std::mem::take(&mut rows.gone)) {
            if rows.find(path)?.is_none() {
                crate::bytes::push(&mut gone, path);
            }
        }
        lost.prune(request, &gone, &rows)?;
        rows.gone = gone;
        let (mut dirs, mut now) = (Dirs::default(), ScanResults::new(&place.of("tmp/kept"))?);
        let mut kept = vec![0_u64; rows.len().div_ceil(64)];
        each(place, head.as_ref().filter(|_| !request.distrust), |known| {
            let Some(number) = rows.find(known.path)? else {
                return Ok(());
            };
            let row = rows.get(number)?.ok_or_else(unread)?;
            let is_fresh = row.identity == known.identity && row.identity != b"0";
            if is_fresh && dirs.look(known.path) == Some(known.seen) {
                now.put(number, Some(&known.seen))?;
                kept[number / 64] |= 1 << (number % 64);
            }
            Ok(())
        })?;
        let is_stale = |number: &u32| {
            let number = usize::try_from(*number).unwrap_or(0);
            kept[number / 64] & (1 << (number % 64)) == 0
        };
        let all = 0..u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let stale: Vec<u32> = all.filter(is_stale).collect();
        make_way(&mut rows, &stale)?;
        Ok(Self {
            place,
            now,
            stale,
            unlike: Arc::new(unlike),
            rows,
        })
    }
}

/// The paths that earlier syncs brought and that are no longer in the manifest.
fn lost<'a>(place: &'a Place, head: Option<&Head>, rows: &mut Rows) -> Result<Deletions<'a>, Failure> {
    let (mut lost, mut has_ours) = (Deletions::begin(place)?, false);
    let mut see = |path: &[u8]| match rows.find(path)? {
        Some(_) => Ok(()),
        None => lost.put(path),
    };
    each(place, head, |known| {
        has_ours = true;
        see(known.path)
    })?;
    let pending = place.of("pending");
    if let Some(from) = open(&pending)? {
        paths(from, &pending, |path| {
            has_ours = true;
            see(path)
        })?;
    }
    if !has_ours {
        each_of_go(place, see)?;
    }
    Ok(lost)
}

impl Tree for Whole<'_> {
    fn unlike(&self) -> Arc<Names> {
        Arc::clone(&self.unlike)
    }

    fn sends(&mut self, path: &[u8]) -> Result<bool, Failure> {
        let number = self
            .rows
            .find(path)?
            .and_then(|number| u32::try_from(number).ok());
        Ok(number.is_some_and(|number| self.stale.binary_search(&number).is_ok()))
    }

    fn any_sent(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Failure> {
        any_named(&mut self.rows, &self.stale, take)
    }

    fn known(&mut self, path: &[u8]) -> Result<Option<FileState>, Failure> {
        match self.rows.find(path)? {
            Some(number) => self.now.get(number),
            None => Ok(None),
        }
    }
}

impl Way for Whole<'_> {
    fn rows(&mut self) -> &mut Rows {
        &mut self.rows
    }

    fn stale(&self) -> &[u32] {
        &self.stale
    }

    fn lay(&mut self) -> Result<PendingChanges, Failure> {
        self.now = settle(self.place, &mut self.rows, Some(&mut self.now))?;
        let parts = if self.rows.len() > SMALL { PARTS } else { 1 };
        let mut writing: Vec<Writing> = (0..parts)
            .map(|part| Writing::begin(self.place, part))
            .collect::<Result<_, _>>()?;
        for number in 0..self.rows.len() {
            let row = self.rows.get(number)?.ok_or_else(unread)?;
            let part = usize::try_from(part_of(row.path, parts)).ok();
            if let (Some(seen), Some(writing)) =
                (self.now.get(number)?, part.and_then(|part| writing.get_mut(part)))
            {
                writing.put(&Known {
                    identity: row.identity,
                    seen,
                    path: row.path,
                })?;
            }
        }
        let count = writing.iter().map(|writing| writing.count).sum();
        writing.into_iter().try_for_each(Writing::end)?;
        for part in parts..PARTS {
            discard_part(self.place, part)?;
        }
        Ok(PendingChanges {
            parts,
            count,
            unsettled: (self.rows.len() - count) as u64,
        })
    }

    fn tell(&mut self) -> Result<(), Failure> {
        tell_go(self.place, |file, path| self.rows.put_paths(file, path))
    }
}
