//! Tracks who uses a lease of an existing host: every command in it holds a shared lock, and a command that
//! gets the lock exclusively is the last user. A command that gives the lease back must never end it without
//! that lock.

use std::path::PathBuf;

use crabbox_core::claim::Claim;
use crabbox_host::lock::FileLock;
use crabbox_host::private_dir::PrivateDir;

use super::error::StaticError;

/// This command's use of a lease; it ends with the process at the latest.
#[derive(Debug)]
pub(super) struct Use {
    _lock: FileLock,
    /// Whether this command wants to keep the lease.
    pub(super) keep: bool,
    /// Whether the lease was already kept before this command.
    pub(super) kept_before: bool,
}

impl Use {
    /// Waits while another command is ending lease `id`, then keeps others from ending it.
    pub(super) fn begin(dir: &PrivateDir, id: &str, keep: bool) -> Result<Self, StaticError> {
        Ok(Self {
            _lock: FileLock::share(&path(dir, id)).map_err(StaticError::Users)?,
            keep,
            kept_before: false,
        })
    }
}

/// Locks the lease exclusively, for its last user: nobody can enter it while this is held. `None` while
/// somebody uses it.
pub(super) fn last(dir: &PrivateDir, id: &str) -> Result<Option<FileLock>, StaticError> {
    FileLock::try_acquire(&path(dir, id)).map_err(StaticError::Users)
}

/// Whether the claim was made by a command that keeps its lease.
pub(super) fn is_kept(claim: &Claim) -> bool {
    claim.labels.get("keep").is_some_and(|keep| keep == "true")
}

fn path(dir: &PrivateDir, id: &str) -> PathBuf {
    dir.join(format!("{id}.users"))
}
