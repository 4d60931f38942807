//! Giving back a lease at the end of the command that made it. It must never be used for a lease that the
//! command only entered.

use crabbox_engine::provider::Provider;
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::provider::lease::Lease;

use crate::context::Ctx;

/// Gives `lease` back as a stage of its own, and returns whether it ended: others may still use it.
pub(in crate::commands) fn release(
    ctx: &Ctx<'_>,
    provider: &dyn Provider,
    lease: &Lease,
) -> Result<bool, LeaseError> {
    ctx.printer.note(format_args!(
        "releasing {} server={}",
        lease.id,
        lease.display_id()
    ));
    let stage = ctx.printer.stage("release");
    let released = provider.give_back(lease);
    stage.end(released.is_ok());
    released
}
