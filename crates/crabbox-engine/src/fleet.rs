//! Leases on another machine's KVM: the client side and the serving side.
//!
//! One SSH connection per host carries everything, with `crabbox __serve` at its other end. Neither side may
//! trust the other beyond what [`wire`] lets through.

pub mod address;
pub mod client;
pub mod lines;
pub mod proxy;
pub mod serve;
pub mod wire;
