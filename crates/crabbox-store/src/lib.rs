//! Storage of leases, claims and journals on disk; locks; versions.
//!
//! The layout is the Go program's ([`places::Places`]), so that both can work on one host. Nothing here
//! decides what to do with a record: it only reads, writes and locks. One bad record must never hide the
//! others.

pub mod claims;
pub mod journal;
pub mod leases;
pub mod locks;
pub mod places;
pub mod registry;
pub mod templates;
pub mod volumes;
