//! Work in a machine that is entered by SSH: trees brought and fetched, commands, files, tunnels, results.
//!
//! Everything here works over a [`Target`] and cares for nothing behind it: it must never know a provider, a lease's record,
//! or how the machine came to be. It emits events and prints nothing.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests lay out trees of their own; the wall stands in the build without them"
    )
)]

pub mod caches;
pub mod command;
pub mod copy;
pub mod env_profile;
mod files;
pub mod owner;
pub mod preflight;
pub mod pull;
pub mod results;
pub mod session;
mod stream;
pub mod sync;
pub mod sync_plan;
pub mod tee;
pub mod transcript;
pub mod tunnel;
pub mod watch;

pub use crabbox_ssh::forwards;
pub use crabbox_ssh::quote;
pub use crabbox_ssh::target::Target;
