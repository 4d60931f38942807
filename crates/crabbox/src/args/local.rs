//! Arguments of the commands that look at this host and its configuration only.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::keys::{DoctorSet, KeyFlags, LeaseSet};

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the path of your configuration file
    Path,
    /// Print the configuration that all layers resolve to
    Show(ConfigShowArgs),
    /// Print where the value of a key comes from
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
    pub(crate) keys: KeyFlags<LeaseSet>,
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
    /// One provider in detail.
    #[command(subcommand)]
    pub(crate) command: Option<ProvidersCommand>,
}

/// `providers …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProvidersCommand {
    /// Show what a provider can do and which flags it has
    Describe(ProvidersDescribeArgs),
}

/// `providers describe`.
#[derive(Debug, Args)]
pub(crate) struct ProvidersDescribeArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The provider
    #[arg(value_name = "PROVIDER")]
    pub(crate) provider: String,
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
    /// Look at every provider, not at the one that is chosen
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    /// The providers that --all looks at, with commas between them
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "firecracker,ssh",
        value_delimiter = ','
    )]
    pub(crate) providers: Vec<String>,
    /// Also find everything that a lease is made of, and make nothing
    #[arg(long)]
    pub(crate) prepare_check: bool,
    /// Also boot a tiny guest for a moment, the only proof that KVM works
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
    /// How many files and directories to name
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub(crate) limit: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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

/// `__supervise`: what the engine hands to the supervisor it starts.
#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    /// Watch a lease whose supervisor has died
    #[arg(long, value_name = "LEASE")]
    pub(crate) adopt: Option<String>,
}
