//! What a lease is made of: network, disk, control group, VMM, connection. Each file makes one thing and knows its undoing.

pub mod cgroup;
pub mod connection;
pub mod disk;
pub mod identity;
pub mod network;
pub mod ready;
pub mod trim;
pub mod vmm;
