//! Which provider a command goes to: the one that a lease's claim names, or the one that was chosen.

use crabbox_core::config::{FlagValue, Provider as Which, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::route;
use crabbox_engine::provider::{Provider, registry};
use crabbox_machine::context::Engine;

use crate::commands::engine;
use crate::context::Ctx;
use crate::ui::CommandError;

/// The provider cannot do it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// A command that needs a machine of this host.
    #[error("provider={provider} does not support `crabbox {command}`")]
    Command {
        /// The provider.
        provider: &'static str,
        /// The command.
        command: &'static str,
    },
}

impl Fault for Refusal {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The engine and the provider for `command` on the lease that `name` names. Needs no `--provider`: the claim tells.
pub(in crate::commands) fn to_lease(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
) -> Result<(Engine, Box<dyn Provider>), CommandError> {
    let settings = ctx.settings_on_leases(flags)?.settings;
    let engine = engine::adopting(ctx)?;
    let provider = of_lease(&engine, &settings, name, command)?;
    Ok((engine, provider))
}

/// The provider of the lease that `name` names.
pub(in crate::commands) fn of_lease(
    engine: &Engine,
    settings: &Settings,
    name: &str,
    command: &'static str,
) -> Result<Box<dyn Provider>, CommandError> {
    let which = route::provider(&engine.places, settings, name)?;
    log(name, which, command);
    check(which, command)?;
    Ok(registry::open(which, engine, settings))
}

/// Notes which provider `command` goes to.
pub(in crate::commands) fn log(name: &str, which: Which, command: &'static str) {
    tracing::debug!(lease = name, provider = which.name(), command, "goes to");
}

/// The provider that was chosen, for what concerns all its leases; none chosen is an error.
pub(in crate::commands) fn to_provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
) -> Result<Box<dyn Provider>, CommandError> {
    let settings = ctx.settings_on_leases(flags)?.settings;
    let which = settings.provider()?;
    Ok(registry::open(which, &engine::adopting(ctx)?, &settings))
}

/// The same for a command that decides about leases itself: none is adopted before it has.
pub(in crate::commands) fn to_provider_only_looking(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
) -> Result<(Engine, Box<dyn Provider>), CommandError> {
    let settings = ctx.settings_on_leases(flags)?.settings;
    let which = settings.provider()?;
    let engine = engine::looking(ctx)?;
    let provider = registry::open(which, &engine, &settings);
    Ok((engine, provider))
}

/// The provider of the lease if one is named, else the one that was chosen.
pub(in crate::commands) fn provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: Option<&str>,
) -> Result<Which, CommandError> {
    let settings = ctx.settings_on_leases(flags)?.settings;
    match name {
        Some(name) => Ok(route::provider(&ctx.env.places()?, &settings, name)?),
        None => Ok(settings.provider()?),
    }
}

fn check(provider: Which, command: &'static str) -> Result<(), Refusal> {
    let can = registry::capabilities(provider);
    if command == "logs" && !can.has(Capability::Logs) {
        return Err(Refusal::Command {
            provider: provider.name(),
            command,
        });
    }
    Ok(())
}
