//! Fakes, residue scanner, failpoints: for tests only.

pub mod compat;
pub mod fake_vmm;
pub mod mutate;
pub mod schemas;
pub mod sshd;
pub mod trees;
