//! `connect`.

use crate::args::ConnectArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &ConnectArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "connect" }.into())
}
