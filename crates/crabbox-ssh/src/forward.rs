//! Forwards of ports over a connection of their own, which stays until it is ended: the shared one ends when it is idle.
//!
//! It must never listen on anything but 127.0.0.1.

use std::path::Path;
use std::time::Duration;

use crate::loopback::Loopback;
use crate::master::{self, ConnectError, Opening};
use crate::mux::{Client, MuxError};
use crate::target::Target;

/// How long the connection may take.
const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// A port at which hardly anybody listens: tcpmux of 1988.
const NOBODYS: u16 = 1;

/// What ssh says of a channel that sshd does not allow.
const PROHIBITED: &str = "administratively prohibited";

/// Why a forward could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The other side forbids it.
    #[error(
        "the sshd of {destination} forbids to forward port {remote} (AllowTcpForwarding, DisableForwarding or PermitOpen in its configuration)"
    )]
    Prohibited {
        /// `user@host`.
        destination: String,
        /// The port.
        remote: u16,
    },
    /// The connection did not do it.
    #[error(transparent)]
    Ask(#[from] MuxError),
}

/// Listens on `local` of 127.0.0.1 and leads to `remote` of the other side's loopback interface, over the connection at
/// `control`, opened when it is not. Returns the pid of the ssh that listens, with which the forward ends, and where it leads: another
/// address than `loopback` where the other side allows only that.
pub fn open(
    target: &Target,
    control: &Path,
    local: u16,
    (loopback, remote): (Loopback, u16),
) -> Result<(i32, Loopback), ForwardError> {
    let opening = Opening {
        persist: "yes",
        is_heard: true,
        limit: OPEN_LIMIT,
        cancel: None,
    };
    master::open_as(target, control, &opening)?;
    let loopback = allowed(target, control, (loopback, remote))?;
    let mut client = Client::connect(control)?;
    let pid = client.alive()?;
    client.forward(local, loopback.host(), remote)?;
    Ok((pid, loopback))
}

/// Where the other side lets us connect to. The service itself is asked for only where a port at which nobody listens is forbidden too: one
/// that takes a single connection must not lose it to us.
fn allowed(
    target: &Target,
    control: &Path,
    (wanted, remote): (Loopback, u16),
) -> Result<Loopback, ForwardError> {
    if !is_prohibited(control, wanted, NOBODYS)? {
        return Ok(wanted);
    }
    for loopback in [wanted, Loopback::V4, Loopback::V6, Loopback::Name] {
        if !is_prohibited(control, loopback, remote)? {
            return Ok(loopback);
        }
    }
    Err(ForwardError::Prohibited {
        destination: target.destination(),
        remote,
    })
}

fn is_prohibited(control: &Path, loopback: Loopback, port: u16) -> Result<bool, ForwardError> {
    master::words(control);
    let reached = Client::connect(control)?.reaches(loopback.host(), port)?;
    let words = master::words(control);
    Ok(!reached && words.contains(PROHIBITED))
}

/// Why connections through the forwards at `control` were not made on the other side, each reason with how often, since the last look.
pub fn refusals(control: &Path) -> Vec<(String, usize)> {
    let mut reasons: Vec<(String, usize)> = Vec::new();
    for reason in master::words(control).lines().filter_map(reason) {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason.to_owned(), 1)),
        }
    }
    reasons
}

/// Why a channel was refused, if a line of ssh tells that: `channel 3: open failed: connect failed: Connection refused` (channels.c of
/// OpenSSH, which has had the words since 2.3).
pub(crate) fn reason(line: &str) -> Option<&str> {
    Some(line.split_once(": open failed: ")?.1.trim())
}

/// Stops listening. A connection that is gone listens no more.
pub fn close(control: &Path, local: u16, (loopback, remote): (Loopback, u16)) -> Result<(), ForwardError> {
    match Client::connect(control) {
        Ok(mut client) => Ok(client.end_forward(local, loopback.host(), remote)?),
        Err(MuxError::Absent) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
