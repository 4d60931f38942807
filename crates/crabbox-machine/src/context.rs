//! The environment of every use case: where state is stored, and the path of this program. It is passed in by
//! the binary and must never be read from the process environment here.

use std::ffi::OsString;
use std::path::PathBuf;

use crabbox_host::private_dir::PrivateDir;
use crabbox_ssh::control::{self, ControlError};
pub use crabbox_store::places::{LeaseDir, Places};
use serde::{Deserialize, Serialize};

/// Paths and settings of the environment, read once by the binary.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where state, keys and caches are.
    pub places: Places,
    /// This program's own file, started again as the supervisor.
    pub exe: PathBuf,
    /// `PATH`, for programs named without a directory.
    pub path: OsString,
    /// The user's runtime directory (`$XDG_RUNTIME_DIR`), if there is one; not checked yet.
    pub runtime: Option<PathBuf>,
    /// The armed failpoint; empty if none is armed. See [`crate::failpoint`].
    pub failpoint: String,
}

impl Engine {
    /// Directory for the control sockets of shared SSH connections. It is created only by a caller that is
    /// about to use it, so that a read-only command changes nothing.
    pub fn control_dir(&self) -> Result<PrivateDir, ControlError> {
        control::directory(self.runtime.as_deref())
    }
}

/// The places of an engine in a form that can be handed to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedPlaces {
    /// See [`Places::state`].
    pub state: PathBuf,
    /// See [`Places::config`].
    pub config: PathBuf,
    /// See [`Places::cache`].
    pub cache: PathBuf,
    /// See [`Places::registry`].
    pub registry: PathBuf,
}

impl From<&Places> for SavedPlaces {
    fn from(places: &Places) -> Self {
        Self {
            state: places.state.clone(),
            config: places.config.clone(),
            cache: places.cache.clone(),
            registry: places.registry.clone(),
        }
    }
}

impl From<SavedPlaces> for Places {
    fn from(saved: SavedPlaces) -> Self {
        Self {
            state: saved.state,
            config: saved.config,
            cache: saved.cache,
            registry: saved.registry,
        }
    }
}
