//! Which provider a command goes to: the one that a lease's claim names, or the one that was chosen.

use crabbox_core::config::{FlagValue, Provider as Which, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::context::Engine;
use crabbox_engine::provider::{self, Provider};
use crabbox_engine::route;

use crate::commands::acquire;
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
pub(super) fn to_lease(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
) -> Result<(Engine, Box<dyn Provider>), CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let engine = acquire::engine(ctx)?;
    let provider = of_lease(&engine, &settings, name, command)?;
    Ok((engine, provider))
}

/// The provider of the lease that `name` names.
pub(super) fn of_lease(
    engine: &Engine,
    settings: &Settings,
    name: &str,
    command: &'static str,
) -> Result<Box<dyn Provider>, CommandError> {
    let which = route::provider(&engine.places, settings, name)?;
    check(which, command)?;
    Ok(provider::open(which, engine, settings))
}

/// The provider that was chosen, for what concerns all its leases; none chosen is an error.
pub(super) fn to_provider(ctx: &Ctx<'_>, flags: &[FlagValue]) -> Result<Box<dyn Provider>, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let which = settings.provider()?;
    Ok(provider::open(which, &acquire::engine(ctx)?, &settings))
}

/// The same for a command that decides about leases itself: none is adopted before it has.
pub(super) fn to_provider_only_looking(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
) -> Result<(Engine, Box<dyn Provider>), CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let which = settings.provider()?;
    let engine = acquire::looking_engine(ctx)?;
    let provider = provider::open(which, &engine, &settings);
    Ok((engine, provider))
}

/// The provider of the lease if one is named, else the one that was chosen.
pub(super) fn provider(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: Option<&str>,
) -> Result<Which, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    match name {
        Some(name) => Ok(route::provider(&ctx.env.places()?, &settings, name)?),
        None => Ok(settings.provider()?),
    }
}

fn check(provider: Which, command: &'static str) -> Result<(), Refusal> {
    match (provider, command) {
        // A console is a machine's of ours.
        (Which::Ssh, "logs") => Err(Refusal::Command {
            provider: provider.name(),
            command,
        }),
        _ => Ok(()),
    }
}
