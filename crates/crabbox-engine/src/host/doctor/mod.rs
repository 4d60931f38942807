//! The doctor: whether this host can lease machines, and for each thing that is wrong the command that fixes it.
//!
//! [`observe`] looks at the host and gathers a [`World`]; [`judge`] turns it into checks without looking at anything. It must
//! never change the host unless the boot probe was asked for; what leaves a trace, however short, says so in its check. The check
//! `forwarding` sends a packet between namespaces that it makes and removes, and says `probe=packet`.

pub mod check;
mod generic;
pub mod judge;
pub mod observe;
mod prepare;
mod remote;
pub mod world;

use std::path::PathBuf;

use crabbox_core::config::firecracker;
use crabbox_core::config::{Provider, ProviderError, Settings};
use crabbox_machine::context::Engine;

pub use check::{Check, Class, Status};
pub use remote::{RemoteError, remote};
pub use world::World;

/// Longest that the checks of a provider may take together, in seconds; the number is part of a message.
pub(crate) const PROVIDER_LIMIT_SECONDS: u64 = 10;

/// What the command line knows and the settings do not say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The user's configuration file, whether it is there or not.
    pub config_file: PathBuf,
    /// The key that `CRABBOX_SSH_KEY` names.
    pub ssh_key: Option<PathBuf>,
    /// Whether to boot a guest.
    pub probe: bool,
    /// Whether to find everything that a lease is made of, as a lease would.
    pub prepare: bool,
    /// Whether to log in to a host that exists already.
    pub probe_ssh: bool,
}

/// Every check, in the order they are shown.
pub fn run(engine: &Engine, settings: &Settings, options: &Options) -> Vec<Check> {
    let mut checks = generic::checks(settings, options, &observe::tools(&engine.path));
    match settings.provider() {
        Ok(Provider::Firecracker) => match firecracker::plan(settings) {
            Ok(plan) => {
                let world = observe::world(engine, &plan, options);
                checks.extend(judge::firecracker(&plan, &world));
                checks.extend(options.prepare.then(|| prepare::check(engine, &plan)));
            }
            Err(error) => checks.push(generic::invalid("firecracker", &error)),
        },
        Ok(Provider::Ssh) => {
            let probe = options.probe_ssh.then_some(&engine.places);
            checks.push(generic::static_host(settings, probe));
            checks.extend(options.prepare.then(prepare::nothing));
        }
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
