//! Keeps a lease alive without doing anything in it: `crabbox heartbeat`.
//!
//! Only a lease that is claimed here is kept alive: an unclaimed lease must be able to expire.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;
use crabbox_machine::lease::find::Purpose;
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::places::Places;

use crate::provider::Provider;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;

/// Why a lease was not kept alive.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// The lease does not exist, or could not be refreshed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// It has no claim, or the claim with its id is another provider's.
    #[error("lease {id} is not claimed for provider={provider}; refusing heartbeat")]
    NotClaimed {
        /// The lease.
        id: String,
        /// Its provider.
        provider: &'static str,
    },
    /// It has ended.
    #[error("lease {id} is in terminal state {state}")]
    Terminal {
        /// The lease.
        id: String,
        /// Its state.
        state: LeaseState,
    },
    /// The claim cannot be read.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl Fault for HeartbeatError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lease(error) => error.kind(),
            Self::NotClaimed { .. } => Kind::NotFound,
            Self::Terminal { .. } => Kind::Unavailable,
            Self::Claim(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Lease(error) => error.hints(),
            Self::NotClaimed { id, .. } => vec![format!("`crabbox ssh {id}` claims it for this repository")],
            Self::Terminal { id, .. } => vec![format!("`crabbox stop {id}` removes it")],
            Self::Claim(_) => Vec::new(),
        }
    }
}

/// Keeps the lease that `text` names alive, and sets its idle limit to `idle` if given. Returns the updated
/// lease.
pub fn heartbeat(
    places: &Places,
    provider: &dyn Provider,
    text: &str,
    idle: Option<Duration>,
) -> Result<Lease, HeartbeatError> {
    let mut lease = provider.resolve(text, Purpose::Look)?;
    let claim = claims::read(places, &lease.id)?;
    if claim.is_none_or(|claim| claim.provider != lease.provider) {
        return Err(HeartbeatError::NotClaimed {
            id: lease.id,
            provider: lease.provider,
        });
    }
    if lease.state.is_terminal() {
        return Err(HeartbeatError::Terminal {
            id: lease.id,
            state: lease.state,
        });
    }
    lease.labels = provider.touch(&lease, None, idle)?;
    Ok(lease)
}
