//! `warmup`: leases a machine and leaves it ready.

use std::time::{Duration, Instant};

use crabbox_core::config::FlagValue;
use crabbox_core::timestamp;
use crabbox_engine::entry::{Entry, LeaseRequest};
use crabbox_engine::host::prepare::NewLease;
use crabbox_engine::provider::AcquiredLease;
use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::report::Outcome;
use crabbox_host::clock;
use crabbox_host::signals::Interrupts;

use crate::args::WarmupArgs;
use crate::commands::engine;
use crate::commands::lease::entering::Entering;
use crate::commands::lease::views::StatusView;
use crate::context::Ctx;
use crate::go;
use crate::timing::TimingJson;
use crate::ui::{CommandError, Exit};

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &WarmupArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    if args.verbose {
        ctx.printer.be_verbose();
    }
    let warmup = Warmup {
        wanted: LeaseRequest {
            lease: NewLease {
                slug: args.slug.clone(),
                keep: args.keep,
                reclaim: args.reclaim,
                external: None,
            },
            set_up: args.yes,
        },
        json: args.json,
        timing_json: args.timing_json,
        flags: &args.keys.values,
    };
    warmup.lease(ctx, &engine::interrupts()?)?;
    Ok(Exit::SUCCESS)
}

/// A lease to make ready ahead of its use, and how to report it.
pub(in crate::commands) struct Warmup<'a> {
    /// The properties wanted of the lease.
    pub(in crate::commands) wanted: LeaseRequest,
    /// Whether to print the lease as a JSON document.
    pub(in crate::commands) json: bool,
    /// Whether to print timings as a line of JSON.
    pub(in crate::commands) timing_json: bool,
    /// Flags that set configuration keys.
    pub(in crate::commands) flags: &'a [FlagValue],
}

impl Warmup<'_> {
    /// Makes the lease and reports it.
    pub(in crate::commands) fn lease(
        &self,
        ctx: &Ctx<'_>,
        interrupts: &Interrupts,
    ) -> Result<(Box<dyn Provider>, AcquiredLease), CommandError> {
        let started = Instant::now();
        let settings = ctx.settings(self.flags)?.settings;
        let engine = engine::adopting(ctx)?;
        let entry = Entry {
            engine: &engine,
            settings: &settings,
            repo: &ctx.root()?,
            interrupts,
            events: &Entering {
                ctx,
                command: "warmup",
            },
        };
        let (provider, acquired) = entry.new_lease(&self.wanted)?;
        let lease = &acquired.lease;
        let total = started.elapsed();
        if self.json {
            // It is ready: it was entered a moment ago.
            ctx.printer
                .json(&StatusView::new(lease, true, clock::unix_seconds()))?;
        } else {
            print_leased(ctx, lease);
            ctx.printer
                .line(format_args!("warmup complete total={}", go::milliseconds(total)));
        }
        if self.timing_json {
            let outcome = outcome(&acquired, total);
            ctx.printer
                .note_json(&TimingJson::new(lease, &outcome, self.flags))?;
        }
        Ok((provider, acquired))
    }
}

/// The numbers of a new lease that took this long.
pub(in crate::commands) fn outcome(acquired: &AcquiredLease, took: Duration) -> Outcome {
    Outcome {
        total: took,
        lease: Some(took),
        stages: acquired.stages.clone(),
        guest_stages: acquired.guest_stages.clone(),
        start: acquired.start.clone(),
        ..Outcome::default()
    }
}

/// The two lines that scripts parse.
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
