//! `ssh`.

use crate::args::SshArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &SshArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "ssh" }.into())
}
