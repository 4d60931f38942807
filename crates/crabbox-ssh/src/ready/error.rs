//! Why a machine is not ready or never will be.
//!
//! The wording of a timeout is the Go program's, because tools look for it. A message must never repeat its
//! source.

use std::io;

use crabbox_core::fault::Connectivity;

use super::Stage;
use crate::exec::{ExecError, RemoteStatus};
use crate::master::ConnectError;
use crate::port::PortFailure;

/// What went wrong at the last attempt.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The port.
    #[error(transparent)]
    Port(#[from] PortFailure),
    /// The login.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The session for the ready command.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The ready command.
    #[error("the ready command {}: {said}", describe(*.status))]
    Check {
        /// How it ended.
        status: RemoteStatus,
        /// The end of its standard error.
        said: String,
    },
}

/// Why a wait ended without a ready machine.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The deadline passed.
    #[error(
        "timed out waiting for SSH on {host} during {phase} ports={port}:{}; next_action={}",
        .stage.port(), next_action(.phase)
    )]
    TimedOut {
        /// The host.
        host: String,
        /// Its port.
        port: u16,
        /// What the wait was for.
        phase: String,
        /// How far it came.
        stage: Stage,
        /// What went wrong at the last attempt.
        #[source]
        last: Box<NotReady>,
    },
    /// Waiting longer cannot help: a wrong host key, or no ssh client.
    #[error("cannot log in to {host}")]
    Hopeless {
        /// The host.
        host: String,
        /// What is wrong.
        #[source]
        source: Box<NotReady>,
    },
    /// The machine is up but lacks something.
    #[error("{host} does not have what is needed")]
    Unfit {
        /// The host.
        host: String,
        /// What is wrong.
        #[source]
        source: Box<NotReady>,
    },
    /// The name of the host has no address.
    #[error("cannot find the address of {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled the wait.
    #[error("the wait for SSH on {host} was cancelled")]
    Cancelled {
        /// The host.
        host: String,
    },
}

impl ReadyError {
    /// What the error says about the connection; `None` if it is about what the machine lacks, or the wait
    /// was cancelled.
    pub fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::TimedOut { .. } => Some(Connectivity::TimedOut),
            Self::Hopeless { source, .. } => match &**source {
                NotReady::Connect(error) => error.connectivity(),
                NotReady::Exec(error) => error.connectivity(),
                NotReady::Port(_) | NotReady::Check { .. } => None,
            },
            Self::Resolve { .. } => Some(Connectivity::Hopeless),
            Self::Unfit { .. } | Self::Cancelled { .. } => None,
        }
    }

    /// How the ready command ended, if that is what failed. Only if it exited has it found something missing.
    pub fn of_the_check(&self) -> Option<RemoteStatus> {
        match self {
            Self::TimedOut { last: found, .. } | Self::Unfit { source: found, .. } => match **found {
                NotReady::Check { status, .. } => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The Go program's advice for a phase.
fn next_action(phase: &str) -> &'static str {
    match phase {
        "before sync" => "retry with --full-resync, then use a fresh lease if SSH still fails",
        "before command" => "retry the command, then stop or replace the lease if SSH still fails",
        _ => "check lease status, then stop or replace the lease if SSH stays unreachable",
    }
}

fn describe(status: RemoteStatus) -> String {
    match status {
        RemoteStatus::Exited(code) => format!("exited with {code}"),
        RemoteStatus::Killed => "was killed".to_owned(),
        RemoteStatus::ConnectionLost => "lost its connection".to_owned(),
        RemoteStatus::Cancelled { .. } => "was cancelled".to_owned(),
        RemoteStatus::TimedOut { .. } => "did not end in time".to_owned(),
    }
}
