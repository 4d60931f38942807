//! The messages of a run: each event worded for a person, a script or a program.
//!
//! Lines that scripts read are the Go program's. A variable's value must never appear in a line.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crabbox_core::config::Settings;
use crabbox_core::config::allow::Allow;
use crabbox_engine::entry::{Entry, EntryEvent, EntryEvents};
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::event::{
    CommandEvent, Documents, EndEvent, PolicyFailure, Recorded, ResultEvent, RunEvents, StartEvent,
    SyncListener, TreeEvent,
};
use crabbox_engine::run::report::Outcome;
use crabbox_engine::run::request::StopAfter;
use crabbox_engine::stage::Stages;
use crabbox_host::clock;
use crabbox_host::console::harmless;
use crabbox_workspace::env_profile;
use crabbox_workspace::results::{junit, schema};

use super::report;
use super::{BundledRun, Invocation};
use crate::command_line::CommandLine;
use crate::commands::host::config;
use crate::commands::lease::entering::{Entering, console_tail};
use crate::commands::work::bench::{Record, Repository};
use crate::commands::work::progress::SyncProgress;
use crate::context::Ctx;
use crate::go;
use crate::timing::TimingJson;
use crate::ui;

/// How many failed tests are named.
const NAMED: usize = 10;

/// The messages of one run.
pub(super) struct RunWords<'a> {
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) invocation: &'a Invocation,
    settings: &'a Settings,
    entering: Entering<'a>,
    /// Set when the timings are recorded.
    recorded: &'a AtomicBool,
}

impl<'a> RunWords<'a> {
    pub(super) fn new(
        ctx: &'a Ctx<'a>,
        invocation: &'a Invocation,
        settings: &'a Settings,
        recorded: &'a AtomicBool,
    ) -> Self {
        Self {
            ctx,
            invocation,
            settings,
            entering: Entering { ctx, command: "run" },
            recorded,
        }
    }
}

impl Stages for RunWords<'_> {
    fn began(&self, stage: &'static str) {
        self.entering.began(stage);
    }

    fn ended(&self, stage: &'static str, took: Duration, ok: bool) {
        self.entering.ended(stage, took, ok);
    }
}

impl EntryEvents for RunWords<'_> {
    fn entry(&self, event: &EntryEvent<'_>) {
        self.entering.entry(event);
    }

    fn set_up(
        &self,
        entry: &Entry<'_>,
        agreed: bool,
        error: Option<&LeaseError>,
    ) -> Result<bool, LeaseError> {
        self.entering.set_up(entry, agreed, error)
    }
}

impl Documents for RunWords<'_> {
    fn timing(&self, lease: &Lease, outcome: &Outcome) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&TimingJson::new(lease, outcome, &self.invocation.flags))
    }

    fn record(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        run: &Recorded<'_>,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let timing = TimingJson::new(lease, outcome, &self.invocation.flags);
        let repository = Repository {
            name: run.repo.name.clone(),
            remote: run
                .repo
                .origin
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            head: run.repo.head.clone().unwrap_or_default(),
        };
        let bench = self.invocation.manner.bench;
        let source = bench.map_or("run", |_| "bench-run");
        let now = clock::unix_now();
        let mut record = Record::new(
            now,
            source,
            serde_json::to_value(&timing)?,
            run.command,
            &repository,
        );
        record.benchmark.cold_run = bench.and_then(|bench| bench.cold).or(Some(run.new));
        record.benchmark.repeat_index = bench
            .and_then(|bench| u32::try_from(bench.repeat).ok())
            .unwrap_or_default();
        serde_json::to_vec(&record)
    }

    fn failed_run(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        command: &str,
    ) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&BundledRun {
            provider: lease.provider,
            lease_id: &lease.id,
            slug: &lease.slug,
            run_id: &outcome.run_id,
            command: command.to_owned(),
            workdir: &outcome.workdir,
            exit_code: outcome.exit_code,
            actions_run_url: "",
            capture_on_fail_flag: self.invocation.request.results.capture_on_fail,
        })
    }

    fn configuration(&self) -> Vec<String> {
        config::described(self.settings)
    }
}

