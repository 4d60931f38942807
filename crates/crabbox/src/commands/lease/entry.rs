//! Entering an existing lease: found, claimed for the current repository, touched.

use crabbox_core::config::FlagValue;
use crabbox_core::fault;
use crabbox_core::state::LeaseState;
use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::{Lease, Target};
use crabbox_machine::lease::find::{Purpose, ResolveError};

use crate::commands::lease::route;
use crate::context::Ctx;
use crate::ui::CommandError;

/// A lease that this command may use.
pub(in crate::commands) struct Entry {
    /// Its provider.
    provider: Box<dyn Provider>,
    /// The lease.
    pub(in crate::commands) lease: Lease,
    /// How it is entered.
    pub(in crate::commands) target: Target,
}

/// Finds the lease called `name` for `command` and claims it.
pub(in crate::commands) fn enter(
    ctx: &Ctx<'_>,
    flags: &[FlagValue],
    name: &str,
    command: &'static str,
    reclaim: bool,
) -> Result<Entry, CommandError> {
    let entry = visit(ctx, flags, name, command)?;
    let repo = ctx.root()?;
    entry.provider.claim(&entry.lease, &repo, reclaim)?;
    Ok(entry)
}

/// Finds the lease called `name` for `command` without claiming it, for commands that do not depend on the
/// current directory.
pub(in crate::commands) fn visit(
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
    /// Touches the lease before the work, without changing its state. A lease that cannot be touched is not
    /// worked in.
    pub(in crate::commands) fn refresh(&self) -> Result<(), CommandError> {
        self.provider.touch(&self.lease, None, None)?;
        Ok(())
    }

    /// The same, and sets its state.
    pub(in crate::commands) fn touch(&self, state: &LeaseState) -> Result<(), CommandError> {
        self.provider.touch(&self.lease, Some(state), None)?;
        Ok(())
    }

    /// Touches the lease after the work, because a long one counts as use until it ends. The outcome of the
    /// work is what counts: the lease may have ended with it, so a failure here is only a warning. Print the
    /// outcome first.
    pub(in crate::commands) fn leave(self, ctx: &Ctx<'_>, state: Option<&LeaseState>) {
        if let Err(error) = self.provider.touch(&self.lease, state, None) {
            ctx.printer.warn(format_args!(
                "the use of lease {} could not be recorded: {}",
                self.lease.id,
                fault::chain(&error)
            ));
        }
    }
}
