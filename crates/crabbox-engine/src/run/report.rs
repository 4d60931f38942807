//! The result of a run, as plain numbers and words.

use std::time::{Duration, Instant};

use crabbox_core::fault::{self, Connectivity, Fault, Kind};
use crabbox_machine::protocol::Stage;
use schemars::JsonSchema;
use serde::Serialize;

use crate::provider::MachineStart;
use crate::run::error::{ResultError, RunError, RunFailure};
use crate::run::failure::{self, Class};
use crate::run::witnessed::Witnessed;

/// The result of a command, for its timing line.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Exit code.
    pub exit_code: i32,
    /// From owning the tree to the end of the command; for `warmup`, everything.
    pub total: Duration,
    /// The same, including the lease and the wait for the tree; zero for `warmup`.
    pub end_to_end: Duration,
    /// From the request to a lease that can be entered, whether new or existing.
    pub lease: Option<Duration>,
    /// The wait for a connection to an existing lease; zero if others had already opened it.
    pub bootstrap: Duration,
    /// The stages of a new lease.
    pub stages: Vec<Stage>,
    /// The guest's report of its own boot.
    pub guest_stages: Vec<(String, u64)>,
    /// How the machine of a new lease started.
    pub start: Option<MachineStart>,
    /// How long the sync took.
    pub sync: Duration,
    /// The steps of the sync, in order.
    pub sync_steps: Vec<(&'static str, Duration)>,
    /// Whether nothing had to be synced.
    pub sync_skipped: bool,
    /// The probe of a lease made ahead of its use.
    pub probe: Duration,
    /// The command itself.
    pub command: Duration,
    /// The phases of the command: the initial one, and those that it reported.
    pub phases: Vec<(String, Duration)>,
    /// The final status.
    pub status: Status,
    /// The kind of failure.
    pub error_kind: Option<ErrorKind>,
    /// The stage in which it failed, and whether trying again may help, if known.
    pub blocked: Option<(&'static str, &'static str)>,
    /// The fetched files.
    pub artifacts: Vec<Artifact>,
    /// The results of schema validation.
    pub schemas: Vec<SchemaValidation>,
    /// The run's id; empty for `warmup`.
    pub run_id: String,
    /// `--label`.
    pub label: String,
    /// The repository's root.
    pub repo_path: String,
    /// The working directory in the guest.
    pub workdir: String,
    /// Whether the lease was given back, if that was tried.
    pub stopped: Option<bool>,
    /// Why giving it back failed.
    pub stop_error: String,
}

impl Outcome {
    /// Takes over how a run failed that was a part of this, with the exit code of its error; `None` for one
    /// that was refused before it began.
    pub fn failed_in(&mut self, run: Option<Self>, exit_code: u8) {
        (self.status, self.error_kind, self.blocked) = match run {
            Some(run) => (run.status, run.error_kind, run.blocked),
            None => (
                Status::Failed,
                Some(ErrorKind::ProviderError),
                Some(("unknown", "unknown")),
            ),
        };
        self.exit_code = i32::from(exit_code);
    }

    /// What the lease ran out of, if that is why it failed.
    pub fn exhausted(&self) -> Option<&'static str> {
        failure::exhausted(self.blocked?.0)
    }
}

/// What became of a run, in the Go program's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It did what it was there for.
    #[default]
    Succeeded,
    /// It did not.
    Failed,
    /// The lease did not respond in time.
    TimedOut,
    /// The user ended it.
    Canceled,
}

/// Of what kind a failure is, in the Go program's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The command, or what its test reports say.
    CommandExit,
    /// The lease did not respond in time.
    Timeout,
    /// The user ended it.
    Canceled,
    /// Everything else: the command did not run, did not come to its end, or left not what it had to.
    ProviderError,
}

/// The status and kind of failure for an error.
pub(super) fn became(error: &RunError) -> (Status, ErrorKind) {
    /// 128 plus the number of SIGINT: the kind of an error whose wait was interrupted.
    const INTERRUPTED: Kind = Kind::Passthrough(130);
    match error {
        RunError::Failure(RunFailure::Exited(_) | RunFailure::Killed)
        | RunError::Result(
            ResultError::Tests { .. } | ResultError::NoReport | ResultError::NoTests | ResultError::Unread,
        ) => (Status::Failed, ErrorKind::CommandExit),
        RunError::Failure(RunFailure::Unread { .. }) => (Status::Canceled, ErrorKind::Canceled),
        _ if error.kind() == INTERRUPTED => (Status::Canceled, ErrorKind::Canceled),
        _ if error.connectivity() == Some(Connectivity::TimedOut) => (Status::TimedOut, ErrorKind::Timeout),
        _ => (Status::Failed, ErrorKind::ProviderError),
    }
}

/// A file that a run brought back.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Artifact {
    /// By which flag.
    pub kind: &'static str,
    /// Where it lies here.
    pub path: String,
    /// By which template it was made, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Its size.
    pub bytes: u64,
}

