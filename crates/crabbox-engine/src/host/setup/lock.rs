//! The lock of a set-up: whoever changes the host by it, or its record, holds it.
//!
//! No record may be read for a change before the lock is held.

use std::time::Duration;

use crabbox_host::lock::{FileLock, LockError};
use crabbox_store::places::Places;

use super::serve::ServeSetupError;

/// How long another setup may be at work: the longest of its steps builds an image.
const LIMIT: Duration = Duration::from_mins(10);

/// The lock, where nobody has it; who is to see what is done must not see another thing after a wait.
pub(super) fn now(places: &Places) -> Result<FileLock, ServeSetupError> {
    let path = places.state.join("setup.lock");
    let lock = FileLock::try_acquire(&path)?;
    lock.ok_or(ServeSetupError::Busy)
}

/// The lock, once nobody has it any more.
pub(super) fn wait(places: &Places) -> Result<FileLock, ServeSetupError> {
    let path = places.state.join("setup.lock");
    FileLock::acquire_within(&path, LIMIT).map_err(|error| match error {
        LockError::Busy { .. } => ServeSetupError::Busy,
        error @ LockError::Io { .. } => error.into(),
    })
}
