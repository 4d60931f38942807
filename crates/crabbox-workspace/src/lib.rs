//! Works in a machine over SSH: syncs and fetches trees, runs commands, copies files, opens tunnels, collects
//! results.
//!
//! Everything here works over a [`Target`] and knows nothing else about the machine: no provider, no lease
//! record, not how it was created. It emits events and prints nothing.

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
