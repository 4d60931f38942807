//! The end of a machine with volumes: on the host's request the guest writes them out and freezes them.
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
