//! Fakes, residue scanner, failpoints: for tests only.

pub use crabbox_testbase::{compat, sshd};

pub mod fake_vmm;
pub mod mutate;
pub mod schemas;
pub mod trees;
