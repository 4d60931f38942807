//! The control protocol of a lease's supervisor: one request and one reply, each one line of JSON, over a
//! socket in the lease's directory.
//!
//! A reply is informational and never a proof: nothing may be torn down, ended or kept because of what a
//! supervisor says. The lease's lock, its journal and the identity of its processes decide. The socket of a
//! killed supervisor refuses connections: every caller must be able to work without the reply.

pub mod client;
pub(crate) mod server;

use std::io::{self, BufRead as _, BufReader, Read};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The version of requests and replies.
pub const VERSION: u32 = 1;
/// Limit for a request and its reply together, on either side. No request here takes long.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);
/// The longest line, in bytes.
const LINE_LIMIT: u64 = 4096;

/// A request to a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Asks for a sign of life and for what the supervisor is doing.
    Ping,
    /// Changes the filter of the supervisor's log ([`crate::log_filter::LogFilter`]).
    LogLevel {
        /// The filter as `CRABBOX_LOG` spells it.
        filter: String,
    },
    /// Ends the lease, as SIGTERM does: once the supervisor gets the lease's lock, it tears down what is
    /// left.
    End,
    /// Ends the lease unless a client has taken it: it is a pool member, finished or in the making, and
    /// another lease needs its room.
    GiveWay,
    /// Claims a lease of this pool: the first client to ask gets it, and the connection continues as that of
    /// a lease that is being made ([`crate::protocol`]).
    Claim {
        /// The pool's key.
        pool: String,
    },
    /// Changes nothing: reports that a lease of its pool was taken, so that the supervisor knows that the
    /// pool is in use.
    PoolUsed,
}

/// A reply of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It listens.
    Pong(Pong),
    /// It has carried out the request, or has started to.
    Done,
    /// The lease belongs to the client that asked.
    Yours,
    /// It refuses the request.
    Refused {
        /// Why.
        why: String,
    },
}

/// A supervisor's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its process id.
    pub pid: u32,
    /// The release of its program.
    pub program: String,
    /// Its current activity.
    pub phase: Phase,
    /// The filter of its log.
    pub log: String,
}

/// The phases of a supervisor; see the diagram in [`crate::lifecycle::supervise`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// It makes the lease, or hands it over.
    Making,
    /// It keeps the lease as a pool member.
    Pooled,
    /// It watches the lease.
    Watching,
    /// It tears the lease down.
    Ending,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Making => "making",
            Self::Pooled => "pooled",
            Self::Watching => "watching",
            Self::Ending => "ending",
        })
    }
}

/// A request or reply with its version.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    what: T,
}

/// The part of a line that is read before the rest is interpreted.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// Why a line is not a request or a reply.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It could not be read, or not in time.
    #[error("nothing arrived in time")]
    Read(#[from] io::Error),
    /// It is truncated, or too long.
    #[error("the line is cut off or longer than {LINE_LIMIT} bytes")]
    Cut,
    /// It is not JSON, or none of the known documents.
    #[error("the line is malformed")]
    Malformed(#[from] serde_json::Error),
    /// It is of another version.
    #[error("unknown version {found}; this program speaks version {VERSION}")]
    Version {
        /// The version that it names.
        found: u32,
    },
}

/// Reads one line, version first.
pub(crate) fn read<T: for<'a> Deserialize<'a>>(from: &mut impl Read) -> Result<T, LineError> {
    let mut line = Vec::new();
    BufReader::new(from.take(LINE_LIMIT)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(LineError::Cut);
    }
    let Version { version } = serde_json::from_slice(&line)?;
    if version != VERSION {
        return Err(LineError::Version { found: version });
    }
    Ok(serde_json::from_slice::<Versioned<T>>(&line)?.what)
}

/// One line, its newline included.
pub(crate) fn line(message: impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Versioned {
        version: VERSION,
        what: message,
    })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
