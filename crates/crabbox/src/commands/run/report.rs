//! The lines of a run on standard error (behaviour reference 5.3); scripts read some of them.

use std::time::Duration;

use crabbox_engine::lease::Lease;

use crate::context::Ctx;
use crate::go;
use crate::timing::{Outcome, stop_command};

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
    /// The stage in which it failed before the command ran.
    pub(super) blocked: Option<&'static str>,
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
    if let Some(stage) = summary.blocked {
        line.push_str(&format_args!(" blocked_stage={stage} retry_likely=unknown").to_string());
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

/// What a failed command leaves for its reader.
pub(super) fn digest(ctx: &Ctx<'_>, lease: &Lease, stderr: &[String], stdout: &[String]) {
    let (provider, slug) = (lease.provider, &lease.slug);
    ctx.printer
        .note("failure digest\n  phase: command\n  area: user_command\n  retryable: unknown");
    ctx.printer.note(format_args!(
        "  next: crabbox ssh --provider {provider} --id {slug}"
    ));
    ctx.printer.note(format_args!("  next: {}", stop_command(lease)));
    let (name, lines) = if stderr.is_empty() {
        ("stdout", stdout)
    } else {
        ("stderr", stderr)
    };
    if !lines.is_empty() {
        ctx.printer.note(format_args!("  tail {name}:"));
        for line in &lines[lines.len().saturating_sub(DIGEST_LINES)..] {
            ctx.printer.note(format_args!("    {line}"));
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
