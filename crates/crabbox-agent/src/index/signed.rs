//! An index on its way into a file: its checksum goes behind it, and a whole one is never held for that.

use std::fs::File;
use std::io::{BufWriter, Result, Write as _};

use crabbox_agent_protocol::PIECE;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A checksum in the making, by the length of an object's name.
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

/// An index on its way.
pub(super) struct Signed<'f> {
    out: BufWriter<&'f File>,
    hash: Hash,
}

impl<'f> Signed<'f> {
    /// Into `file`, of a repository whose objects have names of `ids` bytes.
    pub(super) fn new(file: &'f File, ids: usize) -> Self {
        Self {
            out: BufWriter::with_capacity(PIECE, file),
            hash: Hash::new(ids),
        }
    }

    /// Its next bytes.
    pub(super) fn put(&mut self, data: &[u8]) -> Result<()> {
        self.hash.update(data);
        self.out.write_all(data)
    }

    /// All of it was put.
    pub(super) fn end(mut self) -> Result<()> {
        self.out.write_all(&self.hash.end())?;
        self.out.flush()
    }
}
