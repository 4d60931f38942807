//! `providers`, `providers describe`.

use crate::args::ProvidersArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// `providers` and `providers describe`.
pub(super) fn run(_ctx: &Ctx<'_>, _args: &ProvidersArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "providers" }.into())
}
