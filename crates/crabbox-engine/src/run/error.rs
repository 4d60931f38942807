//! Why a run failed, and with which exit code: the error of the failed step, or the command's own end.

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
    /// The request is not valid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A file of variables cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The tree could not be synced.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// There is no lease for it.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The lease has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The lease could not be refreshed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The tree could not be locked for this run.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// An operation in the lease failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The command succeeded, but its results fail the run.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// The evidence could not be written.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The command failed, or another step of the run.
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

/// Why a run failed although its command succeeded.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// A required file is missing.
    #[error("missing required artifact: {pattern}")]
    Missing {
        /// Its pattern.
        pattern: String,
    },
    /// A file with a schema could not be fetched.
    #[error("require artifact schema: fetch {remote}: {why}")]
    Unfetched {
        /// The file.
        remote: String,
        /// The reason.
        why: String,
    },
    /// A file violates its schema.
    #[error("artifact schema validation failed: {remote} ({checks})")]
    Schema {
        /// The file.
        remote: String,
        /// How many checks failed.
        checks: String,
    },
    /// A file was not downloaded because it violates its schema.
    #[error("{remote} was not downloaded: it does not satisfy its schema")]
    Withheld {
        /// The file.
        remote: String,
    },
    /// A required file exists, but cannot be read.
    #[error("required artifact cannot be read: {pattern}")]
    Unreadable {
        /// Its pattern.
        pattern: String,
    },
    /// The policy found no test report.
    #[error("JUnit results policy: no test report was found")]
    NoReport,
    /// The reports have no tests, so nothing shows that any passed.
    #[error("JUnit results policy: the test reports have no tests")]
    NoTests,
    /// A report could not be read, so its content is unknown.
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
            Self::Missing { .. }
            | Self::Unfetched { .. }
            | Self::Schema { .. }
            | Self::Withheld { .. }
            | Self::Unreadable { .. } => Kind::Remote,
            Self::Tests { .. } | Self::NoReport | Self::NoTests | Self::Unread => Kind::General,
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
                "the user that the command runs as in the lease may not read it: change its owner or mode there (chown, chmod)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// Why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A document could not be serialized.
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

/// Why the timings were not appended.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// They could not be serialized.
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
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for RecordError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Why a run failed in a way that the command's exit code alone does not tell.
#[derive(Debug, thiserror::Error)]
pub enum RunFailure {
    /// The command failed.
    #[error("remote command exited {0}")]
    Exited(u8),
    /// The connection broke.
    #[error("the connection to the lease was lost while the command ran; it may or may not have ended")]
    Lost,
    /// Another command gave the lease back while this one ran, which closed the connection.
    #[error(
        "lease {id} was released by another command while this one ran in it; it may or may not have ended"
    )]
    GivenBack {
        /// The lease.
        id: String,
    },
    /// The machine went down while the command ran.
    #[error("the machine of the lease went down while the command ran")]
    MachineDown,
    /// Our program in the lease, which had started the command, ended.
    #[error("crabbox's agent in the lease ended while the command ran; the command may still run")]
    Killed,
    /// The user interrupted.
    #[error("interrupted{}", if *.stopped { "; the command in the lease was stopped" } else { "; the command in the lease may still run" })]
    Interrupted {
        /// Whether the remote processes are known to be gone.
        stopped: bool,
    },
    /// Whoever read the command's output has gone.
    #[error("nobody reads the output any more{}", if *.stopped { "; the command in the lease was stopped" } else { "; the command in the lease may still run" })]
    Unread {
        /// Whether the remote processes are known to be gone.
        stopped: bool,
    },
    /// No run id could be drawn.
    #[error("cannot generate a run id")]
    Random(#[source] std::io::Error),
    /// A capture file cannot be created.
    #[error("cannot write {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The lease could not be given back after a successful run.
    #[error("lease cleanup failed for {id}")]
    Cleanup {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: LeaseError,
    },
}

/// What becomes of a command that may still run.
const LEFT: &str =
    "if the lease is kept, the next run in it ends what is left of the command before it begins";

impl Fault for RunFailure {
    fn kind(&self) -> Kind {
        match self {
            Self::Exited(code) => Kind::Passthrough(*code),
            // The exit code of ssh itself when its connection breaks.
            Self::Lost | Self::GivenBack { .. } | Self::MachineDown => Kind::Passthrough(255),
            // 128 plus the signal's number, as in shells.
            Self::Killed => Kind::Passthrough(137),
            Self::Interrupted { .. } => Kind::Passthrough(130),
            // 128 plus the number of SIGPIPE, of which such a command would have died here.
            Self::Unread { .. } => Kind::Passthrough(141),
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

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Cleanup { source, .. } => source.hints(),
            Self::Killed => {
                vec![format!(
                    "memory may have run out there (see `dmesg` in the lease); {LEFT}"
                )]
            }
            Self::Interrupted { stopped: false } | Self::Unread { stopped: false } => vec![LEFT.to_owned()],
            _ => Vec::new(),
        }
    }
}
