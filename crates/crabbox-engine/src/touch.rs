//! Refreshing a lease: state, last use, expiry; and tying it to a repository.
//!
//! Both the record and the claim are changed under their locks, from what stands on disk, so that a touch can neither undo
//! another's change nor bring a removed lease back.

use std::path::Path;
use std::time::Duration;

use crabbox_core::claim::Claim;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels::{self, Labels};
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::lock::LockError;
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::leases::{self, RecordError};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

use crate::lease::Lease;

/// How long a lease may be busy with something else.
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// Why a lease could not be refreshed.
#[derive(Debug, thiserror::Error)]
pub enum TouchError {
    /// Another command holds the lease.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The claim cannot be read or written.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Another repository holds the claim.
    #[error("lease {id} is claimed by repo {holder}; use --reclaim to claim it for {wanted}")]
    Held {
        /// The lease.
        id: String,
        /// The repository that holds it.
        holder: String,
        /// The repository that wants it.
        wanted: String,
    },
}

impl Fault for TouchError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Refreshes the lease and answers its labels as they are now.
pub fn touch(
    places: &Places,
    id: &str,
    state: Option<&str>,
    idle: Option<Duration>,
) -> Result<Labels, TouchError> {
    let guard = locks::lease(places, id, LOCK_LIMIT)?;
    let mut stored = match leases::read(&LeaseDir::at(places.leases().join(id))) {
        Ok(stored) => stored,
        Err(error) => {
            if !places.leases().join(id).exists() {
                // Taken back while we waited; the lock file that we made for it goes again.
                guard.remove_while_held()?;
            }
            return Err(error.into());
        }
    };
    let (seconds, nanoseconds) = clock::unix_now();
    labels::touch(&mut stored.record.labels, state, idle, seconds);
    stored.record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
    stored.save()?;
    drop(guard);
    let labels = stored.record.labels;
    claims::update::<TouchError>(places, id, |standing| {
        Ok(standing.map(|claim| Claim {
            labels: labels.clone(),
            last_used_at: timestamp::rfc3339(seconds),
            idle_timeout_seconds: labels::idle_seconds(&labels),
            ..claim.clone()
        }))
    })?;
    Ok(labels)
}

/// Ties `lease` to the repository at `repo`; another repository's claim is only taken over when `reclaim` says so.
pub fn claim(places: &Places, lease: &Lease, repo: &Path, reclaim: bool) -> Result<Claim, TouchError> {
    claim_as(places, lease, repo, reclaim, |_, _| Ok::<_, TouchError>(()))
}

/// Like [`claim`]; `finish` may refuse what stands there, and completes the new claim.
pub(crate) fn claim_as<E: From<TouchError>>(
    places: &Places,
    lease: &Lease,
    repo: &Path,
    reclaim: bool,
    finish: impl FnOnce(Option<&Claim>, &mut Claim) -> Result<(), E>,
) -> Result<Claim, E> {
    let wanted = repo.to_string_lossy().into_owned();
    let now = timestamp::rfc3339(clock::unix_seconds());
    let port = lease.target.as_ref().map_or(22, |target| i64::from(target.port));
    let claim = claims::update::<Refusal<E>>(places, &lease.id, |standing| {
        if let Some(held) = standing
            && !reclaim
            && !held.repo_root.is_empty()
            && held.repo_root != wanted
        {
            return Err(TouchError::Held {
                id: lease.id.clone(),
                holder: held.repo_root.clone(),
                wanted: wanted.clone(),
            }
            .into());
        }
        let mut claim = Claim {
            slug: lease.slug.clone(),
            provider: lease.provider.to_owned(),
            cloud_id: lease.cloud_id.clone(),
            target_os: "linux".to_owned(),
            repo_root: wanted.clone(),
            claimed_at: standing.map_or_else(|| now.clone(), |held| held.claimed_at.clone()),
            last_used_at: now.clone(),
            idle_timeout_seconds: lease.idle_seconds(),
            ssh_host: lease.address.clone(),
            ssh_port: port,
            labels: lease.labels.clone(),
            ..standing.cloned().unwrap_or_default()
        };
        finish(standing, &mut claim).map_err(Refusal)?;
        Ok(Some(claim))
    });
    claim
        .map(Option::unwrap_or_default)
        .map_err(|Refusal(error)| error)
}

/// Carries the caller's error through the store, which has errors of its own to add.
struct Refusal<E>(E);

impl<E: From<TouchError>> From<ClaimError> for Refusal<E> {
    fn from(error: ClaimError) -> Self {
        Self(TouchError::from(error).into())
    }
}

impl<E: From<TouchError>> From<TouchError> for Refusal<E> {
    fn from(error: TouchError) -> Self {
        Self(error.into())
    }
}
