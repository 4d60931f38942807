//! The answer of a command whose body is not written yet.

use crabbox_core::fault::{Fault, Kind};

/// A command that the program knows and cannot do yet.
#[derive(Debug, thiserror::Error)]
#[error("{command} is not built yet")]
pub(super) struct NotBuilt {
    /// The command.
    pub(super) command: &'static str,
}

impl Fault for NotBuilt {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}
