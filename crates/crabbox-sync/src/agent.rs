//! The far side of a sync: `agent.py`, sent along with every call, and what it answers.
//!
//! Nothing is installed in the lease. What comes back was written by a machine that runs foreign code: it is bounded and
//! checked, and it must never make this side do more than send files of the manifest.

use std::time::Duration;

use crabbox_host::command::CommandError;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;

const PROGRAM: &str = include_str!("agent.py");

/// Reads the program from standard input and runs it; one line without quotes, so that every login shell takes it.
const BOOTSTRAP: &str =
    "exec python3 -IS -c 'import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))'";

/// OpenSSH's exit status when the connection, not the command, failed.
const SSH_FAILED: i32 = 255;

/// One step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) step: Step,
    /// `<workRoot>/<leaseID>`.
    pub(crate) lease_dir: &'a str,
    /// The directory in it.
    pub(crate) name: &'a str,
    pub(crate) fingerprint: &'a str,
    /// Prune what earlier syncs brought and the manifest has no more.
    pub(crate) delete: bool,
    /// Remove the workdir first.
    pub(crate) reset: bool,
    /// Do not believe the index: everything is to be compared by rsync.
    pub(crate) distrust: bool,
    /// A check said "differs" a moment ago.
    pub(crate) checked: bool,
}

#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// Is it in sync? Changes nothing.
    Check,
    /// Make ready for rsync; the manifest follows the request.
    Prepare,
    /// Write down what rsync left.
    Finalize,
}

/// What the far side says.
#[derive(Debug, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum Reply {
    /// Nothing to do.
    Same,
    /// Send a prepare.
    Differs,
    /// Send these entries of the manifest, by their place in it.
    Stale {
        #[serde(default)]
        all: bool,
        #[serde(default)]
        stale: Vec<usize>,
    },
    /// Written down; these entries are not as they were to be.
    Done {
        #[serde(default)]
        unsettled: Vec<usize>,
    },
    /// A step could not be done.
    Failed { why: String },
}

/// Why a step on the far side gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// ssh could not be run, or took too long.
    #[error("cannot reach the lease to compare its files")]
    Run {
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// The connection failed.
    #[error("the connection to the lease failed: {said}")]
    Connection {
        /// The end of what ssh said.
        said: String,
    },
    /// The lease has no python3.
    #[error("the lease has no python3, which a sync needs there: install it in the image, or pass --no-sync")]
    NoPython,
    /// The far side broke off.
    #[error("the lease's side of the sync ended with exit code {code}: {said}")]
    Broke {
        /// Its exit code.
        code: i32,
        /// The last line it said.
        said: String,
    },
    /// The answer is not an answer.
    #[error("the lease's side of the sync answered {text:?}")]
    Nonsense {
        /// The beginning of the answer.
        text: String,
    },
}

/// Calls the far side; a failed connection is tried once more, since no step is harmed by being done twice.
pub(crate) fn call(
    channel: &Channel,
    request: &Request<'_>,
    payload: &[u8],
    limit: Option<Duration>,
) -> Result<Reply, AgentError> {
    match call_once(channel, request, payload, limit) {
        Err(AgentError::Connection { .. }) => call_once(channel, request, payload, limit),
        other => other,
    }
}

fn call_once(
    channel: &Channel,
    request: &Request<'_>,
    payload: &[u8],
    limit: Option<Duration>,
) -> Result<Reply, AgentError> {
    let header = serde_json::to_string(request).map_err(|error| AgentError::Nonsense {
        text: error.to_string(),
    })?;
    let mut input = format!("{}\n{PROGRAM}{header}\n", PROGRAM.len()).into_bytes();
    input.extend_from_slice(payload);
    let mut command = channel.command(BOOTSTRAP).stdin(input);
    if let Some(limit) = limit {
        command = command.limit(limit);
    }
    let out = command.capture().map_err(|source| AgentError::Run { source })?;
    let said = || {
        out.stderr_text()
            .lines()
            .last()
            .unwrap_or("no message")
            .trim()
            .to_owned()
    };
    match out.status.code() {
        Some(0) => serde_json::from_slice(&out.stdout).map_err(|_| AgentError::Nonsense {
            text: out.stdout_text().chars().take(200).collect(),
        }),
        Some(SSH_FAILED) => Err(AgentError::Connection { said: said() }),
        Some(127) => Err(AgentError::NoPython),
        code => Err(AgentError::Broke {
            code: code.unwrap_or(-1),
            said: said(),
        }),
    }
}
