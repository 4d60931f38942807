//! The one line of JSON that `--timing-json` prints: the Go program's fields, then this program's own.

use std::time::Duration;

use crabbox_core::config::FlagValue;
use crabbox_engine::provider::MachineStart;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::report::{Artifact, ErrorKind, Outcome, SchemaValidation, Status};
use crabbox_machine::protocol::Stage;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command_line::CommandLine;
use crate::go;

/// A phase of the sync or of the command.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Phase {
    /// Its name.
    name: String,
    /// What it took; absent for what took less than one.
    #[serde(skip_serializing_if = "is_zero")]
    ms: u64,
    /// Whether there was nothing to do in it; absent where there was.
    #[serde(skip_serializing_if = "is_false")]
    skipped: bool,
    /// Why there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Phase {
    fn new(name: &str, took: Duration) -> Self {
        Self {
            name: name.to_owned(),
            ms: ms(took),
            ..Self::default()
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The steps of the sync, and the transfer that was skipped because both sides were equal.
fn sync_phases(outcome: &Outcome) -> Vec<Phase> {
    let steps = outcome.sync_steps.iter().filter(|(_, took)| !took.is_zero());
    let mut phases: Vec<Phase> = steps.map(|(name, took)| Phase::new(name, *took)).collect();
    if outcome.sync_skipped && !outcome.sync_steps.is_empty() {
        phases.push(Phase {
            name: "rsync".to_owned(),
            skipped: true,
            reason: Some("no changes"),
            ..Phase::default()
        });
    }
    phases
}

/// The document.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimingJson {
    /// The provider, by its canonical name.
    provider: String,
    /// The lease; absent where there was none to be had.
    #[serde(skip_serializing_if = "String::is_empty")]
    lease_id: String,
    /// The lease's name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    slug: String,
    /// From the request to a lease that can be entered, whether it was made or found.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
    /// The wait for an SSH connection to the lease, before `totalMs` begins; absent where one was open.
    #[serde(skip_serializing_if = "is_zero")]
    bootstrap_ms: u64,
    /// Ours: how the machine of a new lease started: `cold` (its kernel booted), `restored` (from a template), or `pool` (it was made
    /// ahead, and waited).
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_source: Option<&'static str>,
    /// Ours: why it booted, where there was a template that it could not go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_reason: Option<String>,
    /// Ours: where the time of a new lease went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lease_stages: Vec<Stage>,
    /// Ours: the guest's uptime in milliseconds at the end of each stage of its boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    guest_stages: Vec<(String, u64)>,
    /// Bringing the tree over.
    sync_ms: u64,
    /// The steps of that, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sync_phases: Vec<Phase>,
    /// Whether nothing was brought: nothing had changed, or `--no-sync` said so.
    sync_skipped: bool,
    /// The probe of `prewarm`; absent where there was none.
    #[serde(skip_serializing_if = "is_zero")]
    probe_ms: u64,
    /// The command itself.
    command_ms: u64,
    /// The phases of the command: `user-command`, in which it begins, then those that it told of (`CRABBOX_PHASE:<name>`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command_phases: Vec<Phase>,
    /// From the working tree that is ours to the end of the command; of `warmup` and `prewarm`, all of it.
    total_ms: u64,
    /// The same with everything before it for `run`, 0 for `warmup` and `prewarm`.
    end_to_end_ms: u64,
    /// The command's exit code, of `prewarm` its own.
    exit_code: i32,
    /// What became of it.
    run_status: Status,
    /// Of what kind the failure is; absent after success.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_kind: Option<ErrorKind>,
    /// The run; absent for `warmup` and `prewarm`.
    #[serde(skip_serializing_if = "String::is_empty")]
    run_id: String,
    /// What `--label` said.
    #[serde(skip_serializing_if = "String::is_empty")]
    label: String,
    /// What kind of machine it is; absent without a lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    machine_type: String,
    /// The repository's root here.
    #[serde(skip_serializing_if = "String::is_empty")]
    repo_path: String,
    /// The working directory there.
    #[serde(skip_serializing_if = "String::is_empty")]
    workdir: String,
    /// What gives the lease back; absent where that is done, and without a lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_command: Option<String>,
    /// How long it may stand idle, as Go writes durations; absent without a lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    idle_timeout: String,
    /// What a failure was about: `ssh`, `sync`, `install`, `build`, `test`, `model_call`, `artifacts`, `resource_exhaustion` or
    /// `unknown`; absent after success.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_stage: Option<&'static str>,
    /// What ran out, where the failure was about that: `memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_exhaustion: Option<&'static str>,
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
    /// The line for a command on `lease` with these `given` flags.
    pub(crate) fn new(lease: &Lease, outcome: &Outcome, given: &[FlagValue]) -> Self {
        Self {
            lease_id: lease.id.clone(),
            slug: lease.slug.clone(),
            machine_type: lease.server_type.clone(),
            stop_command: (outcome.stopped != Some(true)).then(|| CommandLine::stop(lease, given).shown()),
            idle_timeout: go::seconds(lease.idle_seconds()),
            ..Self::without_lease(lease.provider, outcome)
        }
    }

    /// The line for a command that has no lease, for this provider.
    pub(crate) fn without_lease(provider: &str, outcome: &Outcome) -> Self {
        Self {
            provider: provider.to_owned(),
            lease_id: String::new(),
            slug: String::new(),
            lease_ms: outcome.lease.map(ms),
            lease_stages: outcome.stages.clone(),
            guest_stages: outcome.guest_stages.clone(),
            lease_source: outcome.start.as_ref().map(|start| match start {
                MachineStart::Pooled => "pool",
                MachineStart::Restored => "restored",
                MachineStart::Cold(_) => "cold",
            }),
            cold_reason: match &outcome.start {
                Some(MachineStart::Cold(why)) => why.clone(),
                Some(MachineStart::Restored | MachineStart::Pooled) | None => None,
            },
            bootstrap_ms: ms(outcome.bootstrap),
            sync_ms: ms(outcome.sync),
            sync_phases: sync_phases(outcome),
            sync_skipped: outcome.sync_skipped,
            probe_ms: ms(outcome.probe),
            command_ms: ms(outcome.command),
            command_phases: outcome
                .phases
                .iter()
                .map(|(name, took)| Phase::new(name, *took))
                .collect(),
            total_ms: ms(outcome.total),
            end_to_end_ms: ms(outcome.end_to_end),
            exit_code: outcome.exit_code,
            run_status: outcome.status,
            error_kind: outcome.error_kind,
            run_id: outcome.run_id.clone(),
            label: outcome.label.clone(),
            machine_type: String::new(),
            repo_path: outcome.repo_path.clone(),
            workdir: outcome.workdir.clone(),
            stop_command: None,
            idle_timeout: String::new(),
            blocked_stage: outcome.blocked.map(|(stage, _)| stage),
            resource_exhaustion: outcome.exhausted(),
            retry_likely: outcome.blocked.map(|(_, retry)| retry),
            artifacts: outcome.artifacts.clone(),
            schema_validations: outcome.schemas.clone(),
            lease_stopped: outcome.stopped,
            lease_stop_error: outcome.stop_error.clone(),
        }
    }
}
