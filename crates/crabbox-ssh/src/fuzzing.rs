//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

/// Reads `bytes` as what the master of a shared connection sends.
pub fn packets(bytes: &[u8]) {
    crate::mux::read_packets(bytes);
}
