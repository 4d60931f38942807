//! Leases on another machine's KVM: who is asked how, and who answers there.
//!
//! One SSH connection a host carries everything, and `crabbox __serve` is the other end. Neither side may believe the other beyond what
//! [`wire`] lets through.

pub mod address;
pub mod client;
pub mod lines;
pub mod proxy;
pub mod serve;
pub mod wire;
