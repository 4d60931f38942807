//! Why an operation on a remote lease failed: on the host, or with our files for it.
//!
//! Facts and hints only.

use crabbox_core::fault::{self, Kind};
use crabbox_host::files;
use crabbox_machine::lease::find::NameError;
use crabbox_machine::resource::connection::ConnectionError;
use crabbox_ssh::keys;
use crabbox_store::claims::ClaimError;

use crate::fleet::address::{HostError, KvmHost};
use crate::fleet::client::FleetError;
use crate::provider::error::LeaseError;

/// Why an operation on a remote lease failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The host failed.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The claims cannot be read or changed.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// Files here cannot be written or removed.
    #[error(transparent)]
    Files(#[from] files::FileError),
    /// The keys cannot be made or written.
    #[error("cannot make the lease's SSH keys")]
    Keys(#[from] keys::KeyError),
    /// Several leases have the name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It has no usable connection data.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The key is on another machine, from which the lease was made.
    #[error("the key of lease {id} on {host} is not on this machine: only the one that made it can enter it")]
    KeyElsewhere {
        /// The lease.
        id: String,
        /// Its host.
        host: KvmHost,
    },
    /// The host reports the lease as missing, but does not take us for its owner.
    #[error("lease {id} on {host} belongs to owner {owner:?}, but the host identifies our key as {now:?}")]
    AnotherOwner {
        /// The lease.
        id: String,
        /// Its host.
        host: KvmHost,
        /// Its owner.
        owner: String,
        /// Whom the host takes us for.
        now: String,
    },
    /// The conversation broke off when the lease may already have been ours.
    #[error("lease {id} on {host}: the connection was lost before the host confirmed the claim")]
    Unheard {
        /// The lease.
        id: String,
        /// Its host.
        host: KvmHost,
        /// Why.
        #[source]
        source: Box<LeaseError>,
    },
    /// Its host behind a gateway is down.
    #[error("lease {id} on {host} is lost ({how})")]
    Lost {
        /// The lease.
        id: String,
        /// Its host.
        host: KvmHost,
        /// How its job ended, in the scheduler's word.
        how: String,
        /// The error of the request to the host.
        #[source]
        source: Box<LeaseError>,
    },
    /// The requested slug is not valid.
    #[error(transparent)]
    Slug(#[from] crabbox_core::id::SlugError),
    /// The shared connection could not be closed.
    #[error("cannot end the shared SSH connection of lease {id}")]
    Close {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: crabbox_ssh::master::ExitError,
    },
}

impl RemoteError {
    /// The lease `id` is lost with its host, which failed with `source`; `how` is the scheduler's word.
    pub(super) fn lost(id: &str, host: &KvmHost, how: &str, source: LeaseError) -> Self {
        Self::Lost {
            id: id.to_owned(),
            host: host.clone(),
            how: how.to_lowercase(),
            source: Box::new(source),
        }
    }

    fn fault(&self) -> Option<&dyn fault::Fault> {
        match self {
            Self::Fleet(error) => Some(error),
            Self::Name(error) => Some(error),
            _ => None,
        }
    }
}

impl fault::Fault for RemoteError {
    fn kind(&self) -> Kind {
        match (self.fault(), self) {
            (Some(fault), _) => fault.kind(),
            (
                None,
                Self::KeyElsewhere { .. }
                | Self::AnotherOwner { .. }
                | Self::Unheard { .. }
                | Self::Lost { .. },
            ) => Kind::Unavailable,
            (None, Self::Close { .. }) => Kind::Remote,
            (None, _) => Kind::Usage,
        }
    }

    fn connectivity(&self) -> Option<fault::Connectivity> {
        self.fault().and_then(fault::Fault::connectivity)
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::KeyElsewhere { id, .. } => {
                vec![format!("`crabbox stop {id}` releases it from here, too")]
            }
            Self::AnotherOwner { id, owner, .. } => vec![format!(
                "its key and claim are kept here; the administrator of that host may have renamed {owner:?}, or can stop {id} there"
            )],
            Self::Unheard { id, .. } => vec![
                format!("its key and claim are kept here: `crabbox status {id}` asks the host"),
                format!(
                    "`crabbox stop {id}` releases it, or removes its key and claim here if it is gone there"
                ),
            ],
            Self::Lost { id, .. } => vec![format!(
                "`crabbox stop {id}` removes its key and claim here; its host removes the rest when it is up again"
            )],
            _ => self.fault().map_or_else(Vec::new, fault::Fault::hints),
        }
    }
}

impl From<RemoteError> for LeaseError {
    fn from(error: RemoteError) -> Self {
        Self::new(error)
    }
}

impl From<FleetError> for LeaseError {
    fn from(error: FleetError) -> Self {
        RemoteError::from(error).into()
    }
}

impl From<HostError> for LeaseError {
    fn from(error: HostError) -> Self {
        FleetError::from(error).into()
    }
}
