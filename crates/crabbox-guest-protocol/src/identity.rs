//! The handshake of a guest that is frozen before it has an identity, and gets one each time it is thawed.
//!
//! ```text
//! guest:  park <version>                      everything that every lease has alike is done
//! host:   hold <token>                        the token names this template
//! guest:  parked                              from here on it only reads, without a time limit
//!                                             frozen, and thawed: the connection is reset, which wakes it
//! guest:  hello <version> <token>             on a new connection
//! host:   become <nonce> <unix nanoseconds>
//!         file <name> <length>\n<bytes>      the seed's files, each counted
//!         end <number of files>
//! guest:  stage <name> <seconds> ...          since it woke
//!         identity <boot id> <machine id> <random> <unix nanoseconds>
//!         ready <nonce> <seconds>             or `refused <why>`, and its machine ends
//! ```
//! Each line ends with a line feed. Neither side goes on when the other says anything else.

/// The version of the handshake.
pub const VERSION: &str = "1";
/// The guest has completed everything common to all leases.
pub const PARK: &str = "park";
/// The host's reply, with the template's token.
pub const HOLD: &str = "hold";
/// The guest has the token and waits.
pub const PARKED: &str = "parked";
/// The guest woke, and names its template.
pub const HELLO: &str = "hello";
/// The host gives the guest its identity: a nonce and the time.
pub const BECOME: &str = "become";
/// A file of the seed.
pub const FILE: &str = "file";
/// No more files follow.
pub const END: &str = "end";
/// The values by which this machine differs from other clones of its template.
pub const IDENTITY: &str = "identity";
/// The guest refuses to continue.
pub const REFUSED: &str = "refused";
/// The longest line of either side, in bytes.
pub const LINE_LIMIT: usize = 512;
