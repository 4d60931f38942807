//! Keeping a lease alive without doing anything in it: `crabbox heartbeat`.
//!
//! Only a lease that is claimed here is kept alive: one that nobody claims shall run out.

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
    /// There is no such lease, or it could not be refreshed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Nobody claims it, or another provider's claim stands under its id.
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
            Self::Terminal { id, .. } => vec![format!("`crabbox stop {id}` takes it back")],
            Self::Claim(_) => Vec::new(),
        }
    }
}

/// Keeps the lease that `text` names alive, from now on with the idle limit `idle` if one is given. Returns the lease as it is
/// afterwards.
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
