//! Trimming: the guest names free parts of its disk in bytes, one `<offset> <length>` per line, and ends the
//! batch.

/// The first line, from the host: this word, then the length of the disk.
pub const GO: &str = "go";
/// The host's line after each batch: this word, then the total bytes taken back so far.
pub const DONE: &str = "done";
/// The host's line if it did not complete a batch in time.
pub const LATE: &str = "late\n";
/// The line that ends a batch.
pub const END: &str = "end\n";
/// The most parts of one batch.
pub const BATCH: usize = 256;
