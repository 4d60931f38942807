//! Why the adapter did not do what another program asked for.

use crabbox_core::fault::{Connectivity, Fault, Kind};

use crate::entry::EntryError;
use crate::provider::error::LeaseError;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No lease could be made.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The provider could not do it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// There is no such lease.
    #[error("lease not found: {text}")]
    NotFound {
        /// As it was named.
        text: String,
    },
    /// A slug of several leases.
    #[error("slug {slug:?} matches several leases: {}", .leases.join(", "))]
    Ambiguous {
        /// The slug.
        slug: String,
        /// Their ids.
        leases: Vec<String>,
    },
    /// A host that may have it cannot be asked.
    #[error("{host} cannot be asked for leases: {why}")]
    Away {
        /// The host.
        host: String,
        /// What became of asking it.
        why: String,
    },
    /// It is there, and was not made for another program.
    #[error("lease {id} was not made through the adapter, which leaves it alone")]
    NotTheirs {
        /// The lease.
        id: String,
    },
    /// It is not the lease that is meant.
    #[error("lease {id} is another one than expected: expected {field}={expected}, found {field}={found}")]
    Other {
        /// The lease.
        id: String,
        /// What differs.
        field: &'static str,
        /// What was expected.
        expected: String,
        /// What there is.
        found: String,
    },
    /// Somebody is just making it.
    #[error("lease {id} is being made")]
    BeingMade {
        /// The lease.
        id: String,
    },
    /// Its machine is gone.
    #[error("lease {id} has ended: state={state}")]
    Ended {
        /// The lease.
        id: String,
        /// Its state.
        state: String,
    },
    /// Its record cannot be read.
    #[error("the record of lease {id} cannot be used")]
    Unreadable {
        /// Its id here.
        id: String,
    },
    /// Whoever made it did not note whose it is.
    #[error("lease {id} was made by an earlier crabbox, which cannot note whose it is; it was given back")]
    Unnoted {
        /// Its id here.
        id: String,
    },
    /// The one who asked for it has gone.
    #[error("lease {id} was given back: {why}")]
    GivenBack {
        /// The lease.
        id: String,
        /// Why.
        why: &'static str,
    },
    /// Something was not removed.
    #[error("cleanup could not remove everything: {message}")]
    Cleanup {
        /// What was done.
        message: String,
    },
    /// This host cannot lease machines.
    #[error("this host cannot lease machines: {}", .problems.join("; "))]
    Problems {
        /// What is wrong, a check each.
        problems: Vec<String>,
    },
}

impl Fault for AdapterError {
    fn kind(&self) -> Kind {
        match self {
            Self::Entry(error) => error.kind(),
            Self::Lease(error) => error.kind(),
            Self::NotFound { .. } | Self::Ambiguous { .. } | Self::NotTheirs { .. } | Self::Other { .. } => {
                Kind::NotFound
            }
            Self::Away { .. }
            | Self::BeingMade { .. }
            | Self::Ended { .. }
            | Self::Unnoted { .. }
            | Self::GivenBack { .. } => Kind::Unavailable,
            Self::Unreadable { .. } => Kind::Usage,
            Self::Cleanup { .. } => Kind::Remote,
            Self::Problems { .. } => Kind::Problems,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::Entry(error) => error.connectivity(),
            Self::Lease(error) => error.connectivity(),
            _ => None,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Entry(error) => error.hints(),
            Self::Lease(error) => error.hints(),
            Self::Ended { .. } => vec!["give it back with the program that leased it".to_owned()],
            Self::Unreadable { id } => {
                vec![format!(
                    "`crabbox stop {id}` takes the lease back from its journal"
                )]
            }
            Self::Unnoted { .. } => {
                vec!["`crabbox pool drain` ends the leases that an earlier crabbox made ahead".to_owned()]
            }
            Self::Problems { .. } => {
                vec!["`crabbox doctor --provider firecracker` says how each is fixed".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}
