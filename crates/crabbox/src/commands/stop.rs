//! `stop`: gives a lease back.

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::release;

use crate::args::StopArgs;
use crate::commands::route;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Why nothing was stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    /// No lease was named.
    #[error("usage: crabbox stop --id <lease-or-server-id>")]
    Usage,
    /// `--reclaim`.
    #[error("provider=firecracker does not support stop --reclaim")]
    Reclaim,
}

impl Fault for StopError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(super) fn run(ctx: &Ctx<'_>, args: &StopArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(StopError::Usage)?;
    if args.reclaim {
        return Err(StopError::Reclaim.into());
    }
    let engine = route::to_lease(ctx, &args.keys.values, name, "stop")?;
    let released = release::stop(&engine, name)?;
    ctx.printer.note(format_args!(
        "deleted lease={} server={} name={}",
        released.id, released.name, released.name
    ));
    Ok(Exit::SUCCESS)
}
