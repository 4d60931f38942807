//! `status`.

use crate::args::StatusArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &StatusArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "status" }.into())
}
