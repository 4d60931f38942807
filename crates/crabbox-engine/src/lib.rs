//! The provider seam and the host's set-up. Emits events, prints nothing.
//!
//! The engine observes the world, lets `crabbox-core` decide, and applies the plan through the crates below
//! it. It must never print, read the environment, or destroy what it has no proof of owning.

pub mod entry;
pub mod external;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod host;
pub mod placement;
pub mod provider;
pub mod receipt;
pub mod run;
pub mod stage;
