//! Writes an index to a file and appends its checksum, without holding the whole index in memory.

use std::fs::File;
use std::io::{BufWriter, Result, Write as _};

use crabbox_agent_protocol::PIECE;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A running checksum, chosen by the length of an object id.
pub(super) enum Hash {
    Short(Sha1),
    Long(Sha256),
}

impl Hash {
    pub(super) fn new(ids: usize) -> Self {
        if ids == 20 {
            Self::Short(Sha1::new())
        } else {
            Self::Long(Sha256::new())
        }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Short(hash) => hash.update(data),
            Self::Long(hash) => hash.update(data),
        }
    }

    pub(super) fn end(self) -> Vec<u8> {
        match self {
            Self::Short(hash) => hash.finalize().to_vec(),
            Self::Long(hash) => hash.finalize().to_vec(),
        }
    }
}

/// An index being written.
pub(super) struct Signed<'f> {
    out: BufWriter<&'f File>,
    hash: Hash,
}

impl<'f> Signed<'f> {
    /// Writes to `file`, for a repository whose object ids have `ids` bytes.
    pub(super) fn new(file: &'f File, ids: usize) -> Self {
        Self {
            out: BufWriter::with_capacity(PIECE, file),
            hash: Hash::new(ids),
        }
    }

    /// Appends bytes.
    pub(super) fn put(&mut self, data: &[u8]) -> Result<()> {
        self.hash.update(data);
        self.out.write_all(data)
    }

    /// Appends the checksum and flushes.
    pub(super) fn end(mut self) -> Result<()> {
        self.out.write_all(&self.hash.end())?;
        self.out.flush()
    }
}
