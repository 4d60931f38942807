//! `heartbeat`.

use crate::args::HeartbeatArgs;
use crate::commands::pending::NotBuilt;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(_ctx: &Ctx<'_>, _args: &HeartbeatArgs) -> Result<Exit, CommandError> {
    Err(NotBuilt { command: "heartbeat" }.into())
}
