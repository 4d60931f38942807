//! What the tests and the developers' tasks both use: an sshd on loopback, and the table of what the Go program does.
//!
//! It stands apart from `crabbox-testkit` because whoever runs a task for the first time waits until all of this is compiled: nothing
//! that is large, and nothing of the house above `host`, may be needed here.

pub mod compat;
pub mod sshd;
