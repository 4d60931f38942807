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
    /// Set this host up first when it never was
    #[arg(long)]
    pub(crate) yes: bool,
    /// How long the tree must be left alone before the command runs again
    #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = duration)]
    pub(crate) debounce: GoDuration,
    /// End after this time without a change; the idle timeout of the lease unless given
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_exit: Option<GoDuration>,
    /// Join the words with blanks and hand them to a shell
    #[arg(long)]
    pub(crate) shell: bool,
    /// Run the command of this preset
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// What {{NAME}} stands for in the preset and in variables of the configuration
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) preset_var: Vec<String>,
    /// What {{scenario}} stands for there
    #[arg(long, value_name = "TEXT")]
    pub(crate) scenario: Option<String>,
    /// Hand this variable to the command too
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_env: Vec<String>,
    /// Tell everything on standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Tell everything that a script is told, on a terminal too
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
    /// Set this host up first when it never was
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print timings of the lease as one line of JSON on standard error
    #[arg(long)]
    pub(crate) timing_json: bool,
    /// Accepted: nothing is hydrated here
    #[arg(long, hide = true)]
    pub(crate) no_hydrate: bool,
    /// Run this in a shell of the new lease; when it fails the lease is given back
    #[arg(long, value_name = "COMMAND")]
    pub(crate) probe_command: Option<String>,
    /// Tell everything on standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Tell everything that a script is told, on a terminal too
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only print the commands that do the same
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
    /// When the lease is given back: auto, always, success, failure or never; the job's own word unless given
    #[arg(long, value_name = "WHEN")]
    pub(crate) stop: Option<JobStop>,
    /// What {{NAME}} stands for in variables of the configuration
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) preset_var: Vec<String>,
    /// Run the job without the Actions workflow that it asks for
    #[arg(long)]
    pub(crate) no_hydrate: bool,
    /// Tell everything on standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Tell everything that a script is told, on a terminal too
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only print the command that does the same
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
    /// Write over files that are there
    #[arg(long)]
    pub(crate) force: bool,
    /// Look at the repository for what it is tested with, and make that a job
    #[arg(long)]
    pub(crate) detect: bool,
    /// Where the workflow goes
    #[arg(long, value_name = "PATH", default_value = ".github/workflows/crabbox.yml")]
    pub(crate) workflow: PathBuf,
    /// Where the skill for coding agents goes
    #[arg(long, value_name = "PATH", default_value = ".agents/skills/crabbox/SKILL.md")]
    pub(crate) skill: Vec<PathBuf>,
    /// Where the configuration goes
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
    /// Bring what can be brought although other files changed on both sides
    #[arg(long)]
    pub(crate) skip_conflicts: bool,
    /// Only these files, or files below these directories, relative to the root of the repository (`.`), or absolute
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}
