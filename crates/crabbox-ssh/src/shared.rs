//! The connection that one execution uses: the target's shared one, or a private one that ends with it.
//!
//! There is always a master, so that there is one way to run a command. A private one must never outlive its owner.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::ExecError;
use crate::master;
use crate::target::Target;

/// Limit for opening a connection that should have been there; long because a handshake on an emulated machine is slow.
const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// An open connection.
#[derive(Debug)]
pub(crate) struct Shared {
    control: PathBuf,
    /// The directory of a private connection's socket.
    private: Option<tempfile::TempDir>,
}

impl Shared {
    /// The connection of `target`, opened when it is not, within `limit`.
    pub(crate) fn open(target: &Target, limit: Option<Duration>) -> Result<Self, ExecError> {
        let limit = limit.map_or(OPEN_LIMIT, |limit| limit.min(OPEN_LIMIT));
        let connect = |source| ExecError::Connect { source };
        if let Some(control) = &target.control {
            master::open(target, control, limit).map_err(connect)?;
            return Ok(Self {
                control: control.clone(),
                private: None,
            });
        }
        let dir = private_dir().map_err(|source| ExecError::Local { source })?;
        let control = dir.path().join("s");
        // Made before the attempt, so that a failed one is cleared away too.
        let shared = Self {
            control,
            private: Some(dir),
        };
        master::open(target, &shared.control, limit).map_err(connect)?;
        Ok(shared)
    }

    /// Opens it again after it was found dead.
    pub(crate) fn reopen(&self, target: &Target) -> Result<(), ExecError> {
        master::open(target, &self.control, OPEN_LIMIT).map_err(|source| ExecError::Connect { source })
    }

    /// Its socket.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.private.is_some() {
            // Nobody is left to tell; a master that stays loses its socket and ends when its connection does.
            master::exit(&self.control).ok();
        }
    }
}

/// Directly below `/tmp`, because a socket's path must be short; `mkdtemp` gives it a fresh name and mode 0700.
fn private_dir() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("crabbox-ssh-").tempdir_in("/tmp")
}
