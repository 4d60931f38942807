//! Opens sessions in a lease by SSH, and checks whether it answers.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::command::CommandError;
use crabbox_ssh::capture;
use crabbox_ssh::exec::{self, Stdin};
use crabbox_ssh::target::Target;

use crate::owner::OwnerError;

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

/// Opens the shared connection of `target`; returns how long that took, or `None` if it was open or there is
/// none to share.
pub fn connect(target: &Target, cancel: BorrowedFd<'_>) -> Result<Option<Duration>, OwnerError> {
    if crate::sync::is_connected(target) || target.control.is_none() {
        return Ok(None);
    }
    let began = Instant::now();
    if !exec::connect(target, cancel)? {
        return Err(OwnerError::Interrupted);
    }
    Ok(Some(began.elapsed()))
}

/// Whether the lease accepts a command right now.
pub fn answers(target: &Target) -> bool {
    capture::capture(target, "exit 0", Stdin::Null, Some(ANSWER_LIMIT)).is_ok_and(|answer| answer.success())
}

/// A session with this process's own standard streams; returns ssh's exit code.
pub fn interactive(target: &Target) -> Result<u8, SessionError> {
    let code = crabbox_ssh::interactive::connect(target).map_err(SessionError)?;
    Ok(u8::try_from(code).unwrap_or(255))
}
