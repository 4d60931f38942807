//! Which provider a command goes to: the one named by the lease's claim, or the chosen one.

use crabbox_core::config::fit;
use crabbox_core::config::{FlagValue, Provider as Which, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::route;
use crabbox_engine::provider::{Provider, registry};
use crabbox_machine::context::Engine;

use crate::commands::engine;
use crate::context::Ctx;
use crate::ui::CommandError;

/// The provider does not support the command.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The command needs a machine on this host.
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

/// The engine and the provider for `command` on the lease called `name`. Needs no `--provider`, because the
/// claim names it.
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

/// The provider of the lease called `name`.
pub(in crate::commands) fn of_lease(
    engine: &Engine,
    settings: &Settings,
    name: &str,
    command: &'static str,
) -> Result<Box<dyn Provider>, CommandError> {
    let which = route::provider(&engine.places, settings, name)?;
    log(name, which, command);
    check(which, command)?;
    // `stop` must work whatever the other settings say.
    if command != "stop" {
        fit::check_existing(settings, which)?;
    }
    Ok(registry::open(which, engine, settings))
}

/// Logs which provider `command` goes to.
pub(in crate::commands) fn log(name: &str, which: Which, command: &'static str) {
    tracing::debug!(lease = name, provider = which.name(), command, "goes to");
}

/// The chosen provider, for a command about all its leases; having chosen none is an error.
pub(in crate::commands) fn to_provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
) -> Result<Box<dyn Provider>, CommandError> {
    let settings = ctx.settings_on_leases(flags)?.settings;
    let which = settings.provider()?;
    fit::check_existing(&settings, which)?;
    Ok(registry::open(which, &engine::adopting(ctx)?, &settings))
}

/// The same for a command that itself decides about leases: orphans are not adopted before it has decided.
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