/// What a schema said of a file.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SchemaValidation {
    /// The file, below the working directory.
    pub artifact: String,
    /// The schema's file as it was named.
    pub schema: String,
    /// Whether the file satisfies it.
    pub valid: bool,
    /// The places that do not, each with the constraint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<String>,
    /// Why the file was not looked at: `fetch failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct RunReport {
    /// The numbers.
    pub outcome: Outcome,
    /// The command's remains, if it ended without success.
    pub ended: Option<Ended>,
    /// Whether the machine went down, so that it cannot be used any more.
    pub down: bool,
    /// The presumed class of the failure.
    pub class: Option<Class>,
    /// The command as observed, if it began and evidence is wanted.
    pub(super) witnessed: Option<Witnessed>,
    /// When we owned the tree.
    pub(super) owned: Option<Instant>,
    /// The current stage before the command runs.
    pub(super) stage: Option<&'static str>,
    /// Whether the command may still run.
    pub(super) unquiet: bool,
}

/// What an unsuccessful command left behind.
#[derive(Debug, Default)]
pub struct Ended {
    /// Last lines of its standard output.
    pub stdout: Vec<String>,
    /// Last lines of its standard error.
    pub stderr: Vec<String>,
    /// Names of the variables that it was given.
    pub env: Vec<String>,
}

impl RunReport {
    /// Determines the status and class of a failure.
    pub(super) fn judge(&mut self, error: &RunError) {
        let outcome = &mut self.outcome;
        let (status, kind) = became(error);
        (outcome.status, outcome.error_kind) = (status, Some(kind));
        let mut text = text_of(error);
        if let Some(ended) = &self.ended {
            text.push_str(&ended.stderr.join("\n"));
            text.push_str(&ended.stdout.join("\n"));
        }
        // A failure after the command does not belong to any of its phases.
        let phase = outcome.phases.last().map(|(name, _)| name.as_str());
        let phase = phase.filter(|_| matches!(error, RunError::Failure(_)));
        self.class = match error {
            RunError::Result(
                ResultError::Missing { .. }
                | ResultError::Unreadable { .. }
                | ResultError::Unfetched { .. }
                | ResultError::Withheld { .. }
                | ResultError::Schema { .. },
            ) => Some(failure::NO_ARTIFACT),
            RunError::Result(
                ResultError::NoReport
                | ResultError::NoTests
                | ResultError::Unread
                | ResultError::Tests { .. },
            ) => Some(failure::TESTS_FAILED),
            _ => failure::classify(error.connectivity(), &text, phase),
        };
        let known = self.class.map(|class| (class.stage, class.retry));
        let here = (self.stage.unwrap_or("unknown"), "unknown");
        outcome.blocked = Some(known.unwrap_or(here));
    }

    /// The area of the failure, as the digest calls it.
    pub fn area(&self) -> &'static str {
        let phase = self.outcome.phases.last().map_or("", |(name, _)| name);
        self.class
            .map_or_else(|| failure::area_of_phase(phase), |class| class.area)
    }

    /// Whether trying again may help: `true`, `false` or `unknown`.
    pub fn retry(&self) -> &'static str {
        self.class.map_or("unknown", |class| class.retry)
    }
}

/// The presumed class of a failure, judged by the error alone.
pub(super) fn class_of(error: &dyn Fault) -> Option<Class> {
    failure::classify(error.connectivity(), &text_of(error), None)
}

fn text_of(error: &dyn Fault) -> String {
    fault::messages(error).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crabbox_workspace::sync::SyncError;

    #[test]
    fn what_became_of_a_run_is_told_by_its_error() {
        let missing = ResultError::Missing {
            pattern: "x".to_owned(),
        };
        let canceled = (Status::Canceled, ErrorKind::Canceled);
        let provider = (Status::Failed, ErrorKind::ProviderError);
        for (error, wanted) in [
            (
                RunFailure::Exited(130).into(),
                (Status::Failed, ErrorKind::CommandExit),
            ),
            (
                RunFailure::Killed.into(),
                (Status::Failed, ErrorKind::CommandExit),
            ),
            (RunFailure::Interrupted { stopped: true }.into(), canceled),
            (RunFailure::Unread { stopped: true }.into(), canceled),
            (SyncError::Interrupted.into(), canceled),
            (RunFailure::Lost.into(), provider),
            (missing.into(), provider),
            (
                ResultError::NoReport.into(),
                (Status::Failed, ErrorKind::CommandExit),
            ),
        ] {
            let error: RunError = error;
            assert_eq!(became(&error), wanted, "{error}");
        }
    }

    #[test]
    fn a_failure_of_which_nothing_is_known_is_said_to_be_unknown() {
        let blocked = |stage, error: RunError| {
            let mut report = RunReport {
                stage,
                ..RunReport::default()
            };
            report.judge(&error);
            report.outcome.blocked.unwrap()
        };
        assert_eq!(
            blocked(None, RunFailure::Exited(1).into()),
            ("unknown", "unknown")
        );
        assert_eq!(
            blocked(Some("sync"), RunFailure::Killed.into()),
            ("sync", "unknown")
        );
        assert_eq!(blocked(None, ResultError::Unread.into()), ("test", "false"));
    }
}
