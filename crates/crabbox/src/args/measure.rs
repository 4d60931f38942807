//! Arguments of the commands that measure runs and look after the caches of a lease.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::keys::{KeyFlags, LeaseSet};
use super::lease::LeaseName;

/// `cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show the size of each cache of a lease
    #[command(alias = "list")]
    Stats(CacheStatsArgs),
    /// Run a command in a lease to fill its caches
    Warm(CacheWarmArgs),
    /// Empty the caches of a lease
    Purge(CachePurgeArgs),
    /// List cache volumes, or remove one
    Volumes(CacheVolumesArgs),
}

/// `cache stats`.
#[derive(Debug, Args)]
pub(crate) struct CacheStatsArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `cache warm`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox cache warm --id <lease-id-or-slug> -- <command...>")]
pub(crate) struct CacheWarmArgs {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `cache purge`.
#[derive(Debug, Args)]
pub(crate) struct CachePurgeArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Which caches: pnpm, npm, docker, git or all
    #[arg(long, value_name = "KIND", default_value = "all")]
    pub(crate) kind: String,
    /// Required: confirms the deletion
    #[arg(long)]
    pub(crate) force: bool,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `cache volumes`.
#[derive(Debug, Args)]
pub(crate) struct CacheVolumesArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Remove the volume with this name or key, and all data in it
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    pub(crate) remove: Option<String>,
    /// Required: confirms the deletion
    #[arg(long)]
    pub(crate) force: bool,
}

/// `bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Run a command several times and record the time of each run
    Run(BenchRunArgs),
    /// Record the timings of a run from elsewhere
    Record(BenchRecordArgs),
    /// Show the recorded timings
    Report(BenchReportArgs),
}

/// What a record says of the state that a run began in.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ColdArgs {
    /// Mark the records as cold runs
    #[arg(long)]
    pub(crate) cold: bool,
    /// Mark the records as warm runs
    #[arg(long)]
    pub(crate) warm: bool,
}

/// `bench run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "crabbox bench run [--provider <name> | --providers <a,b>] [--repeats <n>] -- <command...>"
)]
pub(crate) struct BenchRunArgs {
    /// The file of records: default or a path
    #[arg(long, value_name = "PATH", default_value = "default")]
    pub(crate) store: String,
    /// Providers, separated by commas
    #[arg(long, value_name = "LIST")]
    pub(crate) providers: Vec<String>,
    /// One provider
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Vec<String>,
    /// Number of runs on each provider
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) repeats: i64,
    /// Cold or warm.
    #[command(flatten)]
    pub(crate) cold: ColdArgs,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
}

/// `bench record`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox bench record [--timing-json <path>] [flags] [-- <command...>]")]
pub(crate) struct BenchRecordArgs {
    /// The file of records: default or a path
    #[arg(long, value_name = "PATH", default_value = "default")]
    pub(crate) store: String,
    /// The line that `run --timing-json` printed: a file, or - for standard input
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub(crate) timing_json: PathBuf,
    /// Source of the record, for the report
    #[arg(long, value_name = "TEXT", default_value = "bench-record")]
    pub(crate) source: String,
    /// The command as one text, instead of arguments
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) command: String,
    /// Cold or warm.
    #[command(flatten)]
    pub(crate) cold: ColdArgs,
    /// Number of the repetition, counted from 1
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) repeat_index: i64,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,
}

/// `bench report`.
#[derive(Debug, Args)]
pub(crate) struct BenchReportArgs {
    /// The file of records: default or a path
    #[arg(long, value_name = "PATH", default_value = "default")]
    pub(crate) store: String,
    /// Only these providers, separated by commas
    #[arg(long, value_name = "LIST")]
    pub(crate) providers: Vec<String>,
    /// Only this provider
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Vec<String>,
    /// Only this command, by its fingerprint
    #[arg(long, value_name = "SHA256", default_value = "")]
    pub(crate) command_fingerprint: String,
    /// Only records of this time until now, such as 7d or 24h
    #[arg(long, value_name = "DURATION", default_value = "")]
    pub(crate) since: String,
    /// Minimum number of successful runs
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    pub(crate) min_samples: i64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