impl RunEvents for RunWords<'_> {
    fn start(&self, event: &StartEvent<'_>) {
        let printer = self.ctx.printer;
        match event {
            StartEvent::Withheld { name, origin } => printer.warn(format_args!(
                "{name} is not forwarded: only the repository asks for it ({origin}), and it looks like a secret; --allow-env {name} forwards it, \
                 and so does env.allow in your own configuration"
            )),
            StartEvent::Unused { name } => printer.warn(format_args!(
                "{{{{{name}}}}} stands nowhere in what is run: its value has no effect"
            )),
            StartEvent::Preset {
                name,
                variables,
                command,
            } => {
                let variables = env_profile::described(variables).replace(',', " ");
                let line = format!("expanded preset {name}: {variables} {command}");
                printer.detail(harmless(&line.replacen(":  ", ": ", 1)));
            }
            StartEvent::NotText { name } => printer.warn(format_args!(
                "{name} is not forwarded: its value is not valid UTF-8; pass it in a file"
            )),
            StartEvent::Unmatchable { entry } => printer.warn(format_args!(
                "{} matches no variable: --allow-env and env.allow take names, and prefixes followed by *",
                harmless(&format!("{entry:?}"))
            )),
            StartEvent::Unread(unread) => printer.warn(harmless(&unread.to_string())),
            StartEvent::Made { lease, took } => printer.brief(format_args!(
                "leased {} ({} {}) in {}",
                lease.slug,
                lease.provider,
                lease.address,
                go::milliseconds(*took)
            )),
            StartEvent::Using(lease) => printer.brief(format_args!(
                "using {} ({} {})",
                lease.slug, lease.provider, lease.address
            )),
            StartEvent::Bringing {
                lease,
                root,
                workdir,
            } => printer.detail(format_args!(
                "syncing {} -> {}:{workdir}",
                root.display(),
                lease.address
            )),
            StartEvent::Context { lease, run, workdir } => report::context(self.ctx, lease, run, workdir),
        }
    }

    fn tree(&self, event: &TreeEvent<'_>) {
        let printer = self.ctx.printer;
        match event {
            TreeEvent::Waiting { elapsed, state } => printer.note(format_args!(
                "waiting for reusable workspace owner elapsed={} state={state}",
                go::seconds(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
            )),
            TreeEvent::Owned { wait, recovered } => printer.detail(format_args!(
                "workspace owner acquired wait={} recovered={recovered}",
                go::milliseconds(*wait)
            )),
            TreeEvent::BaseRef(base_ref) => printer.warn(format_args!(
                "sync.baseRef ({}) has no effect: with sync.gitSeed off the lease gets no repository",
                base_ref.origin
            )),
            TreeEvent::Looked(lines) => {
                // The first line gives the size; the others are warnings.
                if let Some((candidate, warnings)) = lines.split_first() {
                    printer.detail(candidate);
                    for line in warnings {
                        printer.note(line);
                    }
                }
            }
            TreeEvent::Emptying { workdir } => {
                printer.detail(format_args!("full-resync resetting remote workdir {workdir}"));
            }
            TreeEvent::WentDown => printer.warn("the machine of the lease went down while files were sent"),
            TreeEvent::Synced {
                sent,
                skipped,
                took,
                steps,
            } => self.synced(*sent, *skipped, *took, steps),
            TreeEvent::OnlySynced { workdir } => printer.line(format_args!("synced {workdir}")),
        }
    }

    fn command(&self, event: &CommandEvent<'_>) {
        let printer = self.ctx.printer;
        match event {
            CommandEvent::LookingAtTools => printer.note("preflight:"),
            CommandEvent::Tool(line) => printer.note(format_args!("  {}", harmless(line))),
            CommandEvent::Uploaded { source, path } => {
                printer.detail(format_args!("uploaded script {source} -> {path}"));
            }
            CommandEvent::Running { lease, command } => {
                printer.details(format_args!("running on {} {command}", lease.address));
            }
            CommandEvent::Forwarding {
                lease,
                variables,
                allow,
            } => self.forwarding(lease, variables, allow),
            CommandEvent::Capturing { stream, path } => {
                printer.detail(format_args!("capturing {stream} to {}", path.display()));
            }
            CommandEvent::Captured { stream, path, bytes } => {
                printer.detail(format_args!("captured {stream}={} bytes={bytes}", path.display()));
            }
            CommandEvent::Helper { name } => printer.detail(format_args!(
                "env helper remote=.crabbox/env/{name} usage='./.crabbox/env/{name} <command>'"
            )),
            CommandEvent::Ended(outcome) => {
                let took = go::milliseconds(outcome.command);
                printer.detail(format_args!(
                    "command complete in {took} total={}",
                    go::milliseconds(outcome.total)
                ));
                printer.brief(match outcome.exit_code {
                    0 => format!("command succeeded in {took}"),
                    _ => format!("command failed in {took}"),
                });
            }
        }
    }

    fn result(&self, event: &ResultEvent<'_>) {
        let printer = self.ctx.printer;
        match event {
            ResultEvent::ReportsUnread(error) => printer.warnings(format_args!(
                "collect test results incomplete: {}",
                ui::told(*error)
            )),
            ResultEvent::Incomplete { is_report, problem } => {
                let subject = if *is_report { "test results" } else { "artifacts" };
                printer.warn(format_args!(
                    "collect {subject} incomplete: {}",
                    harmless(problem)
                ));
            }
            ResultEvent::Also(error) => printer.warnings(ui::told(*error)),
            ResultEvent::Tests(report) => self.tests(report),
            ResultEvent::Policy(why) => printer.note(format_args!(
                "test results policy: failing run because {}",
                match why {
                    PolicyFailure::Failed { failures, errors } =>
                        format!("collected JUnit reports contain failures={failures} errors={errors}"),
                    PolicyFailure::Unread => "not every JUnit report could be read".to_owned(),
                    PolicyFailure::NoReport => "no JUnit report was found".to_owned(),
                    PolicyFailure::NoTests => "the JUnit reports have no tests".to_owned(),
                }
            )),
            ResultEvent::Required { pattern, matched } => {
                printer.note(format_args!("required artifact {pattern} matched={matched}"));
            }
            ResultEvent::Schema { required, judgement } => self.schema(required, judgement),
            ResultEvent::Downloaded { path, bytes } => {
                printer.note(format_args!("downloaded {} bytes={bytes}", path.display()));
            }
            ResultEvent::NoArtifact(pattern) => printer.warn(format_args!("no artifact matches {pattern}")),
            ResultEvent::Archived { path, bytes } => printer.note(format_args!(
                "artifact kind=artifact-glob path={path} bytes={bytes}"
            )),
            ResultEvent::Evidence(artifact) => {
                let mut line = format!(
                    "artifact kind={} path={} bytes={}",
                    artifact.kind, artifact.path, artifact.bytes
                );
                if artifact.kind == "proof" {
                    line.push_str(" template=");
                    line.push_str(artifact.template.as_deref().unwrap_or("default"));
                }
                printer.note(line);
            }
        }
    }

    fn end(&self, event: &EndEvent<'_>) {
        let (ctx, flags) = (self.ctx, &self.invocation.flags);
        let results = &self.invocation.request.results;
        match event {
            EndEvent::WentDown { console } => console_tail(ctx.printer, console),
            EndEvent::Blocked(class) => ctx.printer.note(format_args!(
                "failure classification blocked_stage={}{} retry_likely={}",
                class.stage,
                report::exhaustion(class.stage),
                class.retry
            )),
            EndEvent::Summary { lease, report } => report::summary(ctx, lease, report, flags),
            EndEvent::Failed {
                lease,
                report,
                ended,
                onwards,
            } => {
                let next = self.next(lease, report, onwards);
                report::digest(ctx, results, report, ended, &next);
            }
            EndEvent::Bundled { name, bytes } => ctx.printer.note(format_args!(
                "failure-bundle local={name} bytes={bytes} secret_risk=caller-redacts-before-sharing"
            )),
            EndEvent::NotBundled(error) => ctx.printer.warn(format_args!(
                "no failure bundle was written: {}",
                ui::told(*error)
            )),
            EndEvent::NotAttested(error) => {
                ctx.printer
                    .warn(format_args!("no receipt was written: {}", ui::told(*error)));
            }
            EndEvent::KeptOnFailure { lease, report } => report::kept(ctx, lease, report, flags),
            EndEvent::Streams { ended, code } => report::streams(ctx, results, ended, *code),
            EndEvent::OwnerReleased => ctx.printer.detail("workspace owner released"),
            EndEvent::Releasing(_) | EndEvent::Released { .. } if self.invocation.manner.timing_json => {}
            EndEvent::Releasing(lease) => ctx.printer.detail(format_args!(
                "releasing {} server={}",
                lease.id,
                lease.display_id()
            )),
            EndEvent::Released {
                lease,
                policy,
                stopped,
            } => report::released(ctx, lease, policy.map_or("auto", StopAfter::name), *stopped),
            EndEvent::Kept(lease) => ctx.printer.brief(format_args!(
                "kept {}; to stop it: {}",
                lease.slug,
                CommandLine::stop(lease, flags).shown()
            )),
            EndEvent::Recorded { path } => {
                self.recorded.store(true, Ordering::Relaxed);
                ctx.printer.note(format_args!(
                    "benchmark timing record appended path={} observations=1",
                    path.display()
                ));
            }
        }
    }

    fn stdout(&self, bytes: &[u8]) -> io::Result<()> {
        self.ctx.printer.command_out(bytes)
    }

    fn stderr(&self, bytes: &[u8]) -> io::Result<()> {
        self.ctx.printer.command_err(bytes)
    }

    fn sync(&self) -> Box<dyn SyncListener + '_> {
        Box::new(SyncProgress::new(self.ctx.printer))
    }
}

