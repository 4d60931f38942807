//! `__supervise`: this program as the supervisor of one lease; started by itself, never by a user.

use std::fs::File;
use std::os::fd::AsFd as _;

use crabbox_core::id::LeaseId;
use crabbox_machine::lifecycle::supervise::{self, SuperviseError};

use crate::args::SuperviseArgs;
use crate::commands::engine::FAILPOINT_VARIABLE;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit, log_filter};

pub(super) fn run(ctx: &Ctx<'_>, args: &SuperviseArgs) -> Result<Exit, CommandError> {
    // An invalid filter was already refused by the command that started us.
    let filter = log_filter(&ctx.env).ok().flatten();
    if let Some(lease) = &args.adopt {
        supervise::watch(
            &ctx.env.places()?,
            &LeaseId::parse(lease).map_err(SuperviseError::LeaseId)?,
            ctx.env.text(FAILPOINT_VARIABLE).unwrap_or_default(),
            filter,
        )?;
        return Ok(Exit::SUCCESS);
    }
    let own = |fd: std::io::Result<std::os::fd::OwnedFd>| fd.map(File::from).map_err(SuperviseError::Pipes);
    let input = own(std::io::stdin().as_fd().try_clone_to_owned())?;
    let output = own(std::io::stdout().as_fd().try_clone_to_owned())?;
    supervise::run(input, output, filter)?;
    Ok(Exit::SUCCESS)
}
