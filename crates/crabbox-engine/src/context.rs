//! What every use case needs: where state is kept, and which program we are.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crabbox_ssh::control::{self, ControlError};
pub use crabbox_store::places::Places;
use serde::{Deserialize, Serialize};

/// The surroundings of the engine, read once by the binary.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where state, keys and caches are.
    pub places: Places,
    /// This program's own file, started again as the supervisor.
    pub exe: PathBuf,
    /// `PATH`, for programs named without a directory.
    pub path: OsString,
    /// Where the control sockets of shared SSH connections go (`crabbox_ssh::control::directory`).
    pub control_dir: PathBuf,
    /// The failpoint that is armed, empty for none; see [`crate::failpoint`].
    pub failpoint: String,
}

/// There is no private place for the sockets of SSH connections.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OpenError(#[from] ControlError);

impl Engine {
    /// The engine with these surroundings; `runtime` is the user's runtime directory, if there is one.
    pub fn open(
        places: Places,
        exe: PathBuf,
        path: &OsStr,
        runtime: Option<&Path>,
        failpoint: &str,
    ) -> Result<Self, OpenError> {
        let control_dir = control::directory(runtime)?;
        Ok(Self {
            places,
            exe,
            path: path.to_owned(),
            control_dir,
            failpoint: failpoint.to_owned(),
        })
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
}

impl From<&Places> for SavedPlaces {
    fn from(places: &Places) -> Self {
        Self {
            state: places.state.clone(),
            config: places.config.clone(),
            cache: places.cache.clone(),
        }
    }
}

impl From<SavedPlaces> for Places {
    fn from(saved: SavedPlaces) -> Self {
        Self {
            state: saved.state,
            config: saved.config,
            cache: saved.cache,
        }
    }
}
