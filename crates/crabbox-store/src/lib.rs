//! Lease, claim and journal records on disk; locks; versions.
//!
//! Everything is laid out as the Go program lays it out ([`places::Places`]), so that both can work on one host. Nothing
//! here decides what to do with a record: it is read, written and locked, and one bad record never hides the others.

pub mod claims;
pub mod journal;
pub mod leases;
pub mod locks;
pub mod places;
pub mod registry;
pub mod templates;
