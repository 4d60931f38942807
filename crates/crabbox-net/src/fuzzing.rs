//! Access to this crate's private parsers, only for fuzzing. Production code must not use it.

/// Parses `bytes` as a guest's query, and as a resolver's answer to it.
pub fn dns(bytes: &[u8]) {
    crate::dns::read_as_both(bytes);
}
