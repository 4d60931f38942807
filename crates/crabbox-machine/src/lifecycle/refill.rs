//! Starts the process that refills a pool; nobody waits for it.
//!
//! It is started after a lease has been claimed, or when a member of a used pool has ended by age. Nothing
//! here may delay the watch over a lease.

use std::io::Write as _;
use std::process::Stdio;

use crabbox_core::fault;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::environment::Environment;
use crabbox_host::process;

use crate::protocol::{self, FILL};
use crate::request::AcquireRequest;

/// Why the pool is not refilled.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    /// The process could not be started.
    #[error("cannot start the pool filler")]
    Start(#[from] CommandError),
    /// The request could not be sent to it.
    #[error("cannot send the pool filler its request")]
    Tell(#[from] std::io::Error),
    /// The request could not be serialised.
    #[error("cannot encode the pool filler's request")]
    Words(#[from] serde_json::Error),
}

/// Starts a refill of the pool of `request`, if there is one, with leases of the same kind.
pub(super) fn start(request: &AcquireRequest) {
    if let Err(error) = try_start(request) {
        tracing::warn!("cannot refill the pool: {}", fault::chain(&error));
    }
}

fn try_start(request: &AcquireRequest) -> Result<(), RefillError> {
    let Some(pool) = &request.pool else { return Ok(()) };
    let order = protocol::opening(request)?;
    let cmd = Cmd::new(&pool.exe)
        .arg(FILL)
        .environment(Environment::Own)
        .cwd("/");
    let mut command = cmd.to_std();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = cmd.spawn(process::new_session(&mut command))?;
    tracing::info!(pid = child.id(), pool = pool.key, "refilling the pool");
    let sent = child
        .stdin
        .take()
        .map_or(Ok(()), |mut input| input.write_all(&order));
    let reaper = std::thread::Builder::new().name("refill".to_owned());
    // Without the thread, init reaps the process once we end.
    reaper
        .spawn(move || {
            match child.wait() {
                Ok(status) if status.success() => tracing::debug!("pool filler finished"),
                // `crabbox pool fill` does the same in the foreground and shows why it fails.
                ended => tracing::warn!(?ended, "pool filler failed"),
            }
        })
        .ok();
    Ok(sent?)
}
