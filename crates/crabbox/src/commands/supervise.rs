//! `__supervise`.

use crate::args::SuperviseArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &SuperviseArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt {
        command: "__supervise",
    }
    .into())
}
