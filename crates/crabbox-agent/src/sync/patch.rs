//! A sync by what changed since the last one, in a tree that is as that one left it.
//!
//! It must never begin where the tree was not looked at whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use crabbox_agent_protocol::SyncRequest;

use super::{Laid, Way, drop_go_fingerprint, named, prune_all, settle, tell_go};
use crate::bytes::listed;
use crate::failure::Failure;
use crate::index::Tree;
use crate::record::{Head, Known, Part, Place, part_of};
use crate::remove::make_way;
use crate::rows::Rows;
use crate::seen::Seen;

/// The files of a part, by path.
type Files = BTreeMap<Vec<u8>, (Vec<u8>, Seen)>;

#[derive(Debug)]
pub(super) struct Patch<'a> {
    place: &'a Place,
    rows: Rows,
    stale: Vec<u32>,
    removed: Vec<Vec<u8>>,
    unlike: HashSet<Vec<u8>>,
    parts: u32,
    count: usize,
    /// Parts that this sync writes anew, and those that it was asked about.
    loaded: HashMap<u32, Files>,
    touched: HashSet<u32>,
    /// Whether there are other paths now than there were.
    has_moved: bool,
}

fn load(place: &Place, part: u32) -> Result<Files, Failure> {
    let loaded = Part::load(place, part)?;
    let file = |known: Known<'_>| (known.path.to_vec(), (known.identity.to_vec(), known.seen));
    Ok(loaded.known().map(file).collect())
}

impl<'a> Patch<'a> {
    pub(super) fn begin(
        place: &'a Place,
        request: &SyncRequest,
        head: &Head,
        data: Vec<u8>,
        removed: &[u8],
        unlike: &[u8],
    ) -> Result<Self, Failure> {
        let rows = Rows::parse(data)?;
        let removed: Vec<Vec<u8>> = listed(removed).map(<[u8]>::to_vec).collect();
        let parts = head.parts;
        let touched: HashSet<u32> = removed
            .iter()
            .map(Vec::as_slice)
            .chain(rows.iter().map(|row| row.path))
            .map(|path| part_of(path, parts))
            .collect();
        let (mut loaded, mut count) = (HashMap::new(), head.count);
        for part in &touched {
            let files = load(place, *part)?;
            count = count.saturating_sub(files.len());
            loaded.insert(*part, files);
        }
        drop_go_fingerprint(place)?;
        let gone: Vec<&[u8]> = rows.gone.iter().map(Vec::as_slice).collect();
        prune_all(place, request, &removed, &gone, &rows.data)?;
        let stale: Vec<u32> = (0..u32::try_from(rows.len()).unwrap_or(u32::MAX)).collect();
        make_way(named(&rows, &stale))?;
        Ok(Self {
            place,
            stale,
            removed,
            unlike: listed(unlike).map(<[u8]>::to_vec).collect(),
            parts,
            count,
            loaded,
            touched,
            has_moved: false,
            rows,
        })
    }
}

impl Tree for Patch<'_> {
    fn unlike(&self) -> &HashSet<Vec<u8>> {
        &self.unlike
    }

    fn sends(&self, path: &[u8]) -> bool {
        self.rows.find(path).is_some()
    }

    fn any_sent(&self, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        named(&self.rows, &self.stale).any(take)
    }

    fn known(&mut self, path: &[u8]) -> Option<Seen> {
        let part = part_of(path, self.parts);
        let files = match self.loaded.entry(part) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(load(self.place, part).ok()?),
        };
        files.get(path).map(|(_, seen)| *seen)
    }
}

impl Way for Patch<'_> {
    fn rows(&self) -> &Rows {
        &self.rows
    }

    fn stale(&self) -> &[u32] {
        &self.stale
    }

    fn lay(&mut self) -> Result<Laid, Failure> {
        let now = settle(&self.rows, &mut []);
        self.has_moved = !self.removed.is_empty();
        let parts = self.parts;
        for path in &self.removed {
            if let Some(files) = self.loaded.get_mut(&part_of(path, parts)) {
                files.remove(path);
            }
        }
        let mut unsettled = 0;
        for (row, seen) in self.rows.iter().zip(now) {
            let Some(files) = self.loaded.get_mut(&part_of(row.path, parts)) else {
                continue;
            };
            self.has_moved |= files.remove(row.path).is_none();
            match seen {
                Some(seen) => {
                    files.insert(row.path.to_vec(), (row.identity.to_vec(), seen));
                }
                None => unsettled += 1,
            }
        }
        for part in &self.touched {
            let Some(files) = self.loaded.get(part) else {
                continue;
            };
            self.count += files.len();
            let mut list = Vec::new();
            for (path, (identity, seen)) in files {
                let known = Known {
                    identity,
                    seen: *seen,
                    path,
                };
                known.put(&mut list);
            }
            Part::write(self.place, *part, &list)?;
        }
        Ok(Laid {
            parts,
            count: self.count,
            unsettled,
        })
    }

    fn tell(&self) -> Result<(), Failure> {
        if !self.has_moved {
            return Ok(());
        }
        tell_go(self.place, || {
            let mut paths = Vec::new();
            for part in 0..self.parts {
                paths.extend(
                    Part::load(self.place, part)?
                        .known()
                        .map(|known| known.path.to_vec()),
                );
            }
            paths.sort_unstable();
            Ok(paths)
        })
    }
}
