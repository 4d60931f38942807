//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

/// Reads `bytes` as a guest's question, and as a resolver's answer to it.
pub fn dns(bytes: &[u8]) {
    crate::dns::read_as_both(bytes);
}
