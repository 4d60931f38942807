//! Why the adapter failed.

use crabbox_core::fault::{Connectivity, Fault, Kind};

use crate::entry::EntryError;
use crate::provider::error::LeaseError;

/// Why the adapter failed.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No lease could be made.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The provider failed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// There is no such lease.
    #[error("lease not found: {text}")]
    NotFound {
        /// As it was named in the request.
        text: String,
    },
    /// The slug matches several leases.
    #[error("slug {slug:?} matches several leases: {}", .leases.join(", "))]
    Ambiguous {
        /// The slug.
        slug: String,
        /// Their ids.
        leases: Vec<String>,
    },
    /// A host that may have the lease cannot be asked.
    #[error("cannot ask {host} for its leases: {why}")]
    UnreachableHost {
        /// The host.
        host: String,
        /// Why asking it failed.
        why: String,
    },
    /// The lease exists, but was not made through the adapter.
    #[error("lease {id} was not made through the adapter, which leaves it alone")]
    NotTheirs {
        /// The lease.
        id: String,
    },
    /// The lease is not the expected one.
    #[error("lease {id} is not the expected one: expected {field}={expected}, found {field}={found}")]
    Other {
        /// The lease.
        id: String,
        /// Which field differs.
        field: &'static str,
        /// The expected value.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// The lease is still being made.
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
    /// The requester went away, so the lease was given back.
    #[error("lease {id} was released: {why}")]
    GivenBack {
        /// The lease.
        id: String,
        /// Why.
        why: &'static str,
    },
    /// Some leftovers could not be removed.
    #[error("cleanup could not remove everything: {message}")]
    Cleanup {
        /// A summary of what was done.
        message: String,
    },
    /// This host cannot lease machines.
    #[error("this host cannot lease machines: {}", .problems.join("; "))]
    Problems {
        /// One entry per failed check.
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
            Self::UnreachableHost { .. }
            | Self::BeingMade { .. }
            | Self::Ended { .. }
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
            Self::Ended { .. } => vec!["release it with the program that leased it".to_owned()],
            Self::Unreadable { id } => {
                vec![format!("`crabbox stop {id}` removes the lease by its journal")]
            }
            Self::Problems { .. } => {
                vec!["`crabbox doctor --provider firecracker` says how to fix each of them".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}
