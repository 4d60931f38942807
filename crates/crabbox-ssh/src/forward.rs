//! Forwards of ports over a connection of their own, which stays until it is ended: the shared one ends when it is idle.
//!
//! It must never listen on anything but 127.0.0.1.

use std::path::Path;
use std::time::Duration;

use crate::loopback::Loopback;
use crate::master::{self, ConnectError};
use crate::mux::{Client, MuxError};
use crate::target::Target;

/// How long the connection may take.
const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// Why a forward could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection did not do it.
    #[error(transparent)]
    Ask(#[from] MuxError),
}

/// Listens on `local` of 127.0.0.1 and leads to `remote` of the other side's loopback interface, over the connection at
/// `control`, opened when it is not. Returns the pid of the ssh that listens: with it the forward ends.
pub fn open(
    target: &Target,
    control: &Path,
    local: u16,
    (loopback, remote): (Loopback, u16),
) -> Result<i32, ForwardError> {
    master::open_for(target, control, "yes", OPEN_LIMIT)?;
    let mut client = Client::connect(control)?;
    let pid = client.alive()?;
    client.forward(local, loopback.host(), remote)?;
    Ok(pid)
}

/// Stops listening. A connection that is gone listens no more.
pub fn close(control: &Path, local: u16, (loopback, remote): (Loopback, u16)) -> Result<(), ForwardError> {
    match Client::connect(control) {
        Ok(mut client) => Ok(client.end_forward(local, loopback.host(), remote)?),
        Err(MuxError::Absent) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
