//! What commands on leases work with: the engine of this environment, and the watch for Ctrl-C.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::signals::{Interrupts, SignalError};
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::adopt;

use crate::context::Ctx;
use crate::env::EnvError;

/// The variable that arms a failpoint ([`crabbox_machine::failpoint`]); only for tests.
pub(in crate::commands) const FAILPOINT_VARIABLE: &str = "CRABBOX_TEST_FAILPOINT";

/// The engine for this environment, after giving a new supervisor to leases whose own has died.
pub(in crate::commands) fn adopting(ctx: &Ctx<'_>) -> Result<Engine, EngineError> {
    let engine = looking(ctx)?;
    // Ignored here: commands that need the records report unreadable ones.
    adopt::orphans(&engine).ok();
    Ok(engine)
}

/// The engine for a command that changes nothing.
pub(in crate::commands) fn looking(ctx: &Ctx<'_>) -> Result<Engine, EngineError> {
    let exe = std::env::current_exe().map_err(EngineError::Exe)?;
    Ok(Engine {
        places: ctx.env.places()?,
        exe,
        path: ctx.env.path().to_owned(),
        runtime: ctx.env.os("XDG_RUNTIME_DIR").map(PathBuf::from),
        failpoint: ctx.env.text(FAILPOINT_VARIABLE).unwrap_or_default().to_owned(),
    })
}

/// Why the engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub(in crate::commands) enum EngineError {
    /// This program cannot find itself.
    #[error("cannot find this program's own file")]
    Exe(#[source] std::io::Error),
    /// The environment does not say where state is kept.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Signals cannot be watched.
    #[error(transparent)]
    Signals(#[from] SignalError),
}

impl Fault for EngineError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Env(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// Watches for Ctrl-C from here on.
pub(in crate::commands) fn interrupts() -> Result<Interrupts, EngineError> {
    Ok(Interrupts::install()?)
}
