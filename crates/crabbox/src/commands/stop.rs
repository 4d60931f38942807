//! `stop`.

use crate::args::StopArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &StopArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "stop" }.into())
}
