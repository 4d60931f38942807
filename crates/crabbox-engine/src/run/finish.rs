//! The end of a run: its last lines, the tree and the lease given back where that is due.
//!
//! The command's own exit code always wins, and nothing here may hide why a run failed.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crabbox_core::fault::{self, Fault as _};
use crabbox_core::state::LeaseState;
use crabbox_host::place::{Access, Place};
use crabbox_workspace::owner::Owner;

use crate::provider::lease::Lease;
use crate::run::error::{RecordError, RunError, RunFailure};
use crate::run::event::{CommandEvent, EndEvent, Onwards, Recorded};
use crate::run::report::{self, Outcome, RunReport};
use crate::run::{Run, RunEnd};

/// What is there when everything in the lease is done.
pub(super) struct Finish {
    pub(super) new: bool,
    /// When the command began of which the run is a part.
    pub(super) started: Instant,
    /// When it had its lease.
    pub(super) entered: Instant,
    pub(super) report: RunReport,
    pub(super) owner: Option<Owner>,
    pub(super) outcome: Result<(), RunError>,
}

impl Run<'_> {
    /// Tells how the run ended, and gives the lease back where that is due.
    pub(super) fn finish(&self, lease: Lease, finish: Finish) -> RunEnd {
        let Finish {
            new,
            started,
            entered,
            mut report,
            mut owner,
            outcome,
        } = finish;
        // Nothing more is wanted of the tree: its answer comes while the rest is done here.
        if let Some(owner) = owner.as_mut().filter(|_| !report.unquiet) {
            owner.let_go();
        }
        let failed = outcome.is_err();
        let code = outcome
            .as_ref()
            .err()
            .map_or(0, |error| i32::from(error.kind().exit_code()));
        report.outcome.exit_code = code;
        report.outcome.total = report.owned.unwrap_or(entered).elapsed();
        report.outcome.end_to_end = started.elapsed();
        if report.outcome.command > Duration::ZERO {
            self.events.command(&CommandEvent::Ended(&report.outcome));
        }
        let release = self.request.lease.is_over(new, failed);
        let kept = new && failed && self.request.lease.keep_on_failure && !release;
        if let Err(error) = &outcome {
            report.judge(error);
        }
        self.events.end(&EndEvent::Summary {
            lease: &lease,
            report: &report,
        });
        if let Err(error) = &outcome {
            self.failed(&lease, &report, error, release);
        }
        if kept {
            self.events.end(&EndEvent::KeptOnFailure {
                lease: &lease,
                report: &report,
            });
        }
        if let Some(ended) = &report.ended {
            self.events.end(&EndEvent::Streams { ended, code });
        }
        // A run that succeeded has its receipt.
        if failed && let Err(error) = self.attest(&lease, &mut report) {
            self.events.end(&EndEvent::NotAttested(&error));
        }
        let quiet = match owner {
            Some(owner) if report.unquiet => owner.abandon(),
            Some(owner) => owner.release(),
            None => false,
        };
        if quiet && !release {
            self.events.end(&EndEvent::OwnerReleased);
        }
        let cleanup = if release {
            self.release(&lease, &mut report.outcome)
        } else {
            if new {
                self.events.end(&EndEvent::Kept(&lease));
            }
            self.rest(&lease)
        };
        let recorded = self.record(&lease, &report.outcome, new);
        RunEnd {
            lease,
            report,
            outcome: outcome.and(cleanup).and(recorded),
        }
    }

    /// What a failed run leaves for its reader. Nothing of it may hide why it failed.
    fn failed(&self, lease: &Lease, report: &RunReport, error: &RunError, release: bool) {
        let Some(ended) = &report.ended else {
            if let Some(class) = report::class_of(error) {
                self.events.end(&EndEvent::Blocked(class));
            }
            return;
        };
        let onwards = if report.down {
            Onwards::Nowhere
        } else if release {
            // A host that exists already is there when its lease is not.
            self.provider
                .after_release(lease)
                .map_or(Onwards::Nowhere, Onwards::Host)
        } else {
            Onwards::Lease
        };
        self.events.end(&EndEvent::Failed {
            lease,
            report,
            ended,
            onwards: &onwards,
        });
        if let Err(error) = self.bundle(lease, report, ended) {
            self.events.end(&EndEvent::NotBundled(&error));
        }
    }

    /// Appends the timings to the file that was asked for, as one line, written at once so that two runs do not mix theirs.
    fn record(&self, lease: &Lease, outcome: &Outcome, new: bool) -> Result<(), RunError> {
        let path = match self.request.results.timing_record.as_deref() {
            None | Some("off" | "") => return Ok(()),
            Some("default") => self.engine.places.state.join("timings.jsonl"),
            Some(path) => self.here.cwd.join(path),
        };
        let place = Place::new(&self.repo.root, &path, Access::Private).map_err(RecordError::from)?;
        let recorded = Recorded {
            command: &self.work.recorded(),
            repo: self.repo,
            new,
        };
        let line = self.events.record(lease, outcome, &recorded);
        let mut line = line.map_err(RecordError::from)?;
        line.push(b'\n');
        let mut file = place.append().map_err(RecordError::from)?;
        file.write_all(&line).map_err(|source| RecordError::Write {
            path: place.path(),
            source,
        })?;
        self.events.end(&EndEvent::Recorded { path: &path });
        Ok(())
    }

    fn release(&self, lease: &Lease, outcome: &mut Outcome) -> Result<(), RunError> {
        self.events.end(&EndEvent::Releasing(lease));
        let stage = self.stage("release");
        let stopped = self.provider.give_back(lease);
        stage.end(stopped.is_ok());
        outcome.stopped = Some(*stopped.as_ref().unwrap_or(&false));
        outcome.stop_error = stopped
            .as_ref()
            .err()
            .map(|error| fault::chain(error))
            .unwrap_or_default();
        self.events.end(&EndEvent::Released {
            lease,
            policy: self.request.lease.stop_after,
            stopped: stopped.as_ref().copied(),
        });
        stopped.map_err(|source| RunFailure::Cleanup {
            id: lease.id.clone(),
            source,
        })?;
        Ok(())
    }

    /// A lease that goes on is ready again.
    fn rest(&self, lease: &Lease) -> Result<(), RunError> {
        self.provider.touch(lease, Some(&LeaseState::Ready), None)?;
        Ok(())
    }
}
