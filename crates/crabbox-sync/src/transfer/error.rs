//! Why the workdir in the lease could not be made equal to the manifest.
//!
//! A failure of the connection must never be reported as one of the sync.

use crabbox_ssh::agent_client::AgentError;

use super::PATH_MAX;
use crate::direct::DirectError;
use crate::rsync::RsyncError;

/// Why the workdir could not be made equal to the manifest.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Too many tracked files are gone.
    #[error(
        "{count} tracked files are missing from the working tree, which looks like an accident: \
         restore them, or set CRABBOX_ALLOW_MASS_DELETIONS=1 to delete them in the lease too"
    )]
    MassDeletion {
        /// How many.
        count: usize,
    },
    /// A path does not fit below the workdir.
    #[error("{path} is too long for the lease: with {workdir} before it, it exceeds {} bytes", PATH_MAX - 1)]
    PathTooLong {
        /// The path.
        path: String,
        /// The workdir.
        workdir: String,
    },
    /// The lease did not answer during the comparison.
    #[error("write sync manifests to {workdir}")]
    Compare {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: AgentError,
    },
    /// The lease's side could not prepare the sync.
    #[error("remote sync prune failed: {why}")]
    Prepare {
        /// The path and the reason.
        why: String,
    },
    /// The transfer failed.
    #[error("send files to {workdir}")]
    Rsync {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: RsyncError,
    },
    /// Files could not be sent.
    #[error("send files to {workdir}")]
    Direct {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: DirectError,
    },
    /// The record of what arrived could not be written.
    #[error("remote sync finalize failed: {why}")]
    Finalize {
        /// The path and the reason.
        why: String,
    },
    /// The lease did not answer when the sync was to be finished.
    #[error("finalize the sync of {workdir}")]
    FinalizeCall {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: AgentError,
    },
    /// The lease's side answered out of order.
    #[error("the lease's side of the sync of {workdir} answered out of order: {answer}")]
    OutOfOrder {
        /// The workdir.
        workdir: String,
        /// What it answered.
        answer: String,
    },
}

impl TransferError {
    /// Whether talking to the lease failed (exit code 7), rather than the sync itself failing (6).
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Compare { .. } | Self::OutOfOrder { .. })
    }

    /// Whether the connection to the lease broke; rsync says 12 or passes ssh's 255 on, see rsync(1).
    pub fn lost_connection(&self) -> bool {
        let answer = match self {
            Self::Compare { source, .. }
            | Self::FinalizeCall { source, .. }
            | Self::Direct {
                source: DirectError::Call { source },
                ..
            } => source,
            Self::Rsync {
                source: RsyncError::Failed { code, .. },
                ..
            } => return matches!(*code, 12 | 255),
            _ => return false,
        };
        matches!(answer, AgentError::Connection { .. })
    }
}
