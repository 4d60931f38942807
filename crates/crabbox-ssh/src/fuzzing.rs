//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

/// Reads `bytes` as what the master of a shared connection sends.
pub fn packets(bytes: &[u8]) {
    crate::mux::read_packets(bytes);
}

/// Reads `bytes` as what an agent says; only a reader that panics, waits or allocates what nobody sent is of interest.
pub fn answers(bytes: &[u8]) {
    use crabbox_agent_protocol::{Frame, Frames, Reply};
    let mut frames = Frames::new(bytes);
    while let Ok(Some(frame)) = frames.frame() {
        if let Frame::Message(tag, payload) = frame {
            Reply::take(tag, payload).ok();
        }
    }
}
