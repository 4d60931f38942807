//! The lock of a set-up, held by every process that changes the host by set-up, or changes its record.
//!
//! A record that will be changed must not be read before the lock is held.

use std::time::Duration;

use crabbox_host::lock::{FileLock, LockError};
use crabbox_store::places::Places;

use super::serve::ServeSetupError;

/// How long to wait for another setup, whose longest step builds an image.
const LIMIT: Duration = Duration::from_mins(10);

/// Takes the lock only if it is free: after a wait, the user's confirmation might no longer match what would
/// be done.
pub(super) fn now(places: &Places) -> Result<FileLock, ServeSetupError> {
    let path = places.state.join("setup.lock");
    let lock = FileLock::try_acquire(&path)?;
    lock.ok_or(ServeSetupError::Busy)
}

/// Takes the lock, waiting until it is free.
pub(super) fn wait(places: &Places) -> Result<FileLock, ServeSetupError> {
    let path = places.state.join("setup.lock");
    FileLock::acquire_within(&path, LIMIT).map_err(|error| match error {
        LockError::Busy { .. } => ServeSetupError::Busy,
        error @ LockError::Io { .. } => error.into(),
    })
}
