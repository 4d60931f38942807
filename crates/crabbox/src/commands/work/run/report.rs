//! The lines of a run on standard error, byte for byte the Go program's: scripts read some of them.

use crabbox_core::config::FlagValue;
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::failure;
use crabbox_engine::run::report::{Ended, RunReport};
use crabbox_engine::run::request::ResultOptions;
use crabbox_workspace::tee::TAIL_LINES;

use crate::command_line::CommandLine;
use crate::context::Ctx;
use crate::go;

/// How many output lines the failure digest shows.
const DIGEST_LINES: usize = 8;

/// Where the run takes place.
pub(super) fn context(ctx: &Ctx<'_>, lease: &Lease, run: &str, workdir: &str) {
    let target = lease.target.as_ref();
    let ssh = target.map_or_else(
        || "-".to_owned(),
        |target| format!("{}:{}", target.destination(), target.port),
    );
    ctx.printer.details(format_args!(
        "run context:\n  run={run} portal=- logs=-\n  lease={} slug={} provider={} target=linux type={}\n  ssh={ssh} ip={}\n  workdir={workdir} workspace=raw actions=-",
        lease.id, lease.slug, lease.provider, lease.server_type, lease.address
    ));
}

/// The summary of a completed run.
pub(super) fn summary(ctx: &Ctx<'_>, lease: &Lease, report: &RunReport, given: &[FlagValue]) {
    let outcome = &report.outcome;
    let ms = go::milliseconds;
    let lease_time = outcome.lease.unwrap_or_default();
    let mut line = format!(
        "run summary lease={} bootstrap={} sync={} command={} total={} end_to_end={} sync_skipped={} exit={}",
        ms(lease_time),
        ms(outcome.bootstrap),
        ms(outcome.sync),
        ms(outcome.command),
        ms(outcome.total),
        ms(outcome.end_to_end),
        outcome.sync_skipped,
        outcome.exit_code,
    );
    let steps: Vec<String> = outcome
        .sync_steps
        .iter()
        .filter(|(_, took)| !took.is_zero())
        .map(|(name, took)| format!("{name}:{}", ms(*took)))
        .collect();
    if !steps.is_empty() {
        line.push_str(&format_args!(" sync_steps={}", steps.join(",")).to_string());
    }
    let phases: Vec<String> = outcome
        .phases
        .iter()
        .map(|(name, took)| format!("{name}:{}", ms(*took)))
        .collect();
    if !phases.is_empty() {
        line.push_str(&format_args!(" command_phases={}", phases.join(",")).to_string());
    }
    if let Some((stage, retry)) = outcome.blocked {
        let exhausted = exhaustion(stage);
        line.push_str(&format_args!(" blocked_stage={stage}{exhausted} retry_likely={retry}").to_string());
    }
    ctx.printer.detail(line);
    let label = if outcome.label.is_empty() {
        String::new()
    } else {
        format!(" label={:?}", outcome.label)
    };
    ctx.printer.detail(format_args!(
        "run details provider={} lease={} slug={} run={}{label} type={} repo={} workdir={} actions=- stop_command=\"{}\" idle_timeout={}",
        lease.provider,
        lease.id,
        lease.slug,
        outcome.run_id,
        lease.server_type,
        outcome.repo_path,
        outcome.workdir,
        CommandLine::stop(lease, given).shown(),
        go::seconds(lease.idle_seconds()),
    ));
}

/// The part of a failure's line about what ran out.
pub(super) fn exhaustion(stage: &str) -> String {
    failure::exhausted(stage).map_or_else(String::new, |resource| format!(" resource_exhaustion={resource}"))
}

