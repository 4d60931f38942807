//! Maps the configuration's provider names to providers.
//!
//! The only place that knows all of them.

use crabbox_core::config::{Provider as Which, Settings};
use crabbox_machine::context::Engine;

use crate::host::doctor::check::{Check, Options};
use crate::provider::Provider;
use crate::provider::capability::{Capabilities, Capability};
use crate::provider::error::LeaseError;
use crate::provider::firecracker;
use crate::provider::remote::Remote;
use crate::provider::static_host::{self, StaticHost};
use crate::provider::terms::Terms;

/// The provider `which` with these settings.
pub fn open(which: Which, engine: &Engine, settings: &Settings) -> Box<dyn Provider> {
    match which {
        Which::Firecracker => Box::new(Remote::new(engine.clone(), settings.clone())),
        Which::Ssh => Box::new(StaticHost::new(engine.clone(), settings.clone())),
    }
}

/// What the provider `which` can do.
pub fn capabilities(which: Which) -> Capabilities {
    match which {
        Which::Firecracker => firecracker::CAPABILITIES,
        Which::Ssh => static_host::CAPABILITIES,
    }
}

/// The doctor's checks of the provider `which`, in display order.
pub(crate) fn checks(which: Which, engine: &Engine, settings: &Settings, options: &Options) -> Vec<Check> {
    open(which, engine, settings).checks(options)
}

/// The properties that a new lease of the provider `which` would have. Fails for settings that the provider
/// would refuse.
pub fn terms(which: Which, settings: &Settings) -> Result<Terms, LeaseError> {
    match which {
        Which::Firecracker => firecracker::terms(settings),
        Which::Ssh => Ok(static_host::terms(settings)),
    }
}

/// The first listed provider that has `capability`.
pub fn with(capability: Capability) -> Option<Which> {
    Which::ALL
        .into_iter()
        .find(|which| capabilities(*which).has(capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_provider_can_do() {
        use Capability::{Cleanup, KeepsRecords, Logs, MakesMachine, SetUp, SshProbe};
        let can =
            |which| [MakesMachine, Cleanup, Logs, SetUp, SshProbe].map(|one| capabilities(which).has(one));
        assert_eq!(can(Which::Firecracker), [true, true, true, true, false]);
        assert_eq!(can(Which::Ssh), [false, false, false, false, true]);
        assert_eq!(with(SetUp), Some(Which::Firecracker));
        // The provider that is asked for leases without a known provider.
        assert_eq!(with(KeepsRecords), Some(Which::Firecracker));
        assert_eq!(with(SshProbe), Some(Which::Ssh));
    }
}
