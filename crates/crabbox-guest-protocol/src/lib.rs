//! The contract between the host and the first process of crabbox's own guests: vsock ports, the seed's
//! files, the lines exchanged, and paths in an image.
//!
//! Constants, and the rule by which both choose the lease's user; without dependencies, because the guest is
//! small and static. A guest is as old as its image, so no value here may ever change; only new ones may be
//! added.

pub mod accounts;
pub mod identity;
pub mod image;
pub mod report;
pub mod seed;
pub mod settle;
pub mod trim;

/// The vsock port of the host (CID 2) on which a guest says that it is ready.
pub const READY_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) on which a guest returns free blocks.
pub const TRIM_PORT: u32 = 1025;
/// The vsock port of the host (CID 2) on which a thawed guest asks for its identity.
pub const IDENTITY_PORT: u32 = 1026;
/// The vsock port of a guest with volumes on which the host asks it to write them out ([`settle`]).
pub const SETTLE_PORT: u32 = 1027;
