//! The request of a run: its lease, its tree, its command, its results.
//!
//! Plain data, whoever makes it. It must never be treated as validated.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The request of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunRequest {
    /// The lease to run in.
    pub lease: LeaseOptions,
    /// The tree to sync.
    pub sync: SyncOptions,
    /// The command to run.
    pub command: CommandOptions,
    /// The results to keep.
    pub results: ResultOptions,
}

/// The lease of a run, and its fate afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseOptions {
    /// The id or slug of an existing lease; without it a new lease is made.
    pub id: Option<String>,
    /// Whether the caller has entered that lease itself, with the same flags.
    pub is_entered: bool,
    /// The slug of the new lease.
    pub slug: Option<String>,
    /// Whether to keep the new lease.
    pub keep: bool,
    /// Whether to keep the new lease if the run fails.
    pub keep_on_failure: bool,
    /// When to give the lease back, whether new or not. By default a new lease is given back unless it is
    /// kept.
    pub stop_after: Option<StopAfter>,
    /// Whether `stop_after` comes from a repository, which must not end a host that its user keeps.
    pub is_others_stop: bool,
    /// Whether to take over another repository's claim.
    pub reclaim: bool,
    /// Whether to set up this host first if it has never been set up.
    pub set_up: bool,
}

impl LeaseOptions {
    /// Whether to give the lease back after a run that `failed` or not; `new` says whether the lease was made
    /// for that run.
    pub(in crate::run) fn is_over(&self, new: bool, failed: bool) -> bool {
        let keep = self.keep || (failed && self.keep_on_failure);
        match self.stop_after {
            Some(StopAfter::Always) => true,
            Some(StopAfter::Never) => false,
            Some(StopAfter::Success) => !failed,
            Some(StopAfter::Failure) => failed,
            None => new && !keep,
        }
    }
}

/// When a lease is given back after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopAfter {
    /// If the run succeeded.
    Success,
    /// In any case.
    Always,
    /// If the run failed.
    Failure,
    /// Not at all.
    Never,
}

impl StopAfter {
    const ALL: [Self; 4] = [Self::Success, Self::Always, Self::Failure, Self::Never];

    /// The word that selects it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Always => "always",
            Self::Failure => "failure",
            Self::Never => "never",
        }
    }

    /// The policy that `name` selects. `auto`, the default behaviour, is not one of them.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// The working tree of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncOptions {
    /// Whether to leave the tree in the lease as it is.
    pub no_sync: bool,
    /// Whether to run nothing.
    pub sync_only: bool,
    /// Whether to empty the tree in the lease first.
    pub full_resync: bool,
}

/// The command of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandOptions {
    /// Whether a shell interprets the words.
    pub shell: bool,
    /// A file to upload and run, with the words as its arguments.
    pub script: Option<PathBuf>,
    /// Whether to read such a script from standard input.
    pub script_stdin: bool,
    /// The name of a command in the configuration.
    pub preset: Option<String>,
    /// `name=value` for the placeholders of presets and variables; each item may be a comma-separated list.
    pub preset_vars: Vec<String>,
    /// The value of the placeholder `scenario`.
    pub scenario: Option<String>,
    /// Names and patterns of additional variables to pass on; each item may be a comma-separated list.
    pub allow_env: Vec<String>,
    /// Files in `.env` syntax with more variables.
    pub env_from_profile: Vec<PathBuf>,
    /// The name of a helper program to leave in the lease, which runs its arguments with those variables.
    pub env_helper: Option<String>,
    /// Whether to show the lease's tools first.
    pub preflight: bool,
    /// A label for the records.
    pub label: Option<String>,
    /// The command and its arguments.
    pub words: Vec<OsString>,
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultOptions {
    /// The file for standard output.
    pub capture_stdout: Option<PathBuf>,
    /// The file for standard error.
    pub capture_stderr: Option<PathBuf>,
    /// Whether a failure bundle was requested; one is written in any case.
    pub capture_on_fail: bool,
    /// `remote=local` of files to download after success.
    pub download: Vec<String>,
    /// Patterns of files to fetch.
    pub artifact_glob: Vec<String>,
    /// Patterns that must each match at least one file.
    pub require_artifact: Vec<String>,
    /// `remote=schema.json` of files that must exist and satisfy a JSON schema.
    pub require_artifact_schema: Vec<String>,
    /// The file for a proof in words.
    pub emit_proof: Option<PathBuf>,
    /// The configured template for the proof, in place of the preset's.
    pub proof_template: Option<String>,
    /// The file for a signed receipt.
    pub attest: Option<PathBuf>,
    /// The signing key, in place of this user's.
    pub attest_key: Option<PathBuf>,
    /// The file to append timings to: `default`, `off` or a path.
    pub timing_record: Option<String>,
}

impl ResultOptions {
    /// The file to append timings to, relative to `cwd`; the default one is in `state`.
    pub(in crate::run) fn timing_record(&self, cwd: &Path, state: &Path) -> Option<PathBuf> {
        match self.timing_record.as_deref()? {
            "off" | "" => None,
            "default" => Some(state.join("timings.jsonl")),
            path => Some(cwd.join(path)),
        }
    }
}
