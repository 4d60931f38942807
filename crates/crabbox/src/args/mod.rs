//! The command line as types: one struct a command, and sets of flags that commands share.
//!
//! Flags that set configuration come from the key registry ([`keys`]); flags of features that do not exist here are refused by
//! name ([`refused`]). A flag must never be accepted and then ignored.

mod adapter;
mod described;
mod images;
mod keys;
mod lease;
mod local;
mod measure;
mod pool;
mod proof;
mod refused;
mod run;
mod work;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use adapter::{AdapterCommand, AdapterExternalArgs};
pub(crate) use described::{DescribedFlag, FlagType, described_flags};
pub(crate) use images::{
    ImageBuildArgs, ImageCommand, ImageExportArgs, ImageGcArgs, ImageImportArgs, ImageListArgs,
    ImageNameArgs, ImageRemoveArgs, ImageWarmArgs, InitChoice, SetupArgs, SetupCommand,
};
pub(crate) use keys::{LEASE_GROUPS, RUN_GROUPS, flags_of_run};
pub(crate) use lease::{
    CleanupArgs, ConnectArgs, CpArgs, ExpectedArgs, HeartbeatArgs, InspectArgs, ListArgs, LogsArgs,
    PauseArgs, PortsArgs, SshArgs, StatusArgs, StopArgs, TunnelArgs, WarmupArgs,
};
pub(crate) use local::{
    ClaimsCommand, ClaimsListArgs, CompletionsArgs, ConfigCommand, ConfigExplainArgs, ConfigShowArgs,
    DoctorArgs, EpilogArgs, HealthArgs, HoldArgs, ProbeArgs, ProvidersArgs, ProvidersCommand,
    ProvidersDescribeArgs, ProvidersFilterArgs, ProvidersFiltersArgs, ProvidersRecommendArgs, ProxyArgs,
    ReferenceArgs, ServeArgs, SuperviseArgs, SyncPlanArgs, VerifyArgs,
};
pub(crate) use measure::{
    BenchCommand, BenchRecordArgs, BenchReportArgs, BenchRunArgs, CacheCommand, CachePurgeArgs,
    CacheStatsArgs, CacheVolumesArgs, CacheWarmArgs, ColdArgs,
};
pub(crate) use pool::{PoolCommand, PoolDrainArgs, PoolFillArgs};
pub(crate) use proof::ProofArgs;
pub(crate) use run::{RunArgs, StopAfter};
pub(crate) use work::{InitArgs, JobCommand, JobListArgs, JobRunArgs, PrewarmArgs, PullArgs, WatchArgs};

use crabbox_core::config::FlagValue;

use crate::goflags::{Problem, Stop, UsageError, normalise};
use crate::ui::Verbosity;

