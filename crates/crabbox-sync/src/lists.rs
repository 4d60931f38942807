//! The lists that a sync sends and receives: manifests, paths, numbers.
//!
//! They are sent in chunks while they are generated: a list may have hundreds of thousands of paths, and must
//! never be held whole in addition to its manifest.

use std::io::Write as _;

use crabbox_agent_protocol::{PIECE, Request};
use crabbox_core::id::hex;
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use sha2::{Digest as _, Sha256};

use crate::entry::{Entry, Kind, Standing};
use crate::manifest::Manifest;

/// A chunk is sent when it has reached this size, in bytes; the rest of a chunk has room for any path.
const LIST: usize = PIECE - 8192;

/// A list being sent.
struct Sending<'f> {
    far: &'f mut AgentClient,
    piece: Vec<u8>,
}

impl<'f> Sending<'f> {
    fn to(far: &'f mut AgentClient) -> Self {
        let piece = Vec::with_capacity(PIECE);
        Self { far, piece }
    }

    /// Appends to the chunk, and sends it if it is large enough.
    fn push(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), AgentError> {
        put(&mut self.piece);
        if self.piece.len() < LIST {
            return Ok(());
        }
        let sent = self.far.send(&self.piece);
        self.piece.clear();
        sent
    }

    fn end(self) -> Result<(), AgentError> {
        if !self.piece.is_empty() {
            self.far.send(&self.piece)?;
        }
        self.far.ask(&Request::End {})
    }
}

/// Sends `<identity> <kind> <mode> <size> <mtime> <path>` records, the record `-`, then the deleted paths;
/// NUL after each.
pub(crate) fn send_manifest<'e>(
    far: &mut AgentClient,
    entries: impl Iterator<Item = &'e Entry>,
    deleted: &[Vec<u8>],
) -> Result<(), AgentError> {
    let mut sending = Sending::to(far);
    for entry in entries {
        sending.push(|bytes| {
            let kind = if entry.kind == Kind::File { 'f' } else { 'l' };
            let identity = entry.identity.unwrap_or(0);
            // Writing to a vector does not fail.
            write!(
                bytes,
                "{identity:x} {kind} {:o} {} {} ",
                entry.mode, entry.size, entry.mtime_ns
            )
            .ok();
            put(bytes, &entry.path);
        })?;
    }
    sending.push(|bytes| put(bytes, b"-"))?;
    for path in deleted {
        sending.push(|bytes| put(bytes, path))?;
    }
    sending.end()
}

/// Sends paths, NUL after each.
pub(crate) fn send_paths<'e>(
    far: &mut AgentClient,
    paths: impl Iterator<Item = &'e Vec<u8>>,
) -> Result<(), AgentError> {
    let mut sending = Sending::to(far);
    for path in paths {
        sending.push(|bytes| put(bytes, path))?;
    }
    sending.end()
}

fn put(bytes: &mut Vec<u8>, path: &[u8]) {
    bytes.extend_from_slice(path);
    bytes.push(0);
}

/// The numbers of a list, four bytes each.
pub(crate) fn numbers(list: &[u8]) -> Vec<usize> {
    let number = |four: &[u8]| four.try_into().map(u32::from_be_bytes).ok();
    let numbers = list.chunks_exact(4).filter_map(number);
    numbers
        .filter_map(|number| usize::try_from(number).ok())
        .collect()
}

/// A digest of the set of files that differ from git's index: this set can change while no file does.
pub(crate) fn unlike_id(manifest: &Manifest) -> String {
    let mut hash = Sha256::new();
    let entries = manifest.entries.iter();
    for entry in entries.filter(|entry| entry.standing == Standing::Unlike) {
        hash.update(&entry.path);
        hash.update([0]);
    }
    hex(&hash.finalize()[..8])
}
