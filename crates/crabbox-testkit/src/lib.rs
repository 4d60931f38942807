//! Fakes, residue scanner, failpoints: for tests only.

pub mod sshd;
