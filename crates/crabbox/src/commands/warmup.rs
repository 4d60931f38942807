//! `warmup`: leases a machine and leaves it ready.

use std::time::Instant;

use crabbox_core::timestamp;
use crabbox_engine::firecracker::AcquiredLease;
use crabbox_engine::lease::Lease;
use crabbox_engine::provider::Provider;
use crabbox_host::signals::Interrupts;

use crate::args::WarmupArgs;
use crate::commands::acquire::{self, Wanted};
use crate::context::Ctx;
use crate::go;
use crate::timing::{Outcome, TimingJson};
use crate::ui::{CommandError, Exit};

pub(super) fn run(ctx: &Ctx<'_>, args: &WarmupArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    lease(ctx, args, &acquire::interrupts()?)?;
    Ok(Exit::SUCCESS)
}

/// The same for a command that goes on with the lease.
pub(super) fn lease(
    ctx: &Ctx<'_>,
    args: &WarmupArgs,
    interrupts: &Interrupts,
) -> Result<(Box<dyn Provider>, AcquiredLease), CommandError> {
    let started = Instant::now();
    let settings = ctx.settings(&args.keys.values)?.settings;
    let engine = acquire::engine(ctx)?;
    let wanted = Wanted {
        slug: args.slug.clone(),
        keep: args.keep,
        set_up: args.yes,
        reclaim: args.reclaim,
    };
    let (provider, acquired) = acquire::acquire(ctx, &engine, &settings, &wanted, interrupts)?;
    let lease = &acquired.lease;
    print_leased(ctx, lease);
    let total = started.elapsed();
    ctx.printer
        .line(format_args!("warmup complete total={}", go::milliseconds(total)));
    if args.timing_json {
        let outcome = Outcome {
            total,
            lease: Some(total),
            stages: acquired.stages.clone(),
            guest_stages: acquired.guest_stages.clone(),
            ..Outcome::default()
        };
        ctx.printer.note_json(&TimingJson::new(lease, &outcome))?;
    }
    Ok((provider, acquired))
}

/// The two lines by which scripts know a lease.
fn print_leased(ctx: &Ctx<'_>, lease: &Lease) {
    let idle = go::seconds(lease.idle_seconds());
    let expires = timestamp::rfc3339(lease.expires_at().unwrap_or_default());
    ctx.printer.line(format_args!(
        "leased {} slug={} provider={} server={} type={} ip={} idle_timeout={idle} expires={expires}",
        lease.id,
        lease.slug,
        lease.provider,
        lease.display_id(),
        lease.server_type,
        lease.address,
    ));
    if let Some(target) = &lease.target {
        ctx.printer.line(format_args!(
            "ready ssh={}:{} network=public workroot={}",
            target.destination(),
            target.port,
            lease.work_root
        ));
    }
}