impl RunWords<'_> {
    fn synced(&self, sent: u64, skipped: bool, took: Duration, steps: &[(&'static str, Duration)]) {
        let printer = self.ctx.printer;
        if self.invocation.manner.debug {
            for (step, took) in steps {
                printer.note(format_args!("sync step {step} {}", go::milliseconds(*took)));
            }
        }
        let took = go::milliseconds(took);
        printer.brief(if skipped {
            format!("nothing to sync ({took})")
        } else {
            let files = if sent == 1 { "file" } else { "files" };
            format!("synced {sent} {files} in {took}")
        });
        if skipped {
            printer.detail(format_args!("No changes detected, skipping sync ({took})"));
        } else {
            printer.detail(format_args!("sync complete in {took}"));
        }
    }

    /// Which variables are forwarded, if any were requested.
    fn forwarding(&self, lease: &Lease, variables: &[(String, String)], allow: &Allow) {
        let command = &self.invocation.request.command;
        if command.allow_env.is_empty()
            && command.env_from_profile.is_empty()
            && self.ctx.env.os("CRABBOX_ENV_ALLOW").is_none()
        {
            return;
        }
        let names = if variables.is_empty() {
            format!(
                "matched=none allow={}",
                allow.names().collect::<Vec<_>>().join(",")
            )
        } else {
            format!("vars={}", env_profile::described(variables))
        };
        self.ctx.printer.detail(format_args!(
            "env forwarding provider={} behavior=forwarded {names}",
            lease.provider
        ));
    }

    /// The result of validating a file against a schema.
    fn schema(&self, required: &schema::Required, judgement: &schema::Judgement) {
        let (printer, remote, path) = (self.ctx.printer, &required.remote, required.schema.display());
        match judgement {
            schema::Judgement::Absent(why) => {
                printer.note(format_args!("schema {remote}: fetch failed: {}", harmless(why)));
            }
            schema::Judgement::Held(violations) if violations.is_empty() => {
                printer.note(format_args!("schema {remote}: ok ({path})"));
            }
            schema::Judgement::Held(violations) => {
                let checks = schema::count(violations);
                printer.note(format_args!("schema {remote}: failed {checks} against {path}:"));
                for violation in violations {
                    printer.note(format_args!("  - {}", harmless(violation)));
                }
            }
        }
    }

    fn tests(&self, report: &junit::Report) {
        let printer = self.ctx.printer;
        printer.note(format_args!(
            "test results files={} tests={} failures={} errors={} skipped={}",
            report.files.len(),
            report.tests,
            report.failures,
            report.errors,
            report.skipped
        ));
        for failed in report.failed.iter().take(NAMED) {
            let message = failed.message.lines().next().unwrap_or_default();
            let line = format!("test failed: {} {message}", failed.name);
            printer.note(harmless(line.trim_end()));
        }
    }
}
