//! `connect`: an interactive session in a lease.

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;
use crabbox_workspace::session;

use crate::args::ConnectArgs;
use crate::commands::lease::entry;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// No lease was named.
#[derive(Debug, thiserror::Error)]
#[error("usage: crabbox connect [flags] <lease-id-or-slug>")]
struct Usage;

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ConnectArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage)?;
    let entry = entry::enter(ctx, &args.keys.values, name, "connect", args.reclaim)?;
    entry.touch(&LeaseState::Running)?;
    let code = session::interactive(&entry.target);
    entry.leave(ctx, Some(&LeaseState::Ready));
    Ok(Exit::passed_through(code?))
}
