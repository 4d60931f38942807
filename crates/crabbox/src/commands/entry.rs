//! Entering a lease that is there: found, claimed for the repository we stand in, touched.

use crabbox_engine::context::Engine;
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::resolve::{self, Purpose, ResolveError};
use crabbox_engine::touch;

use crate::commands::acquire;
use crate::context::Ctx;
use crate::ui::CommandError;

/// A lease that may be used.
pub(super) struct Entry {
    /// The engine.
    pub(super) engine: Engine,
    /// The lease.
    pub(super) lease: Lease,
    /// How it is entered.
    pub(super) target: Target,
}

/// Finds the lease called `name` and claims it.
pub(super) fn enter(ctx: &Ctx<'_>, name: &str, reclaim: bool) -> Result<Entry, CommandError> {
    let engine = acquire::engine(ctx)?;
    let lease = resolve::resolve(&engine, name, Purpose::Use)?;
    touch::claim(
        &engine.places,
        &lease,
        &acquire::repository(ctx.env.cwd()?),
        reclaim,
    )?;
    let target = lease
        .target
        .clone()
        .ok_or_else(|| ResolveError::NoAddress { id: lease.id.clone() })?;
    Ok(Entry {
        engine,
        lease,
        target,
    })
}

impl Entry {
    /// Refreshes the lease.
    pub(super) fn touch(&self, state: &str) -> Result<(), CommandError> {
        touch::touch(&self.engine.places, &self.lease.id, Some(state), None)?;
        Ok(())
    }
}
