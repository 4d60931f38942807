//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

use crabbox_agent_protocol::{Frame, Frames, Request};

use crate::rows::{Rows, paths};

/// Reads `bytes` as what a client says, as a manifest and what an earlier sync left of one, as a record, git's index, and a note of a command.
pub fn requests(bytes: &[u8]) {
    // Only a reader that panics, waits or believes what cannot be is of interest.
    let mut frames = Frames::new(bytes);
    while let Ok(Some(frame)) = frames.frame() {
        if let Frame::Message(tag, payload) = frame {
            Request::take(tag, payload).ok();
        }
    }
    if let Ok(rows) = Rows::parse(bytes.to_vec()) {
        assert_eq!(rows.iter().count(), rows.len());
        for row in rows.iter() {
            assert!(rows.find(row.path).is_some());
        }
    }
    paths(bytes).for_each(drop);
    crate::record::read_bytes(bytes);
    crate::index::read_bytes(bytes.to_vec());
    crate::owner::read_bytes(bytes);
}
