//! An allocated lease: the proof of ownership, its record, its journal, and its exclusive resources.
//!
//! Every later step of the acquisition works on it. Only [`crate::lease::allocate`] may make one.

use crabbox_store::journal::JournalFile;
use crabbox_store::leases::StoredLease;

use crate::lease::ownership::OwnedLease;

/// A lease that has its directory and journal, and whose lock is held.
#[derive(Debug)]
pub struct Allocated {
    /// The proof of ownership.
    pub lease: OwnedLease,
    /// Its record, as written.
    pub stored: StoredLease,
    /// uid and gid of its VMM, if it is jailed.
    pub uid: Option<u32>,
    /// Its /30, with built-in NAT.
    pub subnet: Option<ipnet::Ipv4Net>,
    /// Its journal, open.
    pub journal: JournalFile,
}
