//! The doctor: whether this host can lease machines, and for each thing that is wrong the command that fixes it.
//!
//! [`observe`] looks at the host and gathers a [`World`]; [`judge`] turns it into checks without looking at anything. It must
//! never change the host unless the boot probe was asked for; what leaves a trace, however short, says so in its check. The check
//! `forwarding` sends packets from a namespace that it makes and removes, keeps them on this host, and says `probe=packet`.

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

/// Longest that the checks of a provider may take together, in seconds; the number is part of a message.
pub(crate) const PROVIDER_LIMIT_SECONDS: u64 = 10;

/// Every check, in the order they are shown.
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
