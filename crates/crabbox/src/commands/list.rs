//! `list`.

use crate::args::ListArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &ListArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "list" }.into())
}
