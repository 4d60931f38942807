//! Refreshes a lease (state, last use, expiry) and ties it to a repository.
//!
//! Record and claim are changed under their locks, starting from their contents on disk, so that a touch can
//! neither undo another process's change nor bring a removed lease back.

use std::time::Duration;

use crabbox_core::claim::Claim;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::lock::{FileLock, LockError};
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::leases::{self, RecordError, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

/// How long to wait for another command that holds the lease.
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
    /// The lease was torn down, or released, after it was looked up.
    #[error("lease {id} has ended")]
    Ended {
        /// The lease.
        id: String,
    },
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
        match self {
            Self::Ended { .. } => Kind::NotFound,
            _ => Kind::Usage,
        }
    }
}

/// Locks the lease and reads its record. While it is locked, nobody tears it down.
fn hold(places: &Places, id: &str) -> Result<(FileLock, StoredLease), TouchError> {
    let guard = locks::lease(places, id, LOCK_LIMIT)?;
    let dir = LeaseDir::at(places.leases().join(id));
    match leases::read(&dir) {
        Ok(stored) => Ok((guard, stored)),
        Err(_) if dir.is_gone() => {
            // The lease was torn down while we waited; remove the lock file that we created by locking it.
            guard.remove_while_held()?;
            Err(TouchError::Ended { id: id.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Does `work` while the lease exists and is locked, so that the work can bring nothing of a removed lease
/// back.
pub fn while_it_stands<T>(
    places: &Places,
    id: &str,
    work: impl FnOnce() -> Result<T, TouchError>,
) -> Result<T, TouchError> {
    let _held = hold(places, id)?;
    work()
}

/// Refreshes the lease and returns its new labels.
pub fn touch(
    places: &Places,
    id: &str,
    state: Option<&LeaseState>,
    idle: Option<Duration>,
) -> Result<Labels, TouchError> {
    let (guard, mut stored) = hold(places, id)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_has_ended_is_not_found_and_nothing_of_it_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let id = "cbx_000000000001";
        let touched = touch(&places, id, None, None).unwrap_err();
        assert_eq!(
            (touched.kind(), touched.to_string().as_str()),
            (Kind::NotFound, "lease cbx_000000000001 has ended")
        );
        let claimed = while_it_stands(&places, id, || {
            Ok(claims::update::<ClaimError>(&places, id, |_| {
                Ok(Some(Claim::default()))
            })?)
        });
        assert_eq!(claimed.unwrap_err().kind(), Kind::NotFound);
        assert!(claims::read(&places, id).unwrap().is_none());
        assert!(!places.lease_lock(id).exists());
    }
}
