//! Access to this crate's private parsers, for fuzzing only. Nothing that ships may use it.

/// Parses `bytes` as packets from the master of a shared connection.
pub fn packets(bytes: &[u8]) {
    crate::mux::read_packets(bytes);
}

/// Parses `bytes` as output of an agent; results are ignored, fuzzing looks for panics, hangs and excessive
/// allocation.
pub fn answers(bytes: &[u8]) {
    use crabbox_agent_protocol::{Frame, Frames, Reply};
    // As a client does that checks for an answer in its buffer.
    Frames::shared(bytes).begins();
    let mut frames = Frames::shared(bytes);
    while let Ok(Some(frame)) = frames.frame() {
        if let Frame::Message(tag, payload) = frame {
            Reply::take(tag, payload).ok();
        }
    }
}
