//! What the supervisor tells the command line that waits for it: one JSON line an event, on a pipe.
//!
//! A failure crosses the pipe as text with its kind, because the error values themselves cannot. After `ready` nothing more
//! is written, so that a command line which has gone away never blocks the supervisor.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// The guest says that it is ready.
    Ready(Ready),
    /// The lease is the command line's, its record says `ready`, and the supervisor watches it.
    Watching,
    /// It did not work, and what was made has been taken back.
    Failed(Failure),
}

/// A stage of the acquisition and what it took.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// Its name: `allocate`, `key`, `disk`, `network`, `vmm`, `boot`.
    pub name: String,
    /// Microseconds.
    pub micros: u64,
    /// Whose time it was.
    pub whose: Whose,
}

/// Who spent the time of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
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
    /// Where the shared SSH connection's socket belongs.
    pub control: PathBuf,
    /// Stages that the guest itself reported, with its uptime in milliseconds at their end.
    pub guest_stages: Vec<(String, u64)>,
}

/// A failure in a form that crosses the pipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code that stands for its kind.
    pub exit_code: u8,
    /// The message.
    pub message: String,
    /// The causes, outermost first.
    pub causes: Vec<String>,
    /// What the user can do.
    pub hints: Vec<String>,
    /// The end of the guest's console, if it had one.
    pub console: Vec<String>,
    /// Steps of the rollback that did not work.
    pub leftovers: Vec<String>,
    /// Whether the machine itself ended while it booted: a fresh one may well come up.
    #[serde(default)]
    pub machine_ended: bool,
}

impl Failure {
    /// Puts an error into words.
    pub fn of(error: &dyn Fault, console: Vec<String>, leftovers: Vec<String>) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self {
            exit_code: error.kind().exit_code(),
            message: error.to_string(),
            causes,
            hints: error.hints(),
            console,
            leftovers,
            machine_ended: false,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.exit_code {
            2 => Kind::Usage,
            4 => Kind::NotFound,
            5 => Kind::Unavailable,
            6 => Kind::Sync,
            7 => Kind::Remote,
            _ => Kind::General,
        }
    }
}