/// Lease a throw-away Linux machine, sync the working tree into it, run a command there, release it.
#[derive(Debug, Parser)]
#[command(
    name = "crabbox",
    disable_help_subcommand = true,
    disable_version_flag = true,
    args_override_self = true,
    after_help = "After the name of any command, -v shows on standard error what is done and how long it takes, -vv every detail."
)]
#[command(subcommand_required = true)]
pub(crate) struct Cli {
    /// Show on standard error what is done. Hidden: it is said once, in the program's own help, and not on every command's page.
    /// Its id is its own: a command whose `--verbose` had the same would not have it.
    #[arg(id = "v", long = "v", global = true, hide = true)]
    verbose: bool,
    /// The same in every detail.
    #[arg(id = "vv", long = "vv", global = true, hide = true)]
    detailed: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What the flags ask for. (Before the command's name `-v` is the version, as in the Go program.)
    fn verbosity(&self) -> Verbosity {
        match (self.verbose, self.detailed) {
            (_, true) => Verbosity::Detailed,
            (true, false) => Verbosity::Verbose,
            (false, false) => Verbosity::Plain,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lease a machine and keep it
    Warmup(WarmupArgs),
    /// Sync the working tree to a machine and run a command there
    Run(Box<RunArgs>),
    /// Run a command again each time the working tree changes
    Watch(WatchArgs),
    /// Run commands that the configuration names
    #[command(subcommand)]
    Job(JobCommand),
    /// Write the files that make a repository ready
    Init(InitArgs),
    /// Copy changes from a lease back to the working tree
    Pull(PullArgs),
    /// Lease a machine in advance and check that it works
    Prewarm(PrewarmArgs),
    /// Print the ssh command line of a lease
    Ssh(SshArgs),
    /// Open a shell on a lease
    Connect(ConnectArgs),
    /// Show the state of a lease
    Status(StatusArgs),
    /// List leases
    List(ListArgs),
    /// Keep leases ready for use
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Release a lease
    #[command(alias = "release")]
    Stop(StopArgs),
    /// Show everything about a lease
    Inspect(InspectArgs),
    /// Remove leases that ended and everything that they left behind
    Cleanup(CleanupArgs),
    /// Remove leases that ended and everything that they left behind
    #[command(subcommand, hide = true)]
    Machine(MachineCommand),
    /// Reset the idle timeout of a lease
    Heartbeat(HeartbeatArgs),
    /// Show the console, VMM log or supervisor log of a lease
    Logs(LogsArgs),
    /// Copy files into or out of a lease
    Cp(CpArgs),
    /// Forward a local port to a port of a lease
    Tunnel(TunnelArgs),
    /// Manage named port forwards that last until the lease ends
    Ports(PortsArgs),
    /// Manage the caches of a lease
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Measure runs and compare the results
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Pause a lease; no provider of this program can
    #[command(hide = true)]
    Pause(PauseArgs),
    /// Resume a lease; no provider of this program can
    #[command(hide = true)]
    Resume(PauseArgs),
    /// Show what a sync of the working tree would send
    SyncPlan(SyncPlanArgs),
    /// Check whether this host can lease machines
    Doctor(DoctorArgs),
    /// Prepare this host for leases, or undo it
    #[command(subcommand)]
    Setup(SetupCommand),
    /// Build and manage guest images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show local claims on leases
    #[command(subcommand)]
    Claims(ClaimsCommand),
    /// Show the configuration and where it comes from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show the providers
    Providers(Box<ProvidersArgs>),
    /// Lease machines for another program
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Verify a signed receipt of a run
    Verify(VerifyArgs),
    /// Run the complete lifecycle of a lease once, and write a report that others can verify
    Proof(Box<ProofArgs>),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the version
    Version,
    /// Write man pages and JSON schemas
    #[command(name = "__reference", hide = true)]
    Reference(ReferenceArgs),
    /// The supervisor of one microVM
    #[command(name = "__supervise", hide = true)]
    Supervise(SuperviseArgs),
    /// The answers to clients on other machines
    #[command(name = "__serve", hide = true)]
    Serve(ServeArgs),
    /// The way of an ssh to a guest on another machine
    #[command(name = "__proxy", hide = true)]
    Proxy(ProxyArgs),
    /// The process of a scheduler's job, which is the supervisor of its lease
    #[command(name = "__hold", hide = true)]
    Hold(HoldArgs),
    /// What is left of a scheduler's job on this host is taken back
    #[command(name = "__epilog", hide = true)]
    Epilog(EpilogArgs),
    /// Leases of a scheduler's jobs that are over are taken back
    #[command(name = "__health", hide = true)]
    Health(HealthArgs),
    /// The maker of a pool's leases
    #[command(name = "__fill", hide = true)]
    Fill,
    /// Whether a guest boots on this machine
    #[command(name = "__probe", hide = true)]
    Probe(ProbeArgs),
}

/// `machine cleanup`, another name of `cleanup`.
#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Remove leases that ended and everything that they left behind
    Cleanup(CleanupArgs),
}

/// The command tree, built, with global settings handed down.
pub(crate) fn command() -> clap::Command {
    let mut root = with_go_booleans(Cli::command());
    root.build();
    root
}

/// Gives the switches that the derived structs declare the shape of Go's booleans: `--x`, `--x=false`.
fn with_go_booleans(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            let plain = arg.get_default_values().is_empty();
            let arg = keys::boolean(arg).value_parser(clap::value_parser!(bool));
            if plain { arg.default_value("false") } else { arg }
        })
        .mut_subcommands(with_go_booleans)
}

