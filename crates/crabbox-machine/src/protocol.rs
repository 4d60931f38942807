//! The protocol of an acquisition: request, events, ready, claimed. Each message is one line of JSON.
//!
//! ```text
//!  client                                              supervisor
//!    {"version":1,"acquire":{..}}  ───────────────>
//!                                  <───────────────   {"event":"allocated",..}, {"event":"stage",..} ...
//!                                  <───────────────   {"event":"ready",..}
//!    {"message":"claimed"}         ───────────────>
//!                                  <───────────────   {"event":"watching"}
//!                 or instead       <───────────────   {"event":"frozen",..}: a template was made, and no lease
//!                                  <───────────────   {"event":"pooled"}: a lease was made ahead, and waits until a client takes it
//!                 at any time      <───────────────   {"event":"failed",..}: it is the last
//! ```
//! The transport is the two pipes of a child process, or the control socket of a pool member that a client takes
//! (`control.rs`); nothing here may depend on which. A failure is sent as text with its kind, because error values
//! cannot be sent. A client that goes away before `claimed` gives the lease up. The first message contains the version:
//! an unknown version is refused by name, and nothing is made. After `watching` nothing is written, so that a client
//! that has gone away never blocks the supervisor.

use std::io::{BufRead, Read as _};
use std::path::PathBuf;

use crabbox_core::fault::{self, Fault, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::request::AcquireRequest;
use crate::resource::identity::Identity;

/// The hidden command that runs this program as a supervisor.
pub(crate) const SUPERVISE: &str = "__supervise";
/// The hidden command that runs this program to fill a pool; its input is the first message, a request for a lease of
/// that pool.
pub(crate) const FILL: &str = "__fill";
/// The version of this protocol. Increase it when an older reader would misunderstand a changed message; a new optional
/// field needs no increase.
pub const VERSION: u32 = 1;
/// The longest line from a client, in bytes; a request is a few KiB.
const LINE_LIMIT: u64 = 1 << 20;

/// The first message: version and request.
#[derive(Debug, Serialize)]
struct Opening<'a> {
    version: u32,
    acquire: &'a AcquireRequest,
}

/// The part of a first message that is read before the rest is interpreted.
#[derive(Debug, Deserialize)]
struct Versioned {
    version: Option<u32>,
}

/// The rest of it.
#[derive(Debug, Deserialize)]
struct Opened {
    acquire: AcquireRequest,
}

