//! `claims list`.

use crate::args::ClaimsListArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &ClaimsListArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt {
        command: "claims list",
    }
    .into())
}