/// The digest of a failed command, with the `next` steps.
pub(super) fn digest(
    ctx: &Ctx<'_>,
    results: &ResultOptions,
    report: &RunReport,
    ended: &Ended,
    next: &[CommandLine],
) {
    let area = report.area();
    let retry = report.retry();
    let say = |line: String| ctx.printer.note(format_args!("  {line}"));
    // A person has seen the command fail; print more only if more is known.
    let phases = &report.outcome.phases;
    if !ctx.printer.is_brief() || area != "user_command" {
        ctx.printer.note("failure digest");
        let phase = phases.last().map_or("command", |(name, _)| name);
        say(format!("phase: {}", phase.to_lowercase()));
        say(format!("area: {area}"));
        say(format!("retryable: {retry}"));
    }
    if let Some(resource) = report.outcome.exhausted() {
        say(format!("resource_exhaustion: {resource}"));
    }
    // If the command announced no phases, a person need not be told which one failed.
    if let Some((last, _)) = phases.last()
        && (!ctx.printer.is_brief() || phases.len() > 1)
    {
        say(format!("failed_phase: {last}"));
        let names: Vec<&str> = phases.iter().map(|(name, _)| name.as_str()).collect();
        say(format!("observed_phases: {}", names.join(",")));
    }
    for line in next {
        // A command to paste may have line breaks between its quotes.
        ctx.printer.notes(format_args!("  next: {}", line.shown()));
    }
    // Whoever captures a stream may do so to keep it out of what is shown here.
    let shown = match (&results.capture_stderr, &results.capture_stdout) {
        (None, _) if !ended.stderr.is_empty() => Some(("stderr", &ended.stderr)),
        (_, None) if !ended.stdout.is_empty() => Some(("stdout", &ended.stdout)),
        _ => None,
    };
    // Do not repeat what was just shown on the terminal, nor what `streams` says of captures.
    if ctx.printer.is_brief() {
        return;
    }
    if let Some((name, lines)) = shown {
        say(format!("tail {name}:"));
        for line in &lines[lines.len().saturating_sub(DIGEST_LINES)..] {
            say(format!("  {line}"));
        }
    } else if let Some(path) = &results.capture_stderr {
        say(format!("tail stderr: captured at {}", path.display()));
    } else if let Some(path) = &results.capture_stdout {
        say(format!("tail stdout: captured at {}", path.display()));
    }
}

/// The last lines of both streams of a command that failed with `code`.
pub(super) fn streams(ctx: &Ctx<'_>, results: &ResultOptions, ended: &Ended, code: i32) {
    if code == 127 {
        ctx.printer.note("hint: a command was not found in the lease; --preflight shows which tools are there, and a login shell (bash -lc) decides its PATH");
    }
    for (name, path, lines) in [
        ("stdout", &results.capture_stdout, &ended.stdout),
        ("stderr", &results.capture_stderr, &ended.stderr),
    ] {
        match path {
            Some(path) => ctx
                .printer
                .note(format_args!("{name} tail: captured at {}", path.display())),
            None if lines.is_empty() => ctx.printer.detail(format_args!("{name} tail: empty")),
            None if ctx.printer.is_brief() => {}
            None => {
                let lines = &lines[lines.len().saturating_sub(TAIL_LINES)..];
                ctx.printer
                    .note(format_args!("{name} tail last {} lines:", lines.len()));
                for line in lines {
                    ctx.printer.note(line);
                }
            }
        }
    }
}

/// How to continue with a lease that was kept because the run failed.
pub(super) fn kept(ctx: &Ctx<'_>, lease: &Lease, report: &RunReport, given: &[FlagValue]) {
    let slug = &lease.slug;
    let line = |command| CommandLine::for_lease(command, lease.provider, given);
    let expires = lease
        .expires_at()
        .map_or_else(|| "idle/ttl".to_owned(), crabbox_core::timestamp::rfc3339);
    let ttl = crabbox_core::labels::time(&lease.labels, "ttl_secs").unwrap_or_default();
    ctx.printer.note(format_args!(
        "keep-on-failure: kept lease={} slug={slug} expires={expires} idle_timeout={} ttl={}",
        lease.id,
        go::seconds(lease.idle_seconds()),
        go::seconds(ttl)
    ));
    let printer = ctx.printer;
    printer.note(format_args!(
        "inspect: {}",
        line("inspect").option("id", slug).shown()
    ));
    // A machine that went down cannot be entered.
    if !report.down {
        printer.note(format_args!("ssh: {}", line("ssh").option("id", slug).shown()));
        if let Some(target) = &lease.target {
            printer.note(format_args!("ssh-direct: {}", target.display_line()));
        }
    }
    printer.note(format_args!("stop: {}", line("stop").word(slug).shown()));
}

/// Whether a lease was given back, under the named policy.
pub(super) fn released(ctx: &Ctx<'_>, lease: &Lease, policy: &str, stopped: Result<bool, &LeaseError>) {
    let gone = stopped.unwrap_or(false);
    let error = stopped
        .err()
        .map(|error| crabbox_core::fault::chain(error))
        .unwrap_or_default();
    let suffix = if error.is_empty() {
        String::new()
    } else {
        format!(" error={error:?}")
    };
    let (id, slug) = (&lease.id, &lease.slug);
    ctx.printer.detail(format_args!(
        "lease cleanup stopped={gone} policy={policy} lease={id} slug={slug}{suffix}"
    ));
    if error.is_empty() {
        ctx.printer.brief(if gone {
            format!("released {slug}")
        } else {
            format!("left {slug}: others use or keep it")
        });
    }
}
