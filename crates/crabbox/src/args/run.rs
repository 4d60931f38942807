//! Arguments of `run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::keys::{KeyFlags, RunSet};

/// `run`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox run [flags] -- <command...>")]
pub(crate) struct RunArgs {
    /// Use this lease instead of a new one: its id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Name for the new lease
    #[arg(long, value_name = "NAME")]
    pub(crate) slug: Option<String>,
    /// Keep the new lease
    #[arg(long)]
    pub(crate) keep: bool,
    /// Keep the new lease when the run fails
    #[arg(long)]
    pub(crate) keep_on_failure: bool,
    /// When to release the lease, whether it is new or not
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) stop_after: Option<StopAfter>,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Set up this host first if necessary, without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// What is synced, and how.
    #[command(flatten)]
    pub(crate) sync: RunSyncArgs,
    /// What is run, and how.
    #[command(flatten)]
    pub(crate) command: RunCommandArgs,
    /// What is brought back.
    #[command(flatten)]
    pub(crate) results: RunResultArgs,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<RunSet>,
}

/// The part of `run` that concerns the working tree.
#[derive(Debug, Args)]
pub(crate) struct RunSyncArgs {
    /// Do not sync
    #[arg(long)]
    pub(crate) no_sync: bool,
    /// Sync only; do not run a command
    #[arg(long)]
    pub(crate) sync_only: bool,
    /// Delete the remote tree before syncing
    #[arg(long, alias = "fresh-sync")]
    pub(crate) full_resync: bool,
    /// Show the time of each step of the sync
    #[arg(long)]
    pub(crate) debug: bool,
    /// Skip hydration; this program never hydrates
    #[arg(long, hide = true)]
    pub(crate) no_hydrate: bool,
}

/// The part of `run` that concerns the command.
#[derive(Debug, Args)]
pub(crate) struct RunCommandArgs {
    /// Join the arguments with spaces and run them in a shell
    #[arg(long)]
    pub(crate) shell: bool,
    /// Upload this file and run it with the arguments
    #[arg(long, value_name = "PATH")]
    pub(crate) script: Option<PathBuf>,
    /// Read a script from standard input and run it
    #[arg(long)]
    pub(crate) script_stdin: bool,
    /// Run the command of this preset
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Value of {{NAME}} in the preset and in variables of the configuration
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) preset_var: Vec<String>,
    /// Value of {{scenario}} there
    #[arg(long, value_name = "TEXT")]
    pub(crate) scenario: Option<String>,
    /// Also forward this environment variable
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_env: Vec<String>,
    /// Forward the allowed variables of this file in `.env` syntax
    #[arg(long, value_name = "FILE")]
    pub(crate) env_from_profile: Vec<PathBuf>,
    /// Leave a program of this name in .crabbox/env that runs its arguments with those variables
    #[arg(long, value_name = "NAME")]
    pub(crate) env_helper: Option<String>,
    /// Print the versions of tools on the machine first
    #[arg(long)]
    pub(crate) preflight: bool,
    /// A label for the records
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
}

/// The part of `run` that concerns its results.
#[derive(Debug, Args)]
pub(crate) struct RunResultArgs {
    /// Write standard output to this file instead of the terminal
    #[arg(long, value_name = "PATH")]
    pub(crate) capture_stdout: Option<PathBuf>,
    /// Write standard error to this file instead of the terminal
    #[arg(long, value_name = "PATH")]
    pub(crate) capture_stderr: Option<PathBuf>,
    /// Failure bundles are always written
    #[arg(long, hide = true)]
    pub(crate) capture_on_fail: bool,
    /// Copy a remote file here after success
    #[arg(long, value_name = "REMOTE=LOCAL")]
    pub(crate) download: Vec<String>,
    /// Copy files that match from the lease
    #[arg(long, value_name = "PATTERN")]
    pub(crate) artifact_glob: Vec<String>,
    /// Fail unless a file matches
    #[arg(long, value_name = "PATTERN")]
    pub(crate) require_artifact: Vec<String>,
    /// Fail unless this file is there and satisfies the JSON schema
    #[arg(long, value_name = "REMOTE=SCHEMA")]
    pub(crate) require_artifact_schema: Vec<String>,
    /// Write a proof of the run in Markdown to this file after success
    #[arg(long, value_name = "PATH")]
    pub(crate) emit_proof: Option<PathBuf>,
    /// Write the proof from this template of the configuration
    #[arg(long, value_name = "NAME")]
    pub(crate) proof_template: Option<String>,
    /// Write a signed receipt of the run to this file
    #[arg(long, value_name = "PATH")]
    pub(crate) attest: Option<PathBuf>,
    /// Sign it with the ed25519 key in this file (PKCS#8) instead of your own
    #[arg(long, value_name = "PATH")]
    pub(crate) attest_key: Option<PathBuf>,
    /// Print timings as one line of JSON on standard error
    #[arg(long)]
    pub(crate) timing_json: bool,
    /// Write all events to standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Print all progress lines, even on a terminal
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Append timings to a file, or to the default one
    #[arg(long, value_name = "default|off|PATH")]
    pub(crate) timing_record: Option<String>,
}

/// When a lease is given back after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StopAfter {
    /// When the run succeeded.
    Success,
    /// Whatever came of it.
    Always,
    /// When the run failed.
    Failure,
    /// Not at all.
    Never,
}
