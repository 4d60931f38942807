//! Entering a lease that is there: found, claimed for the repository we stand in, touched.

use crabbox_core::config::FlagValue;
use crabbox_engine::lease::{Lease, Target};
use crabbox_engine::provider::Provider;
use crabbox_engine::resolve::{Purpose, ResolveError};

use crate::commands::{acquire, route};
use crate::context::Ctx;
use crate::ui::CommandError;

/// A lease that may be used.
pub(super) struct Entry {
    /// Whose it is.
    provider: Box<dyn Provider>,
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
    let repo = acquire::repository(ctx.env.cwd()?);
    entry.provider.claim(&entry.lease, &repo, reclaim)?;
    Ok(entry)
}

/// Finds the lease called `name` for `command`, without claiming it: for what does not depend on where we stand.
pub(super) fn visit(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
) -> Result<Entry, CommandError> {
    let (_, provider) = route::to_lease(ctx, flags, name, command)?;
    let lease = provider.resolve(name, Purpose::Use)?;
    let target = lease
        .target
        .clone()
        .ok_or_else(|| ResolveError::NoAddress { id: lease.id.clone() })?;
    Ok(Entry {
        provider,
        lease,
        target,
    })
}

impl Entry {
    /// Refreshes the lease and leaves its state as it is.
    pub(super) fn refresh(&self) -> Result<(), CommandError> {
        self.provider.touch(&self.lease, None, None)?;
        Ok(())
    }

    /// Refreshes the lease.
    pub(super) fn touch(&self, state: &str) -> Result<(), CommandError> {
        self.provider.touch(&self.lease, Some(state), None)?;
        Ok(())
    }
}
