//! `prewarm`: makes a lease ready ahead of its use, and probes it.

use std::time::{Duration, Instant};

use crabbox_core::config::FlagValue;
use crabbox_engine::entry::LeaseRequest;
use crabbox_engine::host::prepare::NewLease;
use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::report::Outcome;
use crabbox_engine::run::request::{CommandOptions, LeaseOptions, RunRequest, SyncOptions};

use crate::args::{LEASE_GROUPS, PrewarmArgs};
use crate::command_line::CommandLine;
use crate::commands::engine;
use crate::commands::lease::leaving;
use crate::commands::lease::warmup::{self, Warmup};
use crate::commands::work::run::{self, Invocation, Manner};
use crate::context::Ctx;
use crate::go;
use crate::timing::TimingJson;
use crate::ui::{CommandError, Exit};

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &PrewarmArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    if args.verbose {
        ctx.printer.be_verbose();
    }
    let probe = args.probe_command.as_deref();
    if args.dry_run {
        ctx.printer.lines(warming(args).shown());
        if let Some(command) = probe {
            let lease = args.slug.as_deref().unwrap_or("<lease>");
            ctx.printer.lines(probing(args, lease, command).shown());
        }
        return Ok(Exit::SUCCESS);
    }
    if let Some(command) = probe {
        // Judged before there is a lease; its name does not matter to the judgement.
        run::judge(ctx, &probe_of(args, "", command))?;
    }
    let started = Instant::now();
    let interrupts = engine::interrupts()?;
    let warm = Warmup {
        wanted: LeaseRequest {
            lease: NewLease {
                slug: args.slug.clone(),
                keep: true,
                reclaim: args.reclaim,
                external: None,
            },
            set_up: args.yes,
        },
        json: false,
        // The line of timings is about the whole, and comes last.
        timing_json: false,
        flags: &args.keys.values,
    };
    let (provider, acquired) = warm.lease(ctx, &interrupts)?;
    let lease = &acquired.lease;
    let warmed = started.elapsed();
    let mut outcome = warmup::outcome(&acquired, warmed);
    ctx.printer.line(format_args!(
        "prewarm hydration=skipped reason=no_actions_workflow id={}",
        lease.id
    ));
    let probing_since = Instant::now();
    let (probed, of_probe) = match probe {
        Some(command) => {
            let probe = run::observed(ctx, &probe_of(args, &lease.id, command), &interrupts);
            outcome.probe = probing_since.elapsed();
            (probe.ended, probe.outcome)
        }
        None => (Ok(Exit::SUCCESS), None),
    };
    if let Err(error) = &probed {
        outcome.failed_in(of_probe, error.kind().exit_code());
        let released = give_back(ctx, provider.as_ref(), lease);
        outcome.stopped = Some(released.clone().unwrap_or(false));
        outcome.stop_error = released.err().unwrap_or_default();
    }
    outcome.total = started.elapsed();
    if probed.is_ok() {
        complete(ctx, lease, warmed, &outcome);
    }
    if args.timing_json {
        ctx.printer
            .note_json(&TimingJson::new(lease, &outcome, &args.keys.values))?;
    }
    probed
}

/// Gives the lease back after its probe failed. The probe's error matters more than one from this.
fn give_back(ctx: &Ctx<'_>, provider: &dyn Provider, lease: &Lease) -> Result<bool, String> {
    leaving::release(ctx, provider, lease).map_err(|error| {
        let error = CommandError::from(error).text();
        ctx.printer
            .warnings(format_args!("the lease could not be released: {error}"));
        error
    })
}

/// The equivalent `warmup`.
fn warming(args: &PrewarmArgs) -> CommandLine {
    CommandLine::new("warmup")
        .maybe("slug", args.slug.as_deref())
        .switch("json-events", args.json_events)
        .switch("reclaim", args.reclaim)
        .switch("yes", args.yes)
        .keys(&args.keys.values)
}

/// The `run` equivalent to the probe.
fn probing(args: &PrewarmArgs, lease: &str, command: &str) -> CommandLine {
    CommandLine::new("run")
        .flag("id", lease)
        .switch("json-events", args.json_events)
        .switch("no-sync", true)
        .switch("shell", true)
        .keys(&flags_of_a_lease(args))
        .rest([command.into()])
}

/// The probe: `command` in a shell of `lease`, in whatever tree is there.
fn probe_of(args: &PrewarmArgs, lease: &str, command: &str) -> Invocation {
    Invocation {
        request: RunRequest {
            lease: LeaseOptions {
                id: Some(lease.to_owned()),
                ..LeaseOptions::default()
            },
            sync: SyncOptions {
                no_sync: true,
                ..SyncOptions::default()
            },
            command: CommandOptions {
                shell: true,
                words: vec![command.into()],
                ..CommandOptions::default()
            },
            ..RunRequest::default()
        },
        flags: flags_of_a_lease(args),
        manner: Manner {
            json_events: args.json_events,
            ..Manner::default()
        },
    }
}

/// The given flags, except those that describe a new lease: they do not apply to an existing one.
fn flags_of_a_lease(args: &PrewarmArgs) -> Vec<FlagValue> {
    let is_of_leases = |flag: &&FlagValue| {
        let flag = flag.key.key().flag;
        flag.is_some_and(|flag| LEASE_GROUPS.contains(&flag.group))
    };
    args.keys.values.iter().filter(is_of_leases).cloned().collect()
}

fn complete(ctx: &Ctx<'_>, lease: &Lease, warmup: Duration, outcome: &Outcome) {
    ctx.printer.line(format_args!(
        "prewarm complete id={} provider={} hydration=skipped warmup={}ms hydrate=0ms probe={}ms total={}",
        lease.id,
        lease.provider,
        warmup.as_millis(),
        outcome.probe.as_millis(),
        go::milliseconds(outcome.total)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    #[test]
    fn a_prewarm_is_the_two_commands_that_are_shown_for_it() {
        let line = [
            "crabbox",
            "prewarm",
            "--slug=s",
            "--reclaim",
            "--yes",
            "--timing-json",
            "--json-events",
            "--ttl=1h",
            "--provider=ssh",
            "--firecracker-image=x",
            "--desktop",
        ];
        let Command::Prewarm(args) = parse(&line.map(Into::into)).unwrap() else {
            panic!("it begins with prewarm");
        };
        let Ok(Command::Run(probe)) = probing(&args, "jade-krill", "-x 'y'").parse() else {
            panic!("it begins with run");
        };
        assert_eq!(probe_of(&args, "jade-krill", "-x 'y'"), (*probe).into());
        let Ok(Command::Warmup(warm)) = warming(&args).parse() else {
            panic!("it begins with warmup");
        };
        assert_eq!(warm.keys.values, args.keys.values);
        assert_eq!(
            (
                warm.slug.as_deref(),
                warm.keep,
                warm.reclaim,
                warm.yes,
                warm.timing_json
            ),
            (Some("s"), true, true, true, false)
        );
    }
}
