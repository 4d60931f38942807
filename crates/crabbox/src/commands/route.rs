//! Which provider a command goes to: the one that a lease's claim names, or the one that was chosen.

use crabbox_core::config::{FlagValue, Provider};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::context::Engine;
use crabbox_engine::route;

use crate::commands::acquire;
use crate::context::Ctx;
use crate::ui::CommandError;

/// The provider cannot do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// A command that works with leases on this host only.
    #[error("provider={provider} does not support `crabbox {command}` in this program yet")]
    Command {
        /// The provider.
        provider: &'static str,
        /// The command.
        command: &'static str,
    },
    /// Clean-up of a host that is not ours; the Go program's words.
    #[error("machine cleanup is not supported for provider={provider}")]
    Cleanup {
        /// The provider.
        provider: &'static str,
    },
}

impl Fault for Refusal {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The engine for `command` on the lease that `name` names. Needs no `--provider`: the claim tells.
pub(super) fn to_lease(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
) -> Result<Engine, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let engine = acquire::engine(ctx)?;
    let provider = route::provider(&engine.places, &settings, name)?;
    check(provider, command)?;
    Ok(engine)
}

/// The engine for `command` on all leases of the provider that was chosen; none chosen is an error.
pub(super) fn to_provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    command: &'static str,
) -> Result<Engine, CommandError> {
    let provider = ctx.settings(flags)?.settings.provider()?;
    check(provider, command)?;
    Ok(acquire::engine(ctx)?)
}

/// The same for a command that decides about leases itself: none is adopted before it has.
pub(super) fn to_provider_only_looking(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    command: &'static str,
) -> Result<Engine, CommandError> {
    let provider = ctx.settings(flags)?.settings.provider()?;
    check(provider, command)?;
    Ok(acquire::looking_engine(ctx)?)
}

/// The provider of the lease if one is named, else the one that was chosen.
pub(super) fn provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: Option<&str>,
) -> Result<Provider, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    match name {
        Some(name) => Ok(route::provider(&ctx.env.places()?, &settings, name)?),
        None => Ok(settings.provider()?),
    }
}

/// Refuses what this program cannot do yet with a provider.
pub(super) fn check(provider: Provider, command: &'static str) -> Result<(), Refusal> {
    match (provider, command) {
        (Provider::Firecracker, _) => Ok(()),
        (Provider::Ssh, "cleanup") => Err(Refusal::Cleanup {
            provider: provider.name(),
        }),
        (Provider::Ssh, command) => Err(Refusal::Command {
            provider: provider.name(),
            command,
        }),
    }
}