/// Reads an argument vector, the program's name included.
#[cfg(test)]
pub(crate) fn parse(argv: &[OsString]) -> Result<Command, Stop> {
    parse_with_flags(argv).map(|parsed| parsed.command)
}

/// What a command line says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) command: Command,
    /// How much it wants to see of what is done.
    pub(crate) verbosity: Verbosity,
    /// The flags that were given for keys of the configuration.
    pub(crate) given: Vec<FlagValue>,
}

/// Reads an argument vector, the program's name included, with what was said beside the command.
pub(crate) fn parse_with_flags(argv: &[OsString]) -> Result<Parsed, Stop> {
    let root = command();
    let vector = normalise(argv, &root)?;
    let matches = root
        .clone()
        .try_get_matches_from(&vector)
        .map_err(|error| explain(&error, &vector, &root))?;
    refused::check(&matches).map_err(Stop::Refused)?;
    let mut leaf = &matches;
    while let Some((_, below)) = leaf.subcommand() {
        leaf = below;
    }
    let given = keys::given(leaf);
    Cli::from_arg_matches(&matches)
        .map(|cli| Parsed {
            verbosity: cli.verbosity(),
            command: cli.command,
            given,
        })
        .map_err(|error| explain(&error, &vector, &root))
}

/// clap's error in our words; the vector holds the command's path before the first flag.
fn explain(error: &clap::Error, vector: &[OsString], root: &clap::Command) -> Stop {
    let mut command = root;
    for word in vector.iter().skip(1) {
        match word.to_str().and_then(|word| command.find_subcommand(word)) {
            Some(next) => command = next,
            None => break,
        }
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let invalid = text(ContextKind::InvalidArg);
    let problem = match (error.kind(), invalid, text(ContextKind::InvalidValue)) {
        (ErrorKind::UnknownArgument, Some(word), _) => Problem::Unexpected { word },
        (ErrorKind::MissingRequiredArgument, ..) => Problem::Other {
            message: format!("missing {}", missing(error)),
        },
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(arg), Some(value)) => {
            let name = arg
                .trim_start_matches('-')
                .split([' ', '=', '<'])
                .next()
                .unwrap_or_default()
                .to_owned();
            let reason = std::error::Error::source(error).map_or_else(
                || possible_values(error).unwrap_or_else(|| "parse error".to_owned()),
                |source| match source.downcast_ref::<std::num::ParseIntError>() {
                    Some(_) => "expected a whole number".to_owned(),
                    None => source.to_string(),
                },
            );
            if arg.starts_with('-') {
                Problem::BadValue { name, value, reason }
            } else {
                let message = format!("invalid value {value:?} for {arg}: {reason}");
                Problem::Other { message }
            }
        }
        _ => {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            Problem::Other {
                message: first.trim_start_matches("error: ").to_owned(),
            }
        }
    };
    Stop::Usage(UsageError::new(problem, command))
}

/// The arguments that are not there.
fn missing(error: &clap::Error) -> String {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) => {
            // Strip the placeholder of an optional value (`[=…]`).
            let names: Vec<_> = names.iter().filter_map(|name| name.split('[').next()).collect();
            names.join(", ")
        }
        _ => "argument".to_owned(),
    }
}

fn possible_values(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            Some(format!("expected one of {}", values.join(", ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command().debug_assert();
    }
}
