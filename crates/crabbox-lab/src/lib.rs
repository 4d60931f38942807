//! The KVM host on which developers' tasks and end-to-end tests lease: the emulated lab, its installation,
//! and the choice between it and this machine. It must never become part of the product, nor decide what a
//! test claims.
#![expect(
    clippy::print_stderr,
    reason = "a developer's tool: how far it came is shown while it works"
)]

pub mod cache;
pub mod lab;
pub mod payload;
pub mod site;
pub mod stage;
pub mod workspace;
