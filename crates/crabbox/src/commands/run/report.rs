//! The lines of a run on standard error (behaviour reference 5.3); scripts read some of them.

use std::time::Duration;

use crabbox_engine::lease::Lease;

use super::failure::{self, Class};
use crate::args::RunResultArgs;
use crate::context::Ctx;
use crate::go;
use crate::timing::{Outcome, stop_command};
use crate::ui::CommandError;

/// How many lines of each stream a failure shows.
pub(super) const TAIL_LINES: usize = 40;
/// How many of them the digest shows.
const DIGEST_LINES: usize = 8;

/// What became of a run.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// The numbers.
    pub(super) outcome: Outcome,
    /// The steps of the sync.
    pub(super) steps: Vec<(&'static str, Duration)>,
    /// The stage that it is in before the command runs.
    pub(super) stage: Option<&'static str>,
    /// The command's end, when it ended without success.
    pub(super) ended: Option<Ended>,
    /// Whether the command may still run.
    pub(super) unquiet: bool,
    /// Whether the machine went down, so that nobody can go on in it.
    pub(super) down: bool,
    /// What the failure is thought to be.
    class: Option<Class>,
}

/// What a command left that ended without success.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Last lines of its standard output.
    pub(super) stdout: Vec<String>,
    /// Last lines of its standard error.
    pub(super) stderr: Vec<String>,
    /// Names of the variables it was given.
    pub(super) env: Vec<String>,
}

impl Summary {
    /// Finds out what a failure may be.
    pub(super) fn judge(&mut self, error: &CommandError) {
        let mut text = error.text();
        if let Some(ended) = &self.ended {
            text.push_str(&ended.stderr.join("\n"));
            text.push_str(&ended.stdout.join("\n"));
        }
        self.class = failure::classify(&text);
        let stage = self.stage.map(|stage| (stage, "unknown"));
        self.outcome.blocked = self.class.map(|class| (class.stage, class.retry)).or(stage);
    }
}

/// Where the run takes place.
pub(super) fn context(ctx: &Ctx<'_>, lease: &Lease, run: &str, workdir: &str) {
    let target = lease.target.as_ref();
    let ssh = target.map_or_else(
        || "-".to_owned(),
        |target| format!("{}:{}", target.destination(), target.port),
    );
    ctx.printer.note(format_args!(
        "run context:\n  run={run} portal=- logs=-\n  lease={} slug={} provider={} target=linux type={}\n  ssh={ssh} ip={}\n  workdir={workdir} workspace=raw actions=-",
        lease.id, lease.slug, lease.provider, lease.server_type, lease.address
    ));
}

/// The numbers of a run that came to its end.
pub(super) fn summary(ctx: &Ctx<'_>, lease: &Lease, summary: &Summary) {
    let Summary { outcome, .. } = summary;
    let ms = go::milliseconds;
    let lease_time = outcome.lease.unwrap_or_default();
    let mut line = format!(
        "run summary lease={} bootstrap={} sync={} command={} total={} end_to_end={} sync_skipped={} exit={}",
        ms(lease_time),
        ms(Duration::ZERO),
        ms(outcome.sync),
        ms(outcome.command),
        ms(outcome.total),
        ms(outcome.total),
        outcome.sync_skipped,
        outcome.exit_code,
    );
    let steps: Vec<String> = summary
        .steps
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
        line.push_str(&format_args!(" blocked_stage={stage} retry_likely={retry}").to_string());
    }
    ctx.printer.note(line);
    let label = if outcome.label.is_empty() {
        String::new()
    } else {
        format!(" label={:?}", outcome.label)
    };
    ctx.printer.note(format_args!(
        "run details provider={} lease={} slug={} run={}{label} type={} repo={} workdir={} actions=- stop_command=\"{}\" idle_timeout={}",
        lease.provider,
        lease.id,
        lease.slug,
        outcome.run_id,
        lease.server_type,
        outcome.repo_path,
        outcome.workdir,
        stop_command(lease),
        go::seconds(lease.idle_seconds()),
    ));
}

/// What a failure before the command is thought to be, if that can be told.
pub(super) fn classification(ctx: &Ctx<'_>, error: &CommandError) {
    if let Some(class) = failure::classify(&error.text()) {
        ctx.printer.note(format_args!(
            "failure classification blocked_stage={} retry_likely={}",
            class.stage, class.retry
        ));
    }
}

/// What a failed command leaves for its reader; `again` is how it would be run again, from the flags on.
pub(super) fn digest(ctx: &Ctx<'_>, lease: &Lease, summary: &Summary, ended: &Ended, again: Option<&str>) {
    let (provider, slug) = (lease.provider, &lease.slug);
    let area = summary.class.map_or("user_command", |class| class.area);
    let retry = summary.class.map_or("unknown", |class| class.retry);
    let say = |line: String| ctx.printer.note(format_args!("  {line}"));
    ctx.printer.note("failure digest");
    say("phase: command".to_owned());
    say(format!("area: {area}"));
    say(format!("retryable: {retry}"));
    if area == "resource_exhaustion" {
        say("resource_exhaustion: memory".to_owned());
    }
    let phases = &summary.outcome.phases;
    if let Some((last, _)) = phases.last() {
        say(format!("failed_phase: {last}"));
        let names: Vec<&str> = phases.iter().map(|(name, _)| name.as_str()).collect();
        say(format!("observed_phases: {}", names.join(",")));
    }
    let again = again.filter(|_| retry != "false");
    if summary.down {
        if let Some(again) = again {
            say(format!("next: crabbox run --provider {provider}{again}"));
        }
    } else {
        say(format!("next: crabbox ssh --provider {provider} --id {slug}"));
        if let Some(again) = again {
            say(format!(
                "next: crabbox run --provider {provider} --id {slug} --fresh-sync{again}"
            ));
        }
        say(format!("next: {}", stop_command(lease)));
    }
    let (name, lines) = if ended.stderr.is_empty() {
        ("stdout", &ended.stdout)
    } else {
        ("stderr", &ended.stderr)
    };
    if !lines.is_empty() {
        say(format!("tail {name}:"));
        for line in &lines[lines.len().saturating_sub(DIGEST_LINES)..] {
            say(format!("  {line}"));
        }
    }
}

/// The last lines of both streams of a command that failed with `code`.
pub(super) fn streams(ctx: &Ctx<'_>, results: &RunResultArgs, ended: &Ended, code: i32) {
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
            None if lines.is_empty() => ctx.printer.note(format_args!("{name} tail: empty")),
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

/// How to go on with a lease that was kept because the run failed.
pub(super) fn kept(ctx: &Ctx<'_>, lease: &Lease) {
    let (provider, slug) = (lease.provider, &lease.slug);
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
    ctx.printer.note(format_args!(
        "inspect: crabbox inspect --provider {provider} --id {slug}"
    ));
    ctx.printer
        .note(format_args!("ssh: crabbox ssh --provider {provider} --id {slug}"));
    if let Some(target) = &lease.target {
        ctx.printer
            .note(format_args!("ssh-direct: {}", target.display_line()));
    }
    ctx.printer
        .note(format_args!("stop: crabbox stop --provider {provider} {slug}"));
}
