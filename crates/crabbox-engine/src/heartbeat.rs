//! Keeping a lease alive without doing anything in it: `crabbox heartbeat`.
//!
//! Only a lease that is claimed here is kept alive: one that nobody claims shall run out.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels;
use crabbox_store::claims::{self, ClaimError};

use crate::context::Engine;
use crate::lease::Lease;
use crate::resolve::{self, Purpose, ResolveError};
use crate::touch::{self, TouchError};

/// Why a lease was not kept alive.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no such lease.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
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
        state: String,
    },
    /// The claim cannot be read.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// It could not be refreshed.
    #[error(transparent)]
    Touch(#[from] TouchError),
}

impl Fault for HeartbeatError {
    fn kind(&self) -> Kind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::NotClaimed { .. } => Kind::NotFound,
            Self::Terminal { .. } => Kind::Unavailable,
            Self::Claim(_) => Kind::Usage,
            Self::Touch(error) => error.kind(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Resolve(error) => error.hints(),
            Self::NotClaimed { id, .. } => vec![format!("`crabbox ssh {id}` claims it for this repository")],
            Self::Terminal { id, .. } => vec![format!("`crabbox stop {id}` takes it back")],
            Self::Claim(_) | Self::Touch(_) => Vec::new(),
        }
    }
}

/// Keeps the lease that `text` names alive, from now on with the idle limit `idle` if one is given. Answers the lease as it is
/// afterwards.
pub fn heartbeat(engine: &Engine, text: &str, idle: Option<Duration>) -> Result<Lease, HeartbeatError> {
    let mut lease = resolve::resolve(engine, text, Purpose::Look)?;
    let claim = claims::read(&engine.places, &lease.id)?;
    if claim.is_none_or(|claim| claim.provider != lease.provider) {
        return Err(HeartbeatError::NotClaimed {
            id: lease.id,
            provider: lease.provider,
        });
    }
    if labels::is_terminal(&lease.state) {
        return Err(HeartbeatError::Terminal {
            id: lease.id,
            state: lease.state,
        });
    }
    lease.labels = touch::touch(&engine.places, &lease.id, None, idle)?;
    Ok(lease)
}
