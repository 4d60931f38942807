//! `prewarm`: a lease made ready ahead of its use, and looked at.

use std::time::{Duration, Instant};

use crabbox_engine::lease::Lease;

use crate::args::PrewarmArgs;
use crate::commands::compose::Words;
use crate::commands::{acquire, run, warmup};
use crate::context::Ctx;
use crate::go;
use crate::ui::{CommandError, Exit};

pub(super) fn run(ctx: &Ctx<'_>, args: &PrewarmArgs) -> Result<Exit, CommandError> {
    let events = args.json_events;
    if events {
        ctx.printer.tell_events();
    }
    let warm = Words::new("warmup")
        .maybe("slug", args.slug.as_deref())
        .switch("json-events", events)
        .switch("reclaim", args.reclaim)
        .switch("yes", args.yes)
        .keys(&args.keys.values);
    let probe = args.probe_command.as_deref();
    if args.dry_run {
        ctx.printer.line(warm.shown());
        if let Some(command) = probe {
            let lease = args.slug.as_deref().unwrap_or("<lease>");
            ctx.printer.line(probing(lease, command, events).shown());
        }
        return Ok(Exit::SUCCESS);
    }
    let started = Instant::now();
    let interrupts = acquire::interrupts()?;
    let (provider, acquired) = warmup::lease(ctx, &warm.warmup()?, &interrupts)?;
    let lease = &acquired.lease;
    let warmed = started.elapsed();
    ctx.printer.line(format_args!(
        "prewarm hydration=skipped reason=no_actions_workflow id={}",
        lease.id
    ));
    let probing_since = Instant::now();
    if let Some(command) = probe {
        let words = probing(&lease.id, command, events).run()?;
        if let Err(error) = run::within(ctx, &words, &interrupts) {
            ctx.printer.note(format_args!(
                "releasing {} server={}",
                lease.id,
                lease.display_id()
            ));
            // Why the probe failed counts more than how the lease is given back.
            let stage = ctx.printer.stage("release");
            let released = provider.release(&lease.id);
            stage.end(released.is_ok());
            if let Err(error) = released {
                let error = CommandError::from(error).text();
                ctx.printer
                    .warn(format_args!("the lease could not be given back: {error}"));
            }
            return Err(error);
        }
    }
    complete(ctx, lease, warmed, probing_since.elapsed(), started.elapsed());
    Ok(Exit::SUCCESS)
}

fn probing(lease: &str, command: &str, events: bool) -> Words {
    Words::new("run")
        .flag("id", lease)
        .switch("json-events", events)
        .switch("no-sync", true)
        .switch("shell", true)
        .rest([command.into()])
}

fn complete(ctx: &Ctx<'_>, lease: &Lease, warmup: Duration, probe: Duration, total: Duration) {
    ctx.printer.line(format_args!(
        "prewarm complete id={} provider={} hydration=skipped warmup={}ms hydrate=0ms probe={}ms total={}",
        lease.id,
        lease.provider,
        warmup.as_millis(),
        probe.as_millis(),
        go::milliseconds(total)
    ));
}
