//! What a run is asked to do: its lease, its tree, its command, its results.
//!
//! Plain data, whoever makes it; it must never be taken for something that has been judged.

use std::ffi::OsString;
use std::path::PathBuf;

/// What a run is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunRequest {
    /// In which lease.
    pub lease: LeaseWish,
    /// With which tree.
    pub sync: SyncWish,
    /// What is run.
    pub command: CommandWish,
    /// What is kept of it.
    pub results: ResultWish,
}

/// The lease of a run, and what becomes of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseWish {
    /// The id or slug of a lease that is there; a new one is made without it.
    pub id: Option<String>,
    /// The slug of the new lease.
    pub slug: Option<String>,
    /// Whether the new lease is kept.
    pub keep: bool,
    /// Whether the new lease is kept when the run fails.
    pub keep_on_failure: bool,
    /// When the lease is given back, new or not; without it a new one is, unless it is kept.
    pub stop_after: Option<StopAfter>,
    /// Whether another repository's claim is taken over.
    pub reclaim: bool,
    /// Whether this host is set up first when it never was.
    pub set_up: bool,
}

impl LeaseWish {
    /// Whether the lease is given back after a run that `failed` or not; `new` says whether it was made for that run.
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
    /// When the run succeeded.
    Success,
    /// Whatever came of it.
    Always,
    /// When the run failed.
    Failure,
    /// Not at all.
    Never,
}

impl StopAfter {
    const ALL: [Self; 4] = [Self::Success, Self::Always, Self::Failure, Self::Never];

    /// The word by which it is chosen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Always => "always",
            Self::Failure => "failure",
            Self::Never => "never",
        }
    }

    /// The one that is chosen by `name`; `auto`, what a run does that is not told otherwise, is none of them.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// The working tree of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncWish {
    /// Whether the tree in the lease is left as it is.
    pub no_sync: bool,
    /// Whether nothing is run.
    pub sync_only: bool,
    /// Whether the tree in the lease is emptied first.
    pub full_resync: bool,
}

/// The command of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandWish {
    /// Whether a shell gets the words as they are.
    pub shell: bool,
    /// A file that is uploaded and run, with the words as its arguments.
    pub script: Option<PathBuf>,
    /// Whether such a script comes on standard input.
    pub script_stdin: bool,
    /// The command that the configuration has under this name.
    pub preset: Option<String>,
    /// `name=value` for its placeholders and those of variables; each may be several with commas between them.
    pub preset_vars: Vec<String>,
    /// The value of the placeholder `scenario`.
    pub scenario: Option<String>,
    /// Names and patterns of variables that are handed on too; each may be several with commas between them.
    pub allow_env: Vec<String>,
    /// Files in `.env` syntax with more variables.
    pub env_from_profile: Vec<PathBuf>,
    /// The name of a program that is left in the lease and runs its arguments with those variables.
    pub env_helper: Option<String>,
    /// Whether the tools of the lease are shown first.
    pub preflight: bool,
    /// A label for the records.
    pub label: Option<String>,
    /// The command and its arguments.
    pub words: Vec<OsString>,
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultWish {
    /// The file that takes standard output.
    pub capture_stdout: Option<PathBuf>,
    /// The file that takes standard error.
    pub capture_stderr: Option<PathBuf>,
    /// Whether a failure bundle was asked for; one is always written.
    pub capture_on_fail: bool,
    /// `remote=local` of files that are fetched after success.
    pub download: Vec<String>,
    /// Patterns of files that are brought back.
    pub artifact_glob: Vec<String>,
    /// Patterns of files of which each must have one.
    pub require_artifact: Vec<String>,
    /// `remote=schema.json` of files that must be there and satisfy a JSON schema.
    pub require_artifact_schema: Vec<String>,
    /// The file that takes a proof in words.
    pub emit_proof: Option<PathBuf>,
    /// The template of the configuration by which it is made, in place of the preset's.
    pub proof_template: Option<String>,
    /// The file that takes a signed receipt.
    pub attest: Option<PathBuf>,
    /// The key that signs it, in place of this user's.
    pub attest_key: Option<PathBuf>,
    /// The file to which timings are appended: `default`, `off` or a path.
    pub timing_record: Option<String>,
}
