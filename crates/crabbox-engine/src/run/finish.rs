//! The end of a run: its last messages, and giving back the tree and the lease if due.
//!
//! The command's own exit code always takes precedence, and nothing here may hide why a run failed.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crabbox_core::fault::{self, Fault as _};
use crabbox_core::state::LeaseState;
use crabbox_host::place::{Access, Place};
use crabbox_workspace::owner::Owner;

use crate::provider::Ending;
use crate::provider::lease::Lease;
use crate::run::error::{RecordError, RunError, RunFailure};
use crate::run::event::{CommandEvent, EndEvent, NextStep, Recorded};
use crate::run::report::{self, Outcome, RunReport};
use crate::run::{Ground, Run, RunEnd};

/// The state when everything in the lease is done.
pub(super) struct Finish {
    pub(super) new: bool,
    /// When the whole command began that the run is a part of.
    pub(super) started: Instant,
    /// When it had its lease.
    pub(super) entered: Instant,
    pub(super) report: RunReport,
    pub(super) owner: Option<Owner>,
    pub(super) outcome: Result<(), RunError>,
}

impl Run<'_> {
    /// Reports how the run ended, and gives the lease back if it is due.
    pub(super) fn finish(&self, lease: Lease, finish: Finish) -> RunEnd {
        let Finish {
            new,
            started,
            entered,
            mut report,
            mut owner,
            outcome,
        } = finish;
        // The tree is not needed any more. Release it now, and read the answer after the other work here.
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
        // A successful run has written its receipt already.
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
            ground: Ground::Lease(Box::new(lease)),
            report,
            outcome: outcome.and(cleanup).and(recorded),
        }
    }

    /// Writes what a failed run leaves for the user. An error here must not hide why the run failed.
    fn failed(&self, lease: &Lease, report: &RunReport, error: &RunError, release: bool) {
        let Some(ended) = &report.ended else {
            if let Some(class) = report::class_of(error) {
                self.events.end(&EndEvent::Blocked(class));
            }
            return;
        };
        let onwards = if report.down {
            NextStep::Nowhere
        } else if release {
            // An existing host is still there after its lease has ended.
            self.provider
                .after_release(lease)
                .map_or(NextStep::Nowhere, NextStep::Host)
        } else {
            NextStep::Lease
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

    /// Appends the timings to the requested file as one line, in a single write, so that concurrent runs do
    /// not mix theirs.
    fn record(&self, lease: &Lease, outcome: &Outcome, new: bool) -> Result<(), RunError> {
        let results = &self.request.results;
        let Some(path) = results.timing_record(&self.here.cwd, &self.engine.places.state) else {
            return Ok(());
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
        let ending = match self.request.lease.stop_after {
            Some(_) if !self.request.lease.is_others_stop => Ending::Asked,
            _ => Ending::Done,
        };
        let stopped = self.provider.give_back_as(lease, ending);
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
        let is_stopped = stopped.map_err(|source| RunFailure::Cleanup {
            id: lease.id.clone(),
            source,
        })?;
        if !is_stopped {
            // Whoever else uses the lease may end it meanwhile, and then there is no state to set.
            self.rest(lease).ok();
        }
        Ok(())
    }

    /// Marks a lease that goes on as ready again.
    fn rest(&self, lease: &Lease) -> Result<(), RunError> {
        self.provider.touch(lease, Some(&LeaseState::Ready), None)?;
        Ok(())
    }
}
