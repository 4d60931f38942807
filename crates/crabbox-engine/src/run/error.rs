//! Why a run failed, and with which exit code: the error of the step that failed, or how the command ended.

use std::path::PathBuf;

use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_host::place::PlaceError;
use crabbox_machine::lease::find::ResolveError;
use crabbox_workspace::command::RemoteError;
use crabbox_workspace::env_profile::ProfileError;
use crabbox_workspace::owner::OwnerError;
use crabbox_workspace::sync::SyncError;

use crate::entry::EntryError;
use crate::provider::error::LeaseError;
pub use crate::run::evidence::EvidenceError;
use crate::run::request::RequestError;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request makes no sense.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A file of variables gives none.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The tree could not be brought.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// There is no lease.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The lease has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The lease could not be refreshed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The tree is not ours.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Something that is done over there could not be done.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The command did its work, and its results do not let the run pass.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// There is no evidence of it.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// How the command ended, and what else can go wrong with a run.
    #[error(transparent)]
    Failure(#[from] RunFailure),
    /// Its timings could not be appended.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl RunError {
    fn fault(&self) -> &dyn Fault {
        match self {
            Self::Request(error) => error,
            Self::Profile(error) => error,
            Self::Sync(error) => error,
            Self::Entry(error) => error,
            Self::Resolve(error) => error,
            Self::Lease(error) => error,
            Self::Owner(error) => error,
            Self::Remote(error) => error,
            Self::Result(error) => error,
            Self::Evidence(error) => error,
            Self::Failure(error) => error,
            Self::Record(error) => error,
        }
    }
}

impl Fault for RunError {
    fn kind(&self) -> Kind {
        self.fault().kind()
    }

    fn connectivity(&self) -> Option<Connectivity> {
        self.fault().connectivity()
    }

    fn hints(&self) -> Vec<String> {
        self.fault().hints()
    }
}

/// Why a run whose command succeeded failed.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// A file that had to be there is not.
    #[error("missing required artifact: {pattern}")]
    Missing {
        /// Its pattern.
        pattern: String,
    },
    /// A file that has to satisfy a schema could not be had.
    #[error("require artifact schema: fetch {remote}: {why}")]
    Unfetched {
        /// The file.
        remote: String,
        /// Why not.
        why: String,
    },
    /// A file does not satisfy its schema.
    #[error("artifact schema validation failed: {remote} ({checks})")]
    Schema {
        /// The file.
        remote: String,
        /// How many checks failed.
        checks: String,
    },
    /// A file that had to come is there and cannot be read.
    #[error("required artifact cannot be read: {pattern}")]
    Unreadable {
        /// Its pattern.
        pattern: String,
    },
    /// The policy has nothing to go by.
    #[error("JUnit results policy: no test report was found")]
    NoReport,
    /// A report could not be read, so nobody knows what it says.
    #[error("JUnit results policy: not every test report could be read")]
    Unread,
    /// Tests failed.
    #[error("JUnit results contain {failures} failures and {errors} errors")]
    Tests {
        /// Tests that failed.
        failures: u64,
        /// Tests that could not be run.
        errors: u64,
    },
}

impl Fault for ResultError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. } | Self::Unfetched { .. } | Self::Schema { .. } | Self::Unreadable { .. } => {
                Kind::Remote
            }
            Self::Tests { .. } | Self::NoReport | Self::Unread => Kind::General,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoReport => vec![
                "--junit names reports or patterns of them, --results-auto finds those of the usual names; without \
                 results.failOnFailures a run goes by its exit code alone"
                    .to_owned(),
            ],
            Self::Unreadable { .. } => vec![
                "who the command runs as in the lease is not who may read it: give it to that user there (chown, chmod)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A document could not be written down.
    #[error("cannot describe the run")]
    Json(#[from] serde_json::Error),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] RemoteError),
}

impl Fault for BundleError {
    fn kind(&self) -> Kind {
        Kind::General
    }
}

/// Why timings were not appended.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// They could not be written down.
    #[error("cannot describe the run")]
    Json(#[from] serde_json::Error),
    /// Their file could not be opened.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Their file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for RecordError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Why a run ended without the command's own exit code being enough of an answer.
#[derive(Debug, thiserror::Error)]
pub enum RunFailure {
    /// The command failed.
    #[error("remote command exited {0}")]
    Exited(u8),
    /// The connection broke.
    #[error("the connection to the lease was lost while the command ran; it may or may not have ended")]
    Lost,
    /// Somebody gave the lease back under the command, and with it went the connection.
    #[error(
        "lease {id} was given back by another command while this one ran in it; it may or may not have ended"
    )]
    GivenBack {
        /// The lease.
        id: String,
    },
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
            Self::Lost | Self::GivenBack { .. } | Self::MachineDown => Kind::Passthrough(255),
            // 128 and the signal's number, as shells have it.
            Self::Killed => Kind::Passthrough(137),
            Self::Interrupted { .. } => Kind::Passthrough(130),
            Self::Cleanup { .. } => Kind::Remote,
            Self::Random(_) | Self::Capture { .. } => Kind::Usage,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::Lost | Self::GivenBack { .. } | Self::MachineDown => Some(Connectivity::Lost),
            Self::Cleanup { source, .. } => source.connectivity(),
            _ => None,
        }
    }
}
