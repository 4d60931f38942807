//! `run`.

use crate::args::RunArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &RunArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "run" }.into())
}
