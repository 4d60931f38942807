//! Before the end of a machine with volumes: the host has the guest write out what it holds, and nothing changes any more.
//!
//! ```text
//! host:   settle                              on a connection that it opens
//! guest:  settled <number of volumes>         each is written out and holds every write; or `no <why>`
//!                                             until the connection ends, or the guest's own time limit
//! ```

/// The host's line.
pub const SETTLE: &str = "settle";
/// The word before the number of volumes.
pub const SETTLED: &str = "settled";
/// The word before the reason why not.
pub const NO: &str = "no";
/// The longest line of either side, in bytes.
pub const LINE_LIMIT: usize = 512;
