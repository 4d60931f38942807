//! Access to this crate's private parsers, for fuzzing only. Nothing that ships may use it.

use crabbox_agent_protocol::{Frame, Frames, Request};

use crate::rows::{of_bytes, paths};

/// Parses `bytes` as client requests, as a manifest, as a manifest left by an earlier sync, as a record, as a
/// git index, and as a command note.
pub fn requests(bytes: &[u8]) {
    // Results are ignored; fuzzing looks for panics, hangs and excessive allocation.
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
