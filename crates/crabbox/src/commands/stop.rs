//! `stop`: gives a lease back.

use crabbox_core::fault::{Fault, Kind};

use crate::args::StopArgs;
use crate::commands::route;
use crate::context::Ctx;
use crate::go::blank;
use crate::ui::{CommandError, Exit};

/// Why nothing was stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    /// No lease was named.
    #[error("usage: crabbox stop --id <lease-or-server-id>")]
    Usage,
    /// `--reclaim`.
    #[error("provider={provider} does not support stop --reclaim")]
    Reclaim {
        /// The provider.
        provider: &'static str,
    },
}

impl Fault for StopError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(super) fn run(ctx: &Ctx<'_>, args: &StopArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(StopError::Usage)?;
    let (_, provider) = route::to_lease(ctx, &args.keys.values, name, "stop")?;
    if args.reclaim {
        let provider = provider.name();
        return Err(StopError::Reclaim { provider }.into());
    }
    let released = provider.release(name)?;
    let (id, name) = (&released.id, &released.name);
    match &released.host {
        Some(host) => ctx
            .printer
            .note(format_args!("released static lease={id} host={}", blank(host))),
        None => ctx
            .printer
            .note(format_args!("deleted lease={id} server={name} name={name}")),
    }
    Ok(Exit::SUCCESS)
}
