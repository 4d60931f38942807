//! Why a run ended without the command's own exit code being enough of an answer, and with which exit code.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::provider::LeaseError;

/// Why a run ended without the command's own exit code being enough of an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunFailure {
    /// The command failed.
    #[error("remote command exited {0}")]
    Exited(u8),
    /// The connection broke.
    #[error("the connection to the lease was lost while the command ran; it may or may not have ended")]
    Lost,
    /// The machine went down under the command.
    #[error("the machine of the lease went down while the command ran")]
    MachineDown,
    /// The shell around the command was killed.
    #[error("the command was killed in the lease")]
    Killed,
    /// The user interrupted.
    #[error("interrupted{}", if *.stopped { "; the command in the lease was stopped" } else { "; the command in the lease may still run" })]
    Interrupted {
        /// Whether the remote processes are known to be gone.
        stopped: bool,
    },
    /// No run id could be drawn.
    #[error("cannot draw a run id")]
    Random(#[source] std::io::Error),
    /// A capture file cannot be made.
    #[error("cannot write {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The lease could not be given back after a run that worked.
    #[error("lease cleanup failed for {id}")]
    Cleanup {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: LeaseError,
    },
}

impl Fault for RunFailure {
    fn kind(&self) -> Kind {
        match self {
            Self::Exited(code) => Kind::Passthrough(*code),
            // What ssh itself exits with when its connection breaks.
            Self::Lost | Self::MachineDown => Kind::Passthrough(255),
            // 128 and the signal's number, as shells have it.
            Self::Killed => Kind::Passthrough(137),
            Self::Interrupted { .. } => Kind::Passthrough(130),
            Self::Cleanup { .. } => Kind::Remote,
            Self::Random(_) | Self::Capture { .. } => Kind::Usage,
        }
    }
}
