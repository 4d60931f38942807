//! What became of a run, as plain numbers and words.

use std::time::Duration;

use crabbox_core::fault::{self, Fault};
use crabbox_machine::protocol::Stage;
use schemars::JsonSchema;
use serde::Serialize;

use crate::run::failure::{self, Class};
use crate::run::witnessed::Witnessed;

/// What became of a command, for its timing line.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Exit code.
    pub exit_code: i32,
    /// The whole command.
    pub total: Duration,
    /// From the request to a lease that can be entered; `None` where the lease was there.
    pub lease: Option<Duration>,
    /// The stages of a new lease.
    pub stages: Vec<Stage>,
    /// What the guest said of its own boot.
    pub guest_stages: Vec<(String, u64)>,
    /// Bringing the tree over.
    pub sync: Duration,
    /// Whether nothing had to be brought.
    pub sync_skipped: bool,
    /// The command itself.
    pub command: Duration,
    /// The phases that the command told of.
    pub phases: Vec<(String, Duration)>,
    /// The stage in which it failed, and whether another try may help, where that is known.
    pub blocked: Option<(&'static str, &'static str)>,
    /// What was brought back: kind, path, bytes.
    pub artifacts: Vec<Artifact>,
    /// What schemas said of files.
    pub schemas: Vec<SchemaValidation>,
    /// The run's id; empty for `warmup`.
    pub run_id: String,
    /// `--label`.
    pub label: String,
    /// The repository's root.
    pub repo_path: String,
    /// The working directory in the guest.
    pub workdir: String,
    /// Whether the lease was given back, where that was tried.
    pub stopped: Option<bool>,
    /// Why giving it back did not work.
    pub stop_error: String,
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

/// What became of a run.
#[derive(Debug, Default)]
pub struct RunReport {
    /// The numbers.
    pub outcome: Outcome,
    /// The steps of the sync.
    pub steps: Vec<(&'static str, Duration)>,
    /// The command's end, when it ended without success.
    pub ended: Option<Ended>,
    /// Whether the machine went down, so that nobody can go on in it.
    pub down: bool,
    /// What the failure is thought to be.
    pub class: Option<Class>,
    /// The command, where it began and somebody wants evidence of it.
    pub(super) witnessed: Option<Witnessed>,
    /// The stage that it is in before the command runs.
    pub(super) stage: Option<&'static str>,
    /// Whether the command may still run.
    pub(super) unquiet: bool,
}

/// What a command left that ended without success.
#[derive(Debug, Default)]
pub struct Ended {
    /// Last lines of its standard output.
    pub stdout: Vec<String>,
    /// Last lines of its standard error.
    pub stderr: Vec<String>,
    /// Names of the variables it was given.
    pub env: Vec<String>,
}

impl RunReport {
    /// Finds out what a failure may be.
    pub(super) fn judge(&mut self, error: &dyn Fault) {
        let mut text = text_of(error);
        if let Some(ended) = &self.ended {
            text.push_str(&ended.stderr.join("\n"));
            text.push_str(&ended.stdout.join("\n"));
        }
        self.class = failure::classify(error.connectivity(), &text);
        let stage = self.stage.map(|stage| (stage, "unknown"));
        self.outcome.blocked = self.class.map(|class| (class.stage, class.retry)).or(stage);
    }

    /// Whether another try may help: `true`, `false` or `unknown`.
    pub fn retry(&self) -> &'static str {
        self.class.map_or("unknown", |class| class.retry)
    }
}

/// What a failure is thought to be, by itself alone.
pub(super) fn class_of(error: &dyn Fault) -> Option<Class> {
    failure::classify(error.connectivity(), &text_of(error))
}

fn text_of(error: &dyn Fault) -> String {
    fault::messages(error).join("\n")
}
