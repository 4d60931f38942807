//! Removes the paths that earlier syncs brought and that are no longer in the manifest.
//!
//! The paths are recorded for the next sync before any of them is removed. They must never be held in memory
//! whole, because they may be all of a large tree.

use std::io::Write as _;

use crabbox_agent_protocol::SyncRequest;

use super::MANIFEST;
use crate::bytes::{BUFFER, Records, Replacing, discard, listed, open, push};
use crate::failure::{At as _, Failure};
use crate::record::Place;
use crate::remove::prune;
use crate::rows::{RECORD, Rows};

/// The prefix of a path in the file: a manifest record of which only the path is read.
const HEAD: &[u8] = b"0 f 0 0 0 ";

/// Linux's `PATH_MAX`, including the NUL: no file has a longer path.
const PATH_MAX: usize = 4096;

/// The paths to remove, while they are written to the file from which the next sync would learn of them.
#[derive(Debug)]
pub(super) struct Deletions<'a> {
    place: &'a Place,
    new: Replacing,
    /// Records that are not in the file yet.
    waiting: Vec<u8>,
    count: u64,
}

impl<'a> Deletions<'a> {
    /// Begins with no paths.
    pub(super) fn begin(place: &'a Place) -> Result<Self, Failure> {
        Ok(Self {
            place,
            new: Replacing::begin(&place.of("pending"))?,
            waiting: Vec::new(),
            count: 0,
        })
    }

    /// Adds a path. Adding it twice does no harm.
    pub(super) fn put(&mut self, path: &[u8]) -> Result<(), Failure> {
        if path.is_empty() || path.len() >= PATH_MAX {
            return Ok(());
        }
        self.waiting.extend_from_slice(HEAD);
        push(&mut self.waiting, path);
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

    /// Removes these paths and `gone`. Afterwards `pending` holds only the new manifest, whose files are
    /// about to arrive.
    pub(super) fn prune(mut self, request: &SyncRequest, gone: &[u8], rows: &Rows) -> Result<(), Failure> {
        let pending = self.place.of("pending");
        let coming = || std::fs::rename(self.place.of(MANIFEST), &pending).at(&pending);
        if !request.delete || self.count == 0 {
            discard(&self.new.path)?;
            coming()?;
        }
        if !request.delete {
            return Ok(());
        }
        if self.count > 0 {
            self.flush()?;
            rows.copy(&self.new)?;
            self.new.put(&pending)?;
            let from = open(&pending)?.ok_or_else(unread)?;
            let mut records = Records::of(from, RECORD);
            for _ in 0..self.count {
                let record = records.record().at(&pending)?;
                prune(
                    record
                        .and_then(|record| record.strip_prefix(HEAD))
                        .ok_or_else(unread)?,
                )?;
            }
        }
        listed(gone).try_for_each(prune)?;
        if self.count > 0 { coming() } else { Ok(()) }
    }
}

fn unread() -> Failure {
    Failure::Refused(
        "what is to be removed cannot be read again: its file in the lease is not what was written"
            .to_owned(),
    )
}
