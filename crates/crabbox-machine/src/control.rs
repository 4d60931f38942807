//! How a lease's supervisor is asked: one request and one reply, a JSON document a line each, over a socket in the lease's directory.
//!
//! A reply is a courtesy and never a proof: nothing may be taken back, ended or kept because of what a supervisor says. What decides
//! is the lease's lock, its journal and the identity of its processes. A lease of an earlier release has no socket, and one whose
//! supervisor was killed a dead one: every caller can do without the reply.

pub mod client;
pub(crate) mod server;

use std::io::{self, BufRead as _, BufReader, Read};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The version of requests and replies.
pub const VERSION: u32 = 1;
/// How long a request and its reply may take together, on either side: nothing that is asked here takes longer than a moment.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest line, in bytes.
const LINE_LIMIT: u64 = 4096;

/// What a supervisor is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Whether it listens, and what it does.
    Ping,
    /// From now on its log gets what this filter lets through ([`crate::log_filter::LogFilter`]).
    LogLevel {
        /// The filter as `CRABBOX_LOG` spells it.
        filter: String,
    },
    /// To end the lease, as SIGTERM does: once it gets the lease's lock it takes back what is left then.
    End,
    /// To end the lease as long as it is nobody's: it was made ahead, or is being made so, and somebody wants the room that it takes.
    GiveWay,
    /// For the lease, which was made ahead for this pool: the first who asks gets it, and the connection goes on as that of a lease
    /// that is being made ([`crate::protocol`]).
    Claim {
        /// The pool's key.
        pool: String,
    },
    /// Nothing: it is told that a lease of its pool was taken, so that the pool is of use.
    PoolUsed,
}

/// What it replies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It listens.
    Pong(Pong),
    /// It has done, or begins to do, what it was asked.
    Done,
    /// The lease is the asker's.
    Yours,
    /// It does not.
    Refused {
        /// Why.
        why: String,
    },
}

/// What a supervisor says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its process.
    pub pid: u32,
    /// The release of its program.
    pub program: String,
    /// What it is at.
    pub phase: Phase,
    /// The filter of its log.
    pub log: String,
}

/// What a supervisor is at; the picture is in [`crate::lifecycle::supervise`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// It makes the lease, or hands it over.
    Making,
    /// It keeps the lease for whoever takes it.
    Pooled,
    /// It watches the lease.
    Watching,
    /// It takes the lease back.
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

/// What is read of a line before anything else in it means something.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// Why a line is no request or reply.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It could not be read, or not in time.
    #[error("nothing came, or not in time")]
    Read(#[from] io::Error),
    /// It ends in the middle, or is longer than any.
    #[error("the line is cut off or longer than {LINE_LIMIT} bytes")]
    Cut,
    /// It is not JSON, or none of the known documents.
    #[error("the line is malformed")]
    Malformed(#[from] serde_json::Error),
    /// It is of another version.
    #[error("version {found} is not known; this program speaks version {VERSION}")]
    Version {
        /// The version that it names.
        found: u32,
    },
}

/// Reads one line, version first.
fn read<T: for<'a> Deserialize<'a>>(from: &mut impl Read) -> Result<T, LineError> {
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
fn line(what: impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Versioned {
        version: VERSION,
        what,
    })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
