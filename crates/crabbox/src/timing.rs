//! The one line of JSON that `--timing-json` prints: the Go program's fields, and ours behind them.

use std::time::Duration;

use crabbox_core::config::FlagValue;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::report::{Artifact, Outcome, SchemaValidation};
use crabbox_machine::protocol::Stage;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command_line::CommandLine;
use crate::go;

/// A phase of the command.
#[derive(Debug, Serialize, JsonSchema)]
struct Phase {
    name: String,
    ms: u64,
}

/// The document.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimingJson {
    /// The provider, by its canonical name.
    provider: String,
    /// The lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    lease_id: String,
    /// The lease's name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    slug: String,
    /// From the request to a lease that can be entered; absent where the lease was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
    /// Ours: where the time of a new lease went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lease_stages: Vec<Stage>,
    /// Ours: the guest's uptime in milliseconds at the end of each stage of its boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    guest_stages: Vec<(String, u64)>,
    /// Bringing the tree over.
    sync_ms: u64,
    /// Whether nothing had to be brought.
    sync_skipped: bool,
    /// The command itself.
    command_ms: u64,
    /// The phases that the command itself told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command_phases: Vec<Phase>,
    /// All of it.
    total_ms: u64,
    /// The same for `run`, 0 for `warmup`.
    end_to_end_ms: u64,
    /// The command's exit code.
    exit_code: i32,
    /// `succeeded` or `failed`.
    run_status: &'static str,
    /// The run; absent for `warmup`.
    #[serde(skip_serializing_if = "String::is_empty")]
    run_id: String,
    /// What `--label` said.
    #[serde(skip_serializing_if = "String::is_empty")]
    label: String,
    /// What kind of machine it is.
    machine_type: String,
    /// The repository's root here.
    #[serde(skip_serializing_if = "String::is_empty")]
    repo_path: String,
    /// The working directory there.
    #[serde(skip_serializing_if = "String::is_empty")]
    workdir: String,
    /// What gives the lease back; absent where that is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_command: Option<String>,
    /// How long it may stand idle, as Go writes durations.
    idle_timeout: String,
    /// What a known failure was about: `ssh`, `sync`, `install` and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_stage: Option<&'static str>,
    /// Whether trying again may help: `true`, `false` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_likely: Option<&'static str>,
    /// The files that were brought back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    artifacts: Vec<Artifact>,
    /// What schemas said of files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schema_validations: Vec<SchemaValidation>,
    /// Whether it was given back, where that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_stopped: Option<bool>,
    /// Why that did not work.
    #[serde(skip_serializing_if = "String::is_empty")]
    lease_stop_error: String,
}

impl TimingJson {
    /// The line for a command on `lease` that was `given` these flags.
    pub(crate) fn new(lease: &Lease, outcome: &Outcome, given: &[FlagValue]) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            provider: lease.provider.to_owned(),
            lease_id: lease.id.clone(),
            slug: lease.slug.clone(),
            lease_ms: outcome.lease.map(ms),
            lease_stages: outcome.stages.clone(),
            guest_stages: outcome.guest_stages.clone(),
            sync_ms: ms(outcome.sync),
            sync_skipped: outcome.sync_skipped,
            command_ms: ms(outcome.command),
            command_phases: outcome
                .phases
                .iter()
                .map(|(name, took)| Phase {
                    name: name.clone(),
                    ms: ms(*took),
                })
                .collect(),
            total_ms: ms(outcome.total),
            end_to_end_ms: if outcome.run_id.is_empty() {
                0
            } else {
                ms(outcome.total)
            },
            exit_code: outcome.exit_code,
            run_status: if outcome.exit_code == 0 {
                "succeeded"
            } else {
                "failed"
            },
            run_id: outcome.run_id.clone(),
            label: outcome.label.clone(),
            machine_type: lease.server_type.clone(),
            repo_path: outcome.repo_path.clone(),
            workdir: outcome.workdir.clone(),
            stop_command: (outcome.stopped != Some(true)).then(|| CommandLine::stop(lease, given).shown()),
            idle_timeout: go::seconds(lease.idle_seconds()),
            blocked_stage: outcome.blocked.map(|(stage, _)| stage),
            retry_likely: outcome.blocked.map(|(_, retry)| retry),
            artifacts: outcome.artifacts.clone(),
            schema_validations: outcome.schemas.clone(),
            lease_stopped: outcome.stopped,
            lease_stop_error: outcome.stop_error.clone(),
        }
    }
}
