//! The resources of a lease: network, disk, control group, VMM, connection. Each file makes one kind of
//! resource and contains its undo.

pub mod cgroup;
pub mod connection;
pub mod disk;
pub mod identity;
pub mod network;
pub mod ready;
pub(crate) mod settle;
pub mod trim;
pub mod vmm;
pub mod volume;
