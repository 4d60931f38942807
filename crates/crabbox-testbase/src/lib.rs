//! Shared by tests and developers' tasks: an sshd on loopback, and the table of the Go program's behaviour.
//!
//! It is separate from `crabbox-testkit` because a first run of a task waits until all of this is compiled:
//! it must not depend on anything large, nor on any crate above `crabbox-host`.

pub mod compat;
pub mod sshd;
