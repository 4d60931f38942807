//! The doctor: whether this host can lease machines, and for each problem the command that fixes it.
//!
//! [`observe`] looks at the host and gathers a [`World`]; [`judge`] turns it into checks without looking at
//! anything. It must never change the host unless the boot probe was requested. A check that leaves any
//! trace, however short-lived, says so. The check `forwarding` sends packets from a temporary namespace; they
//! do not leave this host, and the check says `probe=packet`.

pub mod check;
pub mod fleet;
pub(crate) mod generic;
pub mod judge;
pub mod observe;
pub(crate) mod prepare;
mod remote;
pub mod world;

use crabbox_core::config::{ProviderError, Settings};
use crabbox_machine::context::Engine;

pub use check::{Check, Class, Options, Status};
pub use remote::{RemoteError, remote};
pub use world::World;

use crate::provider::registry;

/// The time limit for all checks of a provider together, in seconds; the number is part of a message.
pub(crate) const PROVIDER_LIMIT_SECONDS: u64 = 10;

/// Runs every check, in display order.
pub fn run(engine: &Engine, settings: &Settings, options: &Options) -> Vec<Check> {
    let mut checks = generic::checks(settings, options, &observe::tools(&engine.path));
    match settings.provider() {
        Ok(which) => checks.extend(registry::checks(which, engine, settings, options)),
        Err(error @ ProviderError::Unknown { .. }) => {
            checks.push(generic::invalid(&settings.provider.value, &error));
        }
        Err(ProviderError::NotSelected) => {}
    }
    checks
}

/// Whether no check failed.
pub fn is_well(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.status.is_problem())
}

#[cfg(test)]
mod tests;