/// A message from the client after its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// The lease has been entered and claimed: it belongs to the client.
    Claimed,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It could not be read.
    #[error("cannot read the lease request")]
    Read(#[source] std::io::Error),
    /// It is truncated, or too long.
    #[error("the lease request is cut off or longer than {LINE_LIMIT} bytes")]
    Cut,
    /// It is not JSON, or lacks a field.
    #[error("the lease request is malformed")]
    Malformed(#[source] serde_json::Error),
    /// It is of another version of the protocol.
    #[error("the lease request has protocol version {found}, but this program speaks version {VERSION}")]
    Version {
        /// The version that it names.
        found: u32,
    },
    /// It contains no version.
    #[error("the lease request names no protocol version")]
    Unversioned,
}

impl Fault for RequestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read(_) => Kind::General,
            Self::Cut | Self::Malformed(_) | Self::Version { .. } | Self::Unversioned => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Version { .. } | Self::Unversioned => {
                vec!["both ends must be of the same release; was crabbox just updated?".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// The first line from a client, including its newline.
pub fn opening(request: &AcquireRequest) -> Result<Vec<u8>, serde_json::Error> {
    line(&Opening {
        version: VERSION,
        acquire: request,
    })
}

/// A message as its line, including the newline.
pub fn line(message: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a client's first line.
pub fn read_request(input: &mut impl BufRead) -> Result<AcquireRequest, RequestError> {
    let mut line = Vec::new();
    input
        .take(LINE_LIMIT)
        .read_until(b'\n', &mut line)
        .map_err(RequestError::Read)?;
    if line.last() != Some(&b'\n') {
        return Err(RequestError::Cut);
    }
    // Check the version first: the rest of a message of another version must not be interpreted.
    let opening: Versioned = serde_json::from_slice(&line).map_err(RequestError::Malformed)?;
    match opening.version {
        Some(VERSION) => {}
        Some(found) => return Err(RequestError::Version { found }),
        None => return Err(RequestError::Unversioned),
    }
    let opened: Opened = serde_json::from_slice(&line).map_err(RequestError::Malformed)?;
    Ok(opened.acquire)
}

/// Reads a message that a client sends after its request; `None` at end of input, and for anything that is not a
/// message.
pub(crate) fn read_message(input: &mut impl BufRead) -> Option<Message> {
    let mut line = Vec::new();
    input.take(LINE_LIMIT).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

/// One event of a lease being made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The lease has an id, a slug and a directory.
    Allocated {
        /// Its slug.
        slug: String,
        /// Its machine's name.
        name: String,
    },
    /// A stage is over.
    Stage(Stage),
    /// The lease is made without something that is not required.
    Warning {
        /// What is missing, and why.
        text: String,
    },
    /// The guest reports that it is ready.
    Ready(Ready),
    /// The parts of a template are in their directory, and the machine that they come from was torn down: there is no
    /// lease.
    Frozen {
        /// What could not be removed of that machine.
        leftovers: Vec<String>,
    },
    /// The lease waits in its pool; the client that asked for it need not stay.
    Pooled,
    /// The lease belongs to the command line, its record says `ready`, and the supervisor watches it.
    Watching,
    /// The lease could not be made, and was rolled back.
    Failed(Failure),
}

/// The name of the stage in which a lease gets its volumes; it does not count towards the launch time.
pub const VOLUMES: &str = "volumes";

/// A stage of the acquisition and what it took.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// Its name: `allocate`, `key`, `disk`, `network`, `vmm`, `boot`.
    pub name: String,
    /// Microseconds.
    pub micros: u64,
    /// Whose time it was.
    pub whose: StageSide,
}

/// Who spent the time of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageSide {
    /// crabbox itself and the helpers it runs.
    Ours,
    /// Firecracker: process start and its API.
    Firecracker,
    /// The guest, from its first instruction to `ready`.
    Guest,
    /// The SSH handshake.
    Ssh,
    /// Ours, done while the guest booted: it adds nothing to the whole.
    Meanwhile,
}

/// What the command line needs to enter the lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Address of the guest as the host reaches it.
    pub address: String,
    /// The lease's private key.
    pub key: PathBuf,
    /// The file in which its host key is pinned.
    pub known_hosts: PathBuf,
    /// Path for the shared SSH connection's socket.
    pub control: PathBuf,
    /// Stages that the guest itself reported, with its uptime in milliseconds at their end.
    pub guest_stages: Vec<(String, u64)>,
    /// The identity of the guest, if it was restored from a template and got its identity now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// A failure in a form that crosses the pipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// The message.
    pub message: String,
    /// The causes, outermost first.
    pub causes: Vec<String>,
    /// What the user can do.
    pub hints: Vec<String>,
    /// The end of the guest's console, if it had one.
    pub console: Vec<String>,
    /// Steps of the rollback that failed.
    pub leftovers: Vec<String>,
    /// Whether the machine itself ended while it booted, so that another attempt may succeed.
    #[serde(default)]
    pub machine_ended: bool,
    /// Whether a restore from a template failed, so that an ordinary boot may succeed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub not_restored: bool,
    /// Whether the template itself is the cause, and not for instance a full disk.
    #[serde(default, skip_serializing_if = "is_false")]
    pub blames_template: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Failure {
    /// Describes an error in words.
    pub fn of(error: &dyn Fault, console: Vec<String>, leftovers: Vec<String>) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
            causes: fault::causes(error).map(ToString::to_string).collect(),
            hints: error.hints(),
            console,
            leftovers,
            machine_ended: false,
            not_restored: false,
            blames_template: false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
