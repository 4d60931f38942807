//! Blocks given back: the guest names parts of its disk, `<offset> <length>` a line in bytes, and ends the batch.

/// The word before the length of the disk: the first line, from the host.
pub const GO: &str = "go";
/// The word before the bytes that the host took back so far: its line after each batch.
pub const DONE: &str = "done";
/// The line of a host that did not get through a batch in time.
pub const LATE: &str = "late\n";
/// The line that ends a batch.
pub const END: &str = "end\n";
/// The most parts of one batch.
pub const BATCH: usize = 256;
