//! Why the `firecracker` provider could not acquire a lease: its machine, its connection, or its claim
//! failed.
//!
//! Facts and hints only; nothing here decides whether to try again.

use crabbox_core::config::firecracker::InvalidFirecracker;
use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_machine::lease::find::ResolveError;
use crabbox_machine::lease::touch::TouchError;
use crabbox_machine::lifecycle::client::ClientError;
use crabbox_machine::lifecycle::release::ReleaseError;
use crabbox_ssh::ready;
use crabbox_store::leases::RecordError;

use crate::host::prepare::PrepareError;
use crate::host::setup;
use crate::provider::error::{LeaseError, Recovery};

/// Why no lease was acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireLeaseError {
    /// The machine was not made.
    #[error(transparent)]
    Machine(#[from] ClientError),
    /// The machine is up, but cannot be entered.
    #[error(
        "timed out waiting for SSH on {host} during bootstrap; next_action=check lease status, then stop or replace the lease if SSH stays unreachable"
    )]
    Ssh {
        /// The machine's address.
        host: String,
        /// The error of the last try.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine can be entered, but does not finish its own set-up.
    #[error(
        "timed out waiting for SSH on {host} during bootstrap (ready-check); next_action=check lease status, then stop or replace the lease if SSH stays unreachable"
    )]
    NotReady {
        /// The machine's address.
        host: String,
        /// What its ready check said last.
        #[source]
        source: Box<ready::NotReady>,
        /// The end of its console, if that is on this host.
        console: Vec<String>,
    },
    /// The record cannot be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record does not describe a usable lease.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It cannot be claimed.
    #[error(transparent)]
    Claim(#[from] TouchError),
    /// The remote client disconnected, or did not confirm that it claimed the lease.
    #[error("lease {id} was given up before it was claimed; it was removed")]
    GivenUp {
        /// The lease.
        id: String,
    },
    /// The user interrupted.
    #[error("interrupted while connecting to lease {id}; it was removed")]
    Interrupted {
        /// The lease.
        id: String,
    },
}

impl Fault for AcquireLeaseError {
    fn kind(&self) -> Kind {
        match self {
            Self::Machine(error) => error.kind(),
            Self::Ssh { .. } | Self::NotReady { .. } | Self::GivenUp { .. } | Self::Interrupted { .. } => {
                Kind::Unavailable
            }
            Self::Resolve(error) => error.kind(),
            Self::Record(_) | Self::Claim(_) => Kind::Usage,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        matches!(self, Self::Ssh { .. } | Self::NotReady { .. }).then_some(Connectivity::TimedOut)
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Machine(error) => error.hints(),
            Self::Resolve(error) => error.hints(),
            Self::Ssh { .. } => vec!["a slow host needs a larger firecracker.launchTimeout".to_owned()],
            Self::NotReady { .. } => vec![
                "the image must have git, rsync, curl and jq, or be able to install them; with `--firecracker-launch-timeout` it gets more time".to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

impl AcquireLeaseError {
    /// Whether another try may succeed: the machine ended while it booted, and nothing of it is left.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Machine(ClientError::Failed(failure, _)) if failure.machine_ended && failure.leftovers.is_empty())
    }

    /// Whether a boot may succeed where a restore failed, or where the restored machine cannot be entered.
    /// Nothing of it may be left.
    pub fn is_of_restoring(&self) -> bool {
        match self {
            Self::Machine(ClientError::Failed(failure, _)) => {
                failure.not_restored && failure.leftovers.is_empty()
            }
            Self::Ssh { .. } => true,
            _ => false,
        }
    }

    /// Whether the template is at fault.
    pub fn blames_template(&self) -> bool {
        matches!(self, Self::Machine(ClientError::Failed(failure, _)) if failure.blames_template)
    }

    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Machine(ClientError::Failed(failure, _)) => &failure.console,
            Self::NotReady { console, .. } => console,
            _ => &[],
        }
    }
}

impl From<AcquireLeaseError> for LeaseError {
    fn from(error: AcquireLeaseError) -> Self {
        let remedy = error.is_passing().then_some(Recovery::Again);
        let console = error.console().to_vec();
        Self::new(error).with_remedy(remedy).with_console(console)
    }
}

impl From<PrepareError> for LeaseError {
    fn from(error: PrepareError) -> Self {
        let remedy = setup::is_missing(&error).then_some(Recovery::SetUp);
        Self::new(error).with_remedy(remedy)
    }
}

impl From<InvalidFirecracker> for LeaseError {
    fn from(error: InvalidFirecracker) -> Self {
        Self::new(error)
    }
}

impl From<ResolveError> for LeaseError {
    fn from(error: ResolveError) -> Self {
        Self::new(error)
    }
}

impl From<ReleaseError> for LeaseError {
    fn from(error: ReleaseError) -> Self {
        Self::new(error)
    }
}
