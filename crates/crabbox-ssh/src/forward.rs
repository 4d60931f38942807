//! Port forwards over a connection of their own, which stays open until it is ended; the shared connection
//! ends when it is idle.
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

/// A port on which practically nothing listens: tcpmux of 1988.
const NOBODYS: u16 = 1;

/// The message of ssh for a channel that sshd does not allow.
const PROHIBITED: &str = "administratively prohibited";

/// Why a forward could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The remote sshd forbids it.
    #[error(
        "the sshd of {destination} forbids to forward port {remote} (AllowTcpForwarding, DisableForwarding or PermitOpen in its configuration)"
    )]
    Prohibited {
        /// `user@host`.
        destination: String,
        /// The port.
        remote: u16,
    },
    /// The master did not do it.
    #[error(transparent)]
    Ask(#[from] MuxError),
}

/// Listens on port `local` of 127.0.0.1 and forwards to `remote` of the remote loopback interface, over the
/// connection at `control`, which is opened if it is not. Returns the pid of the ssh that listens, with which
/// the forward ends, and the remote address: another than `loopback` if the remote side allows only that.
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

/// The remote address that we may connect to. The service's own port is tried only if an unused port is
/// forbidden too: a service that accepts a single connection must not lose it to us.
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

/// Reasons why the remote side did not make connections through the forwards at `control`, each with its
/// count, since the last call.
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

/// The reason for a refused channel, if this line of ssh has one:
/// `channel 3: open failed: connect failed: Connection refused` (channels.c of OpenSSH, with this wording
/// since 2.3).
pub(crate) fn reason(line: &str) -> Option<&str> {
    Some(line.split_once(": open failed: ")?.1.trim())
}

/// Stops listening. If the connection is gone, nothing listens any more.
pub fn close(control: &Path, local: u16, (loopback, remote): (Loopback, u16)) -> Result<(), ForwardError> {
    match Client::connect(control) {
        Ok(mut client) => Ok(client.end_forward(local, loopback.host(), remote)?),
        Err(MuxError::Absent) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
