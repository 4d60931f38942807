//! Locks between crabbox processes on one state directory: one a lease, and a short one for allocations.
//!
//! All are `flock` locks on files that are never the data they guard. The order is allocation before lease before host network
//! before claim before registry ([`crate::registry`] has the two that are the host's); nobody may wait for an earlier one while
//! holding a later one, so that whoever holds the registry's waits for nobody.

use std::time::Duration;

use crabbox_host::lock::{FileLock, LockError};

use crate::places::Places;

/// How long an allocation may take before we say that somebody is stuck.
const ALLOCATION_LIMIT: Duration = Duration::from_mins(1);

/// Takes the allocation lock.
pub fn allocation(places: &Places) -> Result<FileLock, LockError> {
    FileLock::acquire_within(&places.allocation_lock(), ALLOCATION_LIMIT)
}

/// Takes the lock of lease `id` if nobody holds it.
pub fn try_lease(places: &Places, id: &str) -> Result<Option<FileLock>, LockError> {
    FileLock::try_acquire(&places.lease_lock(id))
}

/// Whether somebody is at lease `id` right now. Leaves nothing behind.
pub fn is_busy(places: &Places, id: &str) -> Result<bool, LockError> {
    FileLock::is_held(&places.lease_lock(id))
}

/// Takes the lock of lease `id`, waiting for its holder at most `limit`.
pub fn lease(places: &Places, id: &str, limit: Duration) -> Result<FileLock, LockError> {
    FileLock::acquire_within(&places.lease_lock(id), limit)
}
