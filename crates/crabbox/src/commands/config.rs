//! `config path`, `config show`, `config explain`.

use crate::args::{ConfigExplainArgs, ConfigShowArgs};
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// `config path`: the user's file, whatever `CRABBOX_CONFIG` says, as in the Go program.
pub(super) fn path(ctx: &Ctx<'_>) -> Result<Exit, CommandError> {
    ctx.printer.line(ctx.env.user_config()?.display());
    Ok(Exit::SUCCESS)
}

/// `config show`.
pub(super) fn show(ctx: &Ctx<'_>, args: &ConfigShowArgs) -> Result<Exit, CommandError> {
    let _resolution = ctx.settings(&args.keys.values)?;
    Err(NotBuilt {
        command: "config show",
    }
    .into())
}

/// `config explain`.
pub(super) fn explain(ctx: &Ctx<'_>, args: &ConfigExplainArgs) -> Result<Exit, CommandError> {
    let _resolution = ctx.settings(&args.keys.values)?;
    Err(NotBuilt {
        command: "config explain",
    }
    .into())
}
