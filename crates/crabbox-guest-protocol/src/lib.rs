//! What the host and the first process of our own guests agree on: vsock ports, the seed's files, the lines that cross,
//! and the paths of an image.
//!
//! Constants only, without dependencies, because the guest is small and static. A guest is as old as its image: nothing here may
//! change its value, only gain a neighbour.

pub mod identity;
pub mod image;
pub mod report;
pub mod seed;
pub mod settle;
pub mod trim;

/// The vsock port of the host (CID 2) on which a guest says that it is ready.
pub const READY_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) on which a guest gives blocks back.
pub const TRIM_PORT: u32 = 1025;
/// The vsock port of the host (CID 2) on which a guest that was frozen asks who it is.
pub const IDENTITY_PORT: u32 = 1026;
/// The vsock port of a guest with volumes on which the host has it write them out ([`settle`]).
pub const SETTLE_PORT: u32 = 1027;
