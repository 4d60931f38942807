//! Who uses a lease of a host that exists already: every command that enters it shares one lock, and whoever finds nobody else
//! in it is the last one out. A command that gives the lease back must never end it without that lock.

use std::path::PathBuf;

use crabbox_core::claim::Claim;
use crabbox_host::lock::FileLock;
use crabbox_host::private_dir::PrivateDir;

use super::error::StaticError;

/// This command's part in a lease; it ends with the process at the latest.
#[derive(Debug)]
pub(super) struct Use {
    _lock: FileLock,
    /// Whether this command wants the lease to stay.
    pub(super) keep: bool,
    /// Whether somebody had kept the lease before this command came.
    pub(super) kept_before: bool,
}

impl Use {
    /// Waits while somebody ends lease `id`, then keeps others from it.
    pub(super) fn begin(dir: &PrivateDir, id: &str, keep: bool) -> Result<Self, StaticError> {
        Ok(Self {
            _lock: FileLock::share(&path(dir, id)).map_err(StaticError::Users)?,
            keep,
            kept_before: false,
        })
    }
}

/// The lease for its last user alone: nobody enters it while this is held. `None` while somebody uses it.
pub(super) fn last(dir: &PrivateDir, id: &str) -> Result<Option<FileLock>, StaticError> {
    FileLock::try_acquire(&path(dir, id)).map_err(StaticError::Users)
}

/// Whether a command that keeps its lease made this claim.
pub(super) fn is_kept(claim: &Claim) -> bool {
    claim.labels.get("keep").is_some_and(|keep| keep == "true")
}

fn path(dir: &PrivateDir, id: &str) -> PathBuf {
    dir.join(format!("{id}.users"))
}
