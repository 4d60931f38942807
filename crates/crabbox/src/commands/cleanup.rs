//! `cleanup`.

use crate::args::CleanupArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &CleanupArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "cleanup" }.into())
}
