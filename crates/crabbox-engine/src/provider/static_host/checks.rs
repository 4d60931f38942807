//! The doctor's checks of this provider: its configuration, and on request whether the host lets us in.
//!
//! Without [`Options::probe_ssh`] it must not connect to anything.

use crabbox_core::config::{Provider, Settings, fit};
use crabbox_machine::context::Engine;
use crabbox_store::places::Places;

use super::{NAME, probe};
use crate::host::doctor::check::{Check, Options, Status};
use crate::host::doctor::world::ObserveError;
use crate::host::doctor::{PROVIDER_LIMIT_SECONDS, generic};

pub(super) fn checks(engine: &Engine, settings: &Settings, options: &Options) -> Vec<Check> {
    let mut checks = vec![configured(settings, options.probe_ssh.then_some(&engine.places))];
    checks.extend(options.prepare.then(unprepared));
    checks
}

/// Takes the place of the `prepare` check of providers that make machines.
fn unprepared() -> Check {
    let message = "a host that exists already is not prepared";
    Check::of_provider(NAME, Status::Skip, "prepare", message)
}

/// Checks the configuration of the provider `ssh`, and with `knock` also whether the host lets us in. Without
/// it, nothing is connected to.
pub(crate) fn configured(settings: &Settings, knock: Option<&Places>) -> Check {
    let host = &settings.static_host.host.value;
    if host.is_empty() {
        return generic::invalid(NAME, &ObserveError::new("missing static.host")).with(
            "fix",
            "set static.host in your configuration, or CRABBOX_STATIC_HOST",
        );
    }
    if let Err(error) = fit::check(settings, Provider::Ssh) {
        return generic::invalid(NAME, &error);
    }
    let target = &settings.target.value;
    let (api, runtime) = if let Some(places) = knock {
        if let Err(error) = probe(settings, places) {
            return generic::trouble(NAME, error.class(), "check_ssh_host", &error).with("fix", error.fix());
        }
        ("ssh_probe", "ssh_reachable")
    } else {
        ("static_config", "unchecked")
    };
    let message = format!(
        "provider=ssh timeout={PROVIDER_LIMIT_SECONDS}s target={target} windows_mode=normal host={host} \
         api={api} mutation=false runtime={runtime}"
    );
    Check::of_provider(NAME, Status::Ok, "provider", message)
}
