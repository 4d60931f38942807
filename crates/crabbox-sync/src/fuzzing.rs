//! Access to this crate's private parsers, for fuzzing only. Nothing that ships may use it.

use crate::listing::{Index, Status};

/// Parses `bytes` as git's lists, and as the list of changes from a lease.
pub fn replies(bytes: &[u8]) {
    // Results are ignored; fuzzing looks for panics.
    Index::parse(bytes).ok();
    Status::parse(bytes).ok();
    for record in bytes.split(|byte| *byte == 0) {
        crate::pull::is_record(record);
    }
}
