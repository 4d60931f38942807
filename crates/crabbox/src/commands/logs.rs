//! `logs`.

use crate::args::LogsArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &LogsArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "logs" }.into())
}
