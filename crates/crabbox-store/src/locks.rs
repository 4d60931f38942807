//! Locks between crabbox processes on one state directory: one per lease, and a short one for allocations.
//!
//! All are `flock` locks on files that are never the data they guard. The order is: allocation, lease, volume
//! ([`crate::volumes`]), room for volumes, host network, claim, registry ([`crate::registry`] has the two
//! locks of the host). No process may wait for an earlier one while holding a later one, so the holder of the
//! registry lock never waits.

use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::lock::{FileLock, LockError};

use crate::places::Places;

/// How long to wait for another allocation before reporting that it is stuck.
const ALLOCATION_LIMIT: Duration = Duration::from_mins(1);

/// Takes the allocation lock.
pub fn allocation(places: &Places) -> Result<FileLock, LockError> {
    FileLock::acquire_within(&places.allocation_lock(), ALLOCATION_LIMIT)
}

/// Takes the lock of lease `id` if it is free.
pub fn try_lease(places: &Places, id: &str) -> Result<Option<FileLock>, LockError> {
    FileLock::try_acquire(&places.lease_lock(id))
}

/// Whether a process holds the lock of lease `id` right now. Leaves no file behind.
pub fn is_busy(places: &Places, id: &str) -> Result<bool, LockError> {
    FileLock::is_held(&places.lease_lock(id))
}

/// Takes the lock of lease `id`; waits at most `limit` for its holder.
pub fn lease(places: &Places, id: &str, limit: Duration) -> Result<FileLock, LockError> {
    FileLock::acquire_within(&places.lease_lock(id), limit)
}

/// Takes the allocation lock and then that of lease `id`, for whose holder it waits at most `limit`. It holds
/// neither lock while it waits: a busy lease must not block all allocations.
pub fn allocation_and_lease(
    places: &Places,
    id: &str,
    limit: Duration,
) -> Result<(FileLock, FileLock), LockError> {
    let both = || -> Result<Option<(FileLock, FileLock)>, LockError> {
        if is_busy(places, id)? {
            return Ok(None);
        }
        let allocation = allocation(places)?;
        Ok(try_lease(places, id)?.map(|lease| (allocation, lease)))
    };
    clock::poll_until(limit, || both().transpose()).unwrap_or_else(|| {
        Err(LockError::Busy {
            path: places.lease_lock(id),
            limit,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_an_allocation_while_somebody_waits_for_a_lease() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let id = "cbx_0123456789ab";
        let held = try_lease(&places, id).unwrap().unwrap();
        assert!(matches!(
            allocation_and_lease(&places, id, Duration::ZERO),
            Err(LockError::Busy { .. })
        ));
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| allocation_and_lease(&places, id, Duration::from_mins(1)));
            // If the allocation lock were held during the wait, this would fail.
            for _ in 0..20 {
                let other = FileLock::acquire_within(&places.allocation_lock(), Duration::from_secs(5));
                drop(other.unwrap());
                clock::nap(Duration::from_millis(2));
            }
            drop(held);
            let (allocation, lease) = waiting.join().unwrap().unwrap();
            assert!(is_busy(&places, id).unwrap());
            assert!(FileLock::is_held(&places.allocation_lock()).unwrap());
            drop((allocation, lease));
        });
    }
}
