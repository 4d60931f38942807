//! Machines that are made before anyone requests them, for a template or a pool: how to request one, and how
//! that fails.
//!
//! Nothing here may make one; the caller does, who knows what it is for.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::random;
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::client::ClientError;
use crabbox_machine::request::AcquireRequest;

use crate::host::prepare::{self, NewLease, PrepareError};

/// Why an unclaimed machine was not made.
#[derive(Debug, thiserror::Error)]
pub enum UnownedError {
    /// This host cannot make a lease.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// It did not come up.
    #[error("{what}")]
    Machine {
        /// The consequence.
        what: String,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// No random bytes are available.
    #[error("cannot generate random bytes for a new machine")]
    Random(#[source] std::io::Error),
}

impl UnownedError {
    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Machine {
                source: ClientError::Failed(failure, _),
                ..
            } => &failure.console,
            _ => &[],
        }
    }
}

impl Fault for UnownedError {
    fn kind(&self) -> Kind {
        match self {
            Self::Prepare(error) => error.kind(),
            Self::Machine { source, .. } => source.kind(),
            Self::Random(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Prepare(error) => error.hints(),
            Self::Machine { source, .. } => source.hints(),
            Self::Random(_) => Vec::new(),
        }
    }
}

/// The request for a machine of `plan` that no user has requested.
pub(crate) fn request(engine: &Engine, plan: &FirecrackerPlan) -> Result<AcquireRequest, PrepareError> {
    let new = NewLease {
        slug: None,
        keep: false,
        reclaim: false,
        external: None,
    };
    prepare::request(engine, plan, &new)
}

/// A new lease id.
pub(crate) fn lease_id() -> Result<String, UnownedError> {
    let bytes = random::bytes().map_err(UnownedError::Random)?;
    Ok(LeaseId::from_random(bytes).to_string())
}
