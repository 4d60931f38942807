//! Arguments of the commands that are built from others (`watch`, `job`, `prewarm`), and of `init` and `pull`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use crabbox_core::duration::GoDuration;

use super::keys::{KeyFlags, LeaseSet, PrewarmSet, RunSet};
use super::lease::duration;

/// `watch`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox watch [flags] -- <command...>")]
pub(crate) struct WatchArgs {
    /// Use this lease instead of a new one: its id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Name for the new lease
    #[arg(long, value_name = "NAME")]
    pub(crate) slug: Option<String>,
    /// Keep the new lease at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Set up this host first if necessary, without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// How long the tree must stay unchanged before the command runs again
    #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = duration)]
    pub(crate) debounce: GoDuration,
    /// End after this time without a change [default: the idle timeout of the lease]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_exit: Option<GoDuration>,
    /// Join the arguments with spaces and run them in a shell
    #[arg(long)]
    pub(crate) shell: bool,
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
    /// Write all events to standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Print all progress lines, even on a terminal
    #[arg(long)]
    pub(crate) verbose: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<RunSet>,
}

/// `prewarm`.
#[derive(Debug, Args)]
pub(crate) struct PrewarmArgs {
    /// Name for the new lease
    #[arg(long, value_name = "NAME")]
    pub(crate) slug: Option<String>,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Set up this host first if necessary, without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print timings of the lease as one line of JSON on standard error
    #[arg(long)]
    pub(crate) timing_json: bool,
    /// Accepted: nothing is hydrated here
    #[arg(long, hide = true)]
    pub(crate) no_hydrate: bool,
    /// Run this in a shell of the new lease; if it fails, the lease is released
    #[arg(long, value_name = "COMMAND")]
    pub(crate) probe_command: Option<String>,
    /// Write all events to standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Print all progress lines, even on a terminal
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only print equivalent commands
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<PrewarmSet>,
}

/// `job`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show the jobs of the configuration
    List(JobListArgs),
    /// Run a job of the configuration
    Run(JobRunArgs),
}

/// `job list`.
#[derive(Debug, Args)]
pub(crate) struct JobListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `job run`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox job run [flags] <name>")]
pub(crate) struct JobRunArgs {
    /// Use this lease instead of a new one: its id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// When to release the lease: auto, always, success, failure or never [default: as the job says]
    #[arg(long, value_name = "WHEN")]
    pub(crate) stop: Option<JobStop>,
    /// Value of {{NAME}} in variables of the configuration
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) preset_var: Vec<String>,
    /// Run the job without its Actions workflow
    #[arg(long)]
    pub(crate) no_hydrate: bool,
    /// Write all events to standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Print all progress lines, even on a terminal
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only print the equivalent command
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The job
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// When the lease of a job is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum JobStop {
    /// As `run` does it.
    Auto,
    /// In any case.
    Always,
    /// When the command succeeded.
    Success,
    /// When it failed.
    Failure,
    /// Not at all.
    Never,
}

impl JobStop {
    /// The word for it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Never => "never",
        }
    }
}

/// `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Overwrite existing files
    #[arg(long)]
    pub(crate) force: bool,
    /// Detect how the repository is tested, and make that a job
    #[arg(long)]
    pub(crate) detect: bool,
    /// Path of the workflow
    #[arg(long, value_name = "PATH", default_value = ".github/workflows/crabbox.yml")]
    pub(crate) workflow: PathBuf,
    /// Path of the skill for coding agents
    #[arg(long, value_name = "PATH", default_value = ".agents/skills/crabbox/SKILL.md")]
    pub(crate) skill: Vec<PathBuf>,
    /// Path of the configuration
    #[arg(long, value_name = "PATH", default_value = ".crabbox.yaml")]
    pub(crate) config: PathBuf,
}

/// `pull`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox pull --id <lease-id-or-slug> [flags] [path...]")]
pub(crate) struct PullArgs {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Only show what has changed in the lease
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Pull the other files even if some changed on both sides
    #[arg(long)]
    pub(crate) skip_conflicts: bool,
    /// Only these files, or files below these directories, relative to the root of the repository (`.`), or absolute
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}
