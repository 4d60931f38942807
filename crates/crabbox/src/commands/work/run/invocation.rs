//! A run as requested by a command of this program: the request, its flags, and how to report it.

use std::path::PathBuf;

use crabbox_core::config::FlagValue;
use crabbox_engine::run::request::{
    CommandOptions, LeaseOptions, ResultOptions, RunRequest, StopAfter, SyncOptions,
};

use crate::args;

/// What to run, and how to report it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::commands) struct Invocation {
    /// The request.
    pub(in crate::commands) request: RunRequest,
    /// Flags that set configuration keys, as they were given.
    pub(in crate::commands) flags: Vec<FlagValue>,
    /// How to report it.
    pub(in crate::commands) manner: Manner,
}

/// How a run is reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::commands) struct Manner {
    /// Also show how long each step of the sync took.
    pub(in crate::commands) debug: bool,
    /// Print a line of timings at the end.
    pub(in crate::commands) timing_json: bool,
    /// Report as JSON lines.
    pub(in crate::commands) json_events: bool,
    /// Report on a terminal in the same detail as to a script.
    pub(in crate::commands) verbose: bool,
    /// Its place in a benchmark, if it is part of one.
    pub(in crate::commands) bench: Option<Bench>,
}

/// Which of several measured runs it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) struct Bench {
    /// Counted from 1.
    pub(in crate::commands) repeat: i64,
    /// Whether it counts as cold, if the user said so.
    pub(in crate::commands) cold: Option<bool>,
}

impl From<args::RunArgs> for Invocation {
    fn from(args: args::RunArgs) -> Self {
        let args::RunArgs {
            sync,
            command,
            results,
            ..
        } = args;
        Self {
            request: RunRequest {
                lease: LeaseOptions {
                    id: args.id,
                    is_entered: false,
                    slug: args.slug,
                    keep: args.keep,
                    keep_on_failure: args.keep_on_failure,
                    stop_after: args.stop_after.map(StopAfter::from),
                    is_others_stop: false,
                    reclaim: args.reclaim,
                    set_up: args.yes,
                },
                sync: SyncOptions {
                    no_sync: sync.no_sync,
                    sync_only: sync.sync_only,
                    full_resync: sync.full_resync,
                },
                command: CommandOptions {
                    shell: command.shell,
                    script: command.script,
                    script_stdin: command.script_stdin,
                    preset: command.preset,
                    preset_vars: command.preset_var,
                    scenario: command.scenario,
                    allow_env: command.allow_env,
                    env_from_profile: command.env_from_profile,
                    env_helper: command.env_helper,
                    preflight: command.preflight,
                    label: command.label,
                    words: command.words,
                },
                results: ResultOptions {
                    capture_stdout: results.capture_stdout,
                    capture_stderr: results.capture_stderr,
                    capture_on_fail: results.capture_on_fail,
                    download: results.download,
                    artifact_glob: results.artifact_glob,
                    require_artifact: results.require_artifact,
                    require_artifact_schema: results.require_artifact_schema,
                    emit_proof: named(results.emit_proof),
                    proof_template: results.proof_template,
                    attest: named(results.attest),
                    attest_key: named(results.attest_key),
                    timing_record: results.timing_record,
                },
            },
            flags: args.keys.values,
            manner: Manner {
                debug: sync.debug,
                timing_json: results.timing_json,
                json_events: results.json_events,
                verbose: results.verbose,
                bench: None,
            },
        }
    }
}

/// An empty path counts as absent, as in the Go program.
fn named(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

impl From<args::StopAfter> for StopAfter {
    fn from(when: args::StopAfter) -> Self {
        match when {
            args::StopAfter::Success => Self::Success,
            args::StopAfter::Always => Self::Always,
            args::StopAfter::Failure => Self::Failure,
            args::StopAfter::Never => Self::Never,
        }
    }
}
