//! `doctor`.

use crate::args::DoctorArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &DoctorArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "doctor" }.into())
}
