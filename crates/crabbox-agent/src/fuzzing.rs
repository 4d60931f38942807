//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

use crabbox_agent_protocol::{Frame, Frames, Request};

use crate::rows::{of_bytes, paths};

/// Reads `bytes` as what a client says, as a manifest and what an earlier sync left of one, as a record, git's index, and a note of a command.
pub fn requests(bytes: &[u8]) {
    // Only a reader that panics, waits or believes what cannot be is of interest.
    let mut frames = Frames::new(bytes);
    while let Ok(Some(frame)) = frames.frame() {
        if let Frame::Message(tag, payload) = frame {
            Request::take(tag, payload).ok();
        }
    }
    if let Ok(mut rows) = of_bytes(bytes) {
        for number in 0..rows.len() {
            let path = rows.get(number).ok().flatten().map(|row| row.path.to_vec());
            let found = path.and_then(|path| rows.find(&path).ok().flatten());
            assert_eq!(found, Some(number));
        }
    }
    paths(bytes, std::path::Path::new("pending"), |_| Ok(())).ok();
    crate::record::read_bytes(bytes);
    crate::index::read_bytes(bytes);
    crate::owner::read_bytes(bytes);
}
