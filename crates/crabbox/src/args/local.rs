//! Arguments of the commands that only look at this host and its configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::keys::{ConfigShowSet, DoctorSet, KeyFlags, LeaseSet};

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the path of your configuration file
    Path,
    /// Print the effective configuration
    Show(ConfigShowArgs),
    /// Print the source of a key's value
    Explain(ConfigExplainArgs),
}

/// `config show`.
#[derive(Debug, Args)]
pub(crate) struct ConfigShowArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<ConfigShowSet>,
}

/// `config explain`.
#[derive(Debug, Args)]
pub(crate) struct ConfigExplainArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The key as in a configuration file, such as firecracker.cpus; none: every key that is set
    #[arg(value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `providers`.
#[derive(Debug, Args)]
pub(crate) struct ProvidersArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Which of them.
    #[command(flatten)]
    pub(crate) filters: ProvidersFilterArgs,
    /// One provider in detail, or advice.
    #[command(subcommand)]
    pub(crate) command: Option<ProvidersCommand>,
}

/// Which providers: those that have everything that is named.
#[derive(Debug, Args)]
pub(crate) struct ProvidersFilterArgs {
    /// Only those of this kind
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Vec<String>,
    /// Only those of this category
    #[arg(long, value_name = "CATEGORY")]
    pub(crate) category: Vec<String>,
    /// Only those whose machines run this
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Vec<String>,
    /// Only those with this feature
    #[arg(long, value_name = "FEATURE")]
    pub(crate) feature: Vec<String>,
    /// Only those that run commands like this
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) runtime: Vec<String>,
    /// Only those that are reached like this
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) reachability: Vec<String>,
    /// Only those that can do this with a workspace
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) workspace: Vec<String>,
    /// Only those that keep this of a run
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) evidence: Vec<String>,
    /// Only those that can do this with a machine
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) lifecycle: Vec<String>,
}

/// `providers …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProvidersCommand {
    /// Show what a provider can do and which flags it has
    Describe(ProvidersDescribeArgs),
    /// Show the values that the filters of `providers` accept
    Filters(ProvidersFiltersArgs),
    /// Rank the providers for a use case
    Recommend(Box<ProvidersRecommendArgs>),
}

/// `providers describe`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox providers describe <provider> [--json]")]
pub(crate) struct ProvidersDescribeArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The provider, by its name or an alias
    #[arg(value_name = "PROVIDER")]
    pub(crate) provider: Vec<String>,
}

/// `providers filters`.
#[derive(Debug, Args)]
pub(crate) struct ProvidersFiltersArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `providers recommend`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox providers recommend [<use-case>] [flags]")]
pub(crate) struct ProvidersRecommendArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Maximum number of providers to show
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 5,
        allow_negative_numbers = true
    )]
    pub(crate) limit: i64,
    /// The use case, if not given as an argument
    #[arg(long, value_name = "USE-CASE")]
    pub(crate) use_case: Option<String>,
    /// The use case; without one, the known ones are listed
    #[arg(value_name = "USE-CASE")]
    pub(crate) words: Vec<String>,
    /// Which of them.
    #[command(flatten)]
    pub(crate) filters: ProvidersFilterArgs,
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check this lease too: its id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Check every provider, not only the selected one
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    /// With --all, only these providers, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) providers: Vec<String>,
    /// Check only the Slurm configuration of the fleet that this host belongs to
    #[arg(long, conflicts_with_all = ["id", "all", "probe", "prepare_check", "doctor_probe_ssh"])]
    pub(crate) fleet: bool,
    /// Also resolve everything that a lease would use, without creating one
    #[arg(long)]
    pub(crate) prepare_check: bool,
    /// Also boot a tiny guest briefly, the only proof that KVM works
    #[arg(long)]
    pub(crate) probe: bool,
    /// Also log in to the static host
    #[arg(long)]
    pub(crate) doctor_probe_ssh: bool,
    /// Name of the profile
    #[arg(long, value_name = "TEXT")]
    pub(crate) profile: Option<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<DoctorSet>,
}

/// `claims`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClaimsCommand {
    /// Show local claims on leases
    List(ClaimsListArgs),
}

/// `claims list`.
#[derive(Debug, Args)]
pub(crate) struct ClaimsListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `sync-plan`.
#[derive(Debug, Args)]
pub(crate) struct SyncPlanArgs {
    /// Number of files and directories to list
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 20,
        allow_negative_numbers = true
    )]
    pub(crate) limit: i64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `verify`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox verify <receipt.json>")]
pub(crate) struct VerifyArgs {
    /// The receipt
    #[arg(value_name = "RECEIPT")]
    pub(crate) receipts: Vec<PathBuf>,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// `__reference`.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// Where to write
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// `__probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Where the verdict is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: PathBuf,
    /// The Firecracker program
    #[arg(long, value_name = "PATH")]
    pub(crate) firecracker: PathBuf,
    /// The guest's kernel
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: PathBuf,
    /// The guest's first process
    #[arg(long, value_name = "PATH")]
    pub(crate) guest: PathBuf,
    /// How long the guest may be silent, in milliseconds
    #[arg(long, value_name = "N")]
    pub(crate) limit_millis: u64,
}

/// `__supervise`: what the engine hands to the supervisor it starts.
#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    /// Watch a lease whose supervisor has died
    #[arg(long, value_name = "LEASE")]
    pub(crate) adopt: Option<String>,
}

/// `__serve`: what a client on another machine is answered by.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Whom it is for; the account it runs as without it
    #[arg(long = "as", value_name = "NAME", conflicts_with = "for_gateway")]
    pub(crate) owner: Option<String>,
    /// The client is the gateway of this host's fleet, and says for whom it speaks
    #[arg(long)]
    pub(crate) for_gateway: bool,
}

/// `__hold`: the process of a scheduler's job, which makes one lease and watches it.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// The number of the job
    #[arg(value_name = "JOB")]
    pub(crate) number: u32,
    /// The lease that it was submitted for
    #[arg(long, value_name = "LEASE")]
    pub(crate) lease: String,
    /// Whose it is
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: String,
    /// What was drawn at its submission
    #[arg(long, value_name = "TEXT")]
    pub(crate) nonce: String,
    /// How long its request may take to come, in seconds
    #[arg(long, value_name = "N")]
    pub(crate) wait: u64,
}

/// `__health`: leases of jobs that are over, on a host of a fleet.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// How old a lease is at least that is taken back, in seconds
    #[arg(long, value_name = "N", default_value_t = crabbox_engine::placement::strays::GRACE.as_secs())]
    pub(crate) grace: u64,
}

/// `__epilog`: the end of a scheduler's job on its host.
#[derive(Debug, Args)]
pub(crate) struct EpilogArgs {
    /// The number of the job
    #[arg(value_name = "JOB")]
    pub(crate) number: u32,
}

/// `__proxy`: what an `ssh` of ours starts to reach a guest on a KVM host.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// The KVM host
    #[arg(long, value_name = "USER@HOST")]
    pub(crate) host: String,
    /// The private key that opens it
    #[arg(long, value_name = "PATH")]
    pub(crate) key: Option<PathBuf>,
    /// Where its host key is remembered
    #[arg(long, value_name = "PATH")]
    pub(crate) known_hosts: PathBuf,
    /// The lease
    #[arg(value_name = "LEASE")]
    pub(crate) lease: String,
}
