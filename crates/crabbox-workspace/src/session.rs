//! Entering a lease by SSH: whether it answers, and a session for a person.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::command::CommandError;
use crabbox_ssh::capture;
use crabbox_ssh::exec::Stdin;
use crabbox_ssh::target::Target;

/// How long a lease may take to answer `status`.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// The session could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start an SSH session")]
pub struct SessionError(#[source] CommandError);

impl Fault for SessionError {
    fn kind(&self) -> Kind {
        Kind::Remote
    }
}

/// Whether the lease can be entered right now.
pub fn answers(target: &Target) -> bool {
    capture::capture(target, "exit 0", Stdin::Null, Some(ANSWER_LIMIT)).is_ok_and(|answer| answer.success())
}

/// A session with this process's own standard streams; returns ssh's exit code.
pub fn interactive(target: &Target) -> Result<u8, SessionError> {
    let code = crabbox_ssh::interactive::connect(target).map_err(SessionError)?;
    Ok(u8::try_from(code).unwrap_or(255))
}
