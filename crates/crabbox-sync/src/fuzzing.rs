//! Doors to this crate's private readers, for fuzzing alone. Nothing that ships may go through them.

use crate::listing::{Index, Status};

/// Reads `bytes` as what git lists there and here.
pub fn replies(bytes: &[u8]) {
    // Only a reader that panics is of interest.
    Index::parse(bytes).ok();
    Status::parse(bytes).ok();
    for record in bytes.split(|byte| *byte == 0) {
        crate::pull::is_record(record);
    }
}
