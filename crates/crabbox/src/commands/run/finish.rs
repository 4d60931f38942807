//! The end of a run: its last lines, the tree and the lease given back where that is due.
//!
//! The command's own exit code always wins, and nothing here may hide why a run failed.

use std::time::{Duration, Instant};

use crabbox_engine::lease::Lease;
use crabbox_engine::run::owner::Owner;

use super::Run;
use super::error::RunFailure;
use super::report::{self, Summary};
use crate::args::StopAfter;
use crate::go;
use crate::timing::{Outcome, TimingJson};
use crate::ui::{CommandError, Exit};

/// What is there when everything in the lease is done.
pub(super) struct Finish {
    pub(super) new: bool,
    pub(super) started: Instant,
    pub(super) summary: Summary,
    pub(super) owner: Option<Owner>,
    pub(super) outcome: Result<(), CommandError>,
}

impl Run<'_> {
    /// The last lines, and the lease given back where it is due. The command's own exit code always wins.
    pub(super) fn finish(&self, lease: &Lease, finish: Finish) -> Result<Exit, CommandError> {
        let Finish {
            new,
            started,
            mut summary,
            owner,
            outcome,
        } = finish;
        let failed = outcome.is_err();
        let code = outcome
            .as_ref()
            .err()
            .map_or(0, |error| i32::from(error.kind().exit_code()));
        summary.outcome.exit_code = code;
        summary.outcome.total = started.elapsed();
        let ran = summary.outcome.command > Duration::ZERO;
        if ran {
            self.ctx.printer.note(format_args!(
                "command complete in {} total={}",
                go::milliseconds(summary.outcome.command),
                go::milliseconds(summary.outcome.total)
            ));
        }
        let keep = self.args.keep || (failed && self.args.keep_on_failure);
        let release = match self.args.stop_after {
            Some(StopAfter::Always) => true,
            Some(StopAfter::Never) => false,
            Some(StopAfter::Success) => !failed,
            Some(StopAfter::Failure) => failed,
            None => new && !keep,
        };
        let kept = new && failed && self.args.keep_on_failure && !release;
        if let Err(error) = &outcome {
            summary.judge(error);
        }
        report::summary(self.ctx, lease, &summary);
        if let Err(error) = &outcome {
            self.failed(lease, &summary, error);
        }
        if kept {
            report::kept(self.ctx, lease);
        }
        if let Some(ended) = &summary.ended {
            report::streams(self.ctx, &self.args.results, ended, code);
        }
        let quiet = match owner {
            Some(owner) if summary.unquiet => owner.abandon(),
            Some(owner) => owner.release(),
            None => false,
        };
        if quiet && !release {
            self.ctx.printer.note("workspace owner released");
        }
        let cleanup = if release {
            self.release(lease, &mut summary.outcome)
        } else {
            self.rest(lease)
        };
        let timing = TimingJson::new(lease, &summary.outcome);
        let recorded = self.record(&timing);
        if self.args.results.timing_json {
            self.ctx.printer.note_json(&timing)?;
        }
        outcome?;
        cleanup?;
        recorded?;
        Ok(Exit::SUCCESS)
    }

    /// What a failed run leaves for its reader. Nothing of it may hide why it failed.
    fn failed(&self, lease: &Lease, summary: &Summary, error: &CommandError) {
        let Some(ended) = &summary.ended else {
            return report::classification(self.ctx, error);
        };
        let again = self.request.script.is_none().then(|| {
            let shell = if self.request.shell { " --shell" } else { "" };
            format!("{shell} -- {}", self.request.display())
        });
        report::digest(self.ctx, lease, summary, ended, again.as_deref());
        if let Err(error) = self.bundle(lease, summary, ended) {
            let error = CommandError::from(error).text();
            self.ctx
                .printer
                .warn(format_args!("no failure bundle was written: {error}"));
        }
    }

    /// Appends the timings to the file of `--timing-record`.
    fn record(&self, timing: &TimingJson) -> Result<(), CommandError> {
        let path = match self.args.results.timing_record.as_deref() {
            None | Some("off" | "") => return Ok(()),
            Some("default") => self.engine.places.state.join("timings.jsonl"),
            Some(path) => self.ctx.env.cwd()?.join(path),
        };
        timing.append(&path).map_err(|source| RunFailure::Capture {
            path: path.clone(),
            source,
        })?;
        self.ctx.printer.note(format_args!(
            "benchmark timing record appended path={} observations=1",
            path.display()
        ));
        Ok(())
    }

    fn release(&self, lease: &Lease, outcome: &mut Outcome) -> Result<(), CommandError> {
        let quiet = self.args.results.timing_json;
        let policy = match self.args.stop_after {
            None => "auto",
            Some(StopAfter::Always) => "always",
            Some(StopAfter::Never) => "never",
            Some(StopAfter::Success) => "success",
            Some(StopAfter::Failure) => "failure",
        };
        if !quiet {
            self.ctx.printer.note(format_args!(
                "releasing {} server={}",
                lease.id,
                lease.display_id()
            ));
        }
        let stage = self.ctx.printer.stage("release");
        let stopped = self.provider.release(&lease.id);
        stage.end(stopped.is_ok());
        outcome.stopped = Some(stopped.is_ok());
        let error = stopped
            .as_ref()
            .err()
            .map(|error| crabbox_engine::teardown::chain(error))
            .unwrap_or_default();
        if !quiet {
            let (id, slug) = (&lease.id, &lease.slug);
            let told = if error.is_empty() {
                String::new()
            } else {
                format!(" error={error:?}")
            };
            self.ctx.printer.note(format_args!(
                "lease cleanup stopped={} policy={policy} lease={id} slug={slug}{told}",
                stopped.is_ok()
            ));
        }
        outcome.stop_error = error;
        stopped.map_err(|source| RunFailure::Cleanup {
            id: lease.id.clone(),
            source,
        })?;
        Ok(())
    }

    /// A lease that goes on is ready again.
    fn rest(&self, lease: &Lease) -> Result<(), CommandError> {
        self.provider.touch(lease, Some("ready"), None)?;
        Ok(())
    }
}
