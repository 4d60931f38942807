//! `list`: the leases of this host.

use crabbox_engine::lease::Lease;
use crabbox_engine::resolve;

use crate::args::ListArgs;
use crate::commands::{acquire, views};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(ctx: &Ctx<'_>, args: &ListArgs) -> Result<Exit, CommandError> {
    ctx.settings(&args.keys.values)?;
    let engine = acquire::engine(ctx)?;
    let (leases, unreadable) = resolve::list(&engine)?;
    for bad in &unreadable {
        ctx.printer.warn(format_args!(
            "lease {} is left out: {}",
            bad.name,
            crabbox_engine::teardown::chain(&bad.error)
        ));
    }
    if args.json {
        let views: Vec<views::ListItem> = leases.iter().map(views::ListItem::new).collect();
        ctx.printer.json(&views)?;
        return Ok(Exit::SUCCESS);
    }
    for lease in &leases {
        ctx.printer.line(line(lease));
    }
    Ok(Exit::SUCCESS)
}

fn line(lease: &Lease) -> String {
    format!(
        "{:<20} {:<28} {:<12} {:<14} {:<15} lease={} slug={} keep={} target=linux",
        lease.display_id(),
        lease.name,
        lease.state,
        lease.server_type,
        lease.address,
        lease.id,
        lease.slug,
        lease.is_kept()
    )
}
