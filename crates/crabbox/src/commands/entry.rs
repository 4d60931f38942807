//! Entering a lease that is there: found, claimed for the repository we stand in, touched.

use crabbox_core::config::FlagValue;
use crabbox_engine::context::Engine;
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::resolve::{self, Purpose, ResolveError};
use crabbox_engine::touch;

use crate::commands::{acquire, route};
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

/// Finds the lease called `name` for `command` and claims it.
pub(super) fn enter(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
    reclaim: bool,
) -> Result<Entry, CommandError> {
    let entry = visit(ctx, flags, name, command)?;
    touch::claim(
        &entry.engine.places,
        &entry.lease,
        &acquire::repository(ctx.env.cwd()?),
        reclaim,
    )?;
    Ok(entry)
}

/// Finds the lease called `name` for `command`, without claiming it: for what does not depend on where we stand.
pub(super) fn visit(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
) -> Result<Entry, CommandError> {
    let engine = route::to_lease(ctx, flags, name, command)?;
    let lease = resolve::resolve(&engine, name, Purpose::Use)?;
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
    /// Refreshes the lease and leaves its state as it is.
    pub(super) fn refresh(&self) -> Result<(), CommandError> {
        touch::touch(&self.engine.places, &self.lease.id, None, None)?;
        Ok(())
    }

    /// Refreshes the lease.
    pub(super) fn touch(&self, state: &str) -> Result<(), CommandError> {
        touch::touch(&self.engine.places, &self.lease.id, Some(state), None)?;
        Ok(())
    }
}
