//! `ssh`: prints the command line that enters a lease.

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;

use crate::args::SshArgs;
use crate::commands::lease::entry;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// No lease was named.
#[derive(Debug, thiserror::Error)]
#[error("usage: crabbox ssh [flags] <lease-id-or-slug>")]
struct Usage;

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &SshArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage)?;
    let entry = entry::enter(ctx, &args.keys.values, name, "ssh", args.reclaim)?;
    entry.touch(&LeaseState::Ready)?;
    ctx.printer.line(entry.target.display_line());
    Ok(Exit::SUCCESS)
}
