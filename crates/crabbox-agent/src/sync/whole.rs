//! A sync by the whole manifest.
//!
//! It must never leave a path alone that is not, on both sides, what the record says.

use std::collections::HashSet;

use crabbox_agent_protocol::SyncRequest;

use super::{Laid, Way, drop_go_fingerprint, go_manifest, named, prune_all, settle, tell_go};
use crate::bytes::{listed, read};
use crate::failure::Failure;
use crate::index::Tree;
use crate::record::{Head, Known, PARTS, Part, Place, SMALL, each, part_of};
use crate::remove::make_way;
use crate::rows::{Rows, paths};
use crate::seen::{Dirs, Seen};

#[derive(Debug)]
pub(super) struct Whole<'a> {
    place: &'a Place,
    rows: Rows,
    /// By place: what was seen of a path that is left alone; later, of every path that is as it was to be.
    now: Vec<Option<Seen>>,
    stale: Vec<u32>,
    unlike: HashSet<Vec<u8>>,
}

impl<'a> Whole<'a> {
    pub(super) fn begin(
        place: &'a Place,
        request: &SyncRequest,
        data: Vec<u8>,
        unlike: &[u8],
    ) -> Result<Self, Failure> {
        let rows = Rows::parse(data)?;
        let head = Head::load(place);
        let (mut lost, mut has_ours) = (Vec::new(), false);
        each(place, head.as_ref(), |known| {
            has_ours = true;
            if rows.find(known.path).is_none() {
                lost.push(known.path.to_vec());
            }
        })?;
        let pending = read(&place.of("pending"))?;
        for path in paths(&pending) {
            has_ours = true;
            if rows.find(path).is_none() {
                lost.push(path.to_vec());
            }
        }
        if !has_ours {
            let theirs = go_manifest(place)?;
            lost.extend(
                listed(&theirs)
                    .filter(|path| rows.find(path).is_none())
                    .map(<[u8]>::to_vec),
            );
        }
        lost.sort_unstable();
        lost.dedup();
        drop_go_fingerprint(place)?;
        let gone: Vec<&[u8]> = rows
            .gone
            .iter()
            .map(Vec::as_slice)
            .filter(|path| rows.find(path).is_none())
            .collect();
        prune_all(place, request, &lost, &gone, &rows.data)?;
        let (mut dirs, mut now) = (Dirs::default(), vec![None; rows.len()]);
        each(place, head.as_ref().filter(|_| !request.distrust), |known| {
            let found = rows.find(known.path);
            let row = found.and_then(|number| rows.get(number));
            let is_fresh = row.is_some_and(|row| row.identity == known.identity && row.identity != b"0");
            if let Some(number) = found.filter(|_| is_fresh)
                && dirs.look(known.path) == Some(known.seen)
            {
                now[number] = Some(known.seen);
            }
        })?;
        let stale = (0_u32..)
            .zip(&now)
            .filter(|(_, seen)| seen.is_none())
            .map(|(number, _)| number);
        let stale: Vec<u32> = stale.collect();
        make_way(named(&rows, &stale))?;
        Ok(Self {
            place,
            now,
            stale,
            unlike: listed(unlike).map(<[u8]>::to_vec).collect(),
            rows,
        })
    }
}

impl Tree for Whole<'_> {
    fn unlike(&self) -> &HashSet<Vec<u8>> {
        &self.unlike
    }

    fn sends(&self, path: &[u8]) -> bool {
        let number = self.rows.find(path).and_then(|number| u32::try_from(number).ok());
        number.is_some_and(|number| self.stale.binary_search(&number).is_ok())
    }

    fn any_sent(&self, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        named(&self.rows, &self.stale).any(take)
    }

    fn known(&mut self, path: &[u8]) -> Option<Seen> {
        self.rows.find(path).and_then(|number| self.now[number])
    }
}

impl Way for Whole<'_> {
    fn rows(&self) -> &Rows {
        &self.rows
    }

    fn stale(&self) -> &[u32] {
        &self.stale
    }

    fn lay(&mut self) -> Result<Laid, Failure> {
        self.now = settle(&self.rows, &mut self.now);
        let count = self.now.iter().flatten().count();
        let parts = if count > SMALL { PARTS } else { 1 };
        // As many writers as parts would hold as many buffers.
        for part in 0..parts {
            let mut list = Vec::new();
            for (row, seen) in self.rows.iter().zip(&self.now) {
                if let Some(seen) = seen.filter(|_| part_of(row.path, parts) == part) {
                    let known = Known {
                        identity: row.identity,
                        seen,
                        path: row.path,
                    };
                    known.put(&mut list);
                }
            }
            Part::write(self.place, part, &list)?;
        }
        for part in parts..PARTS {
            Part::discard(self.place, part)?;
        }
        Ok(Laid {
            parts,
            count,
            unsettled: (self.rows.len() - count) as u64,
        })
    }

    fn tell(&self) -> Result<(), Failure> {
        tell_go(self.place, || {
            Ok(self.rows.iter().map(|row| row.path.to_vec()).collect())
        })
    }
}
