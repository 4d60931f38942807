//! A lease that has been allocated: the proof that it is ours, its record, its journal, and what it alone has.
//!
//! It is what every later step of the making works on. Only [`crate::lease::allocate`] may make one.

use crabbox_store::journal::JournalFile;
use crabbox_store::leases::StoredLease;

use crate::lease::ownership::OwnedLease;

/// A lease that has its directory and journal, and whose lock is held.
#[derive(Debug)]
pub struct Allocated {
    /// The proof.
    pub lease: OwnedLease,
    /// Its record, as written.
    pub stored: StoredLease,
    /// uid and gid of its VMM, when it is jailed.
    pub uid: Option<u32>,
    /// Its /30, with built-in networking.
    pub subnet: Option<ipnet::Ipv4Net>,
    /// Its journal, open.
    pub journal: JournalFile,
}
