//! Access to this crate's private parsers, only for fuzzing. Production code must not use it.

use crate::cpio;

/// Reads `bytes` as an initrd of an earlier build.
pub fn cpio(bytes: &[u8]) {
    for entry in cpio::read(bytes).unwrap_or_default() {
        assert!(entry.content.len() <= bytes.len() && entry.name.len() <= bytes.len());
    }
}
