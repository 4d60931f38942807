//! `inspect`.

use crate::args::InspectArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &InspectArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "inspect" }.into())
}
