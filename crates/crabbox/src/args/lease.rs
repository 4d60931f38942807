//! Arguments of the commands that work on leases, except `run`.

use clap::Args;
use crabbox_core::duration::GoDuration;

use super::keys::{KeyFlags, LeaseSet, ListSet, StopSet, WarmupSet};

/// A lease by `--id` or as the only positional.
#[derive(Debug, Args)]
pub(crate) struct LeaseName {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    id: Option<String>,
    /// Lease id or slug
    #[arg(value_name = "LEASE")]
    name: Option<String>,
}

impl LeaseName {
    /// The id or slug that was given. Blank ones count as not given, and so do two: nobody says which of them is meant.
    pub(crate) fn get(&self) -> Option<&str> {
        let [id, name] =
            [&self.id, &self.name].map(|text| text.as_deref().map(str::trim).filter(|name| !name.is_empty()));
        match (id, name) {
            (Some(name), None) | (None, Some(name)) => Some(name),
            _ => None,
        }
    }
}

/// `warmup`.
#[derive(Debug, Args)]
pub(crate) struct WarmupArgs {
    /// Name for the new lease
    #[arg(long, value_name = "NAME")]
    pub(crate) slug: Option<String>,
    /// Keep the lease until it is stopped or expires
    #[arg(long, default_value_t = true)]
    pub(crate) keep: bool,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Set up this host first if necessary, without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print the lease as JSON, as `status --json` does, instead of lines
    #[arg(long)]
    pub(crate) json: bool,
    /// Print timings as one line of JSON on standard error
    #[arg(long)]
    pub(crate) timing_json: bool,
    /// Write all events to standard error as JSON lines
    #[arg(long)]
    pub(crate) json_events: bool,
    /// Print all progress lines, even on a terminal
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<WarmupSet>,
}

/// `ssh`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox ssh [flags] <lease-id-or-slug>")]
pub(crate) struct SshArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Print secrets in full; the command line of a lease of this program has none
    #[arg(long, hide = true)]
    pub(crate) show_secret: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `connect`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox connect [flags] <lease-id-or-slug>")]
pub(crate) struct ConnectArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Take over a lease that another repository claimed
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Wait until the lease is ready
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) wait_timeout: GoDuration,
    /// Refresh until Ctrl-C, or until the lease is gone
    #[arg(long, conflicts_with = "wait")]
    pub(crate) watch: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Also list machines without a claim of this user, pool members among them
    #[arg(long)]
    pub(crate) all: bool,
    /// Check the machines themselves, not only the records
    #[arg(long)]
    pub(crate) refresh: bool,
    /// Refresh until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<ListSet>,
}

/// `stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Not supported by any provider of this program
    #[arg(long, hide = true)]
    pub(crate) reclaim: bool,
    /// What the lease has to be, for programs that stop what they made.
    #[command(flatten)]
    pub(crate) expected: ExpectedArgs,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<StopSet>,
}

/// What a lease has to be to be given back: the fences of programs that made it. The first four go together.
#[expect(clippy::struct_field_names, reason = "the names are those of the flags")]
#[derive(Debug, Args)]
pub(crate) struct ExpectedArgs {
    /// Only this lease
    #[arg(long, hide = true, value_name = "LEASE")]
    pub(crate) expected_provider_lease_id: Option<String>,
    /// Only the lease of this attempt; an attempt here is a lease
    #[arg(long, hide = true, value_name = "LEASE")]
    pub(crate) expected_attempt_lease_id: Option<String>,
    /// Only the lease with this slug
    #[arg(long, hide = true, value_name = "SLUG")]
    pub(crate) expected_slug: Option<String>,
    /// Only the lease of this machine
    #[arg(long, hide = true, value_name = "NAME")]
    pub(crate) expected_resource_id: Option<String>,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `cleanup`.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Only report what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON document with every decision
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `heartbeat`.
#[derive(Debug, Args)]
pub(crate) struct HeartbeatArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// New idle timeout of the lease
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_timeout: Option<GoDuration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Show the guest's serial console (the default)
    #[arg(long)]
    pub(crate) console: bool,
    /// Show the VMM's log instead
    #[arg(long)]
    pub(crate) vmm: bool,
    /// Show the log of the lease's supervisor instead
    #[arg(long)]
    pub(crate) supervisor: bool,
    /// With --supervisor: set the log filter of the running supervisor, in the syntax of CRABBOX_LOG
    #[arg(long, value_name = "FILTER")]
    pub(crate) level: Option<String>,
    /// Number of lines from the end; 0 for all
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    pub(crate) tail: usize,
    /// Follow the log until the lease ends
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print the log as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `cp`.
#[derive(Debug, Args)]
#[command(
    override_usage = "crabbox cp --id <lease-id-or-slug> [-L] <src> <dst>, one of them as SANDBOX:<path>"
)]
pub(crate) struct CpArgs {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Copy the targets of symbolic links
    #[arg(long = "L")]
    pub(crate) follow_links: bool,
    /// Source and destination
    #[arg(value_name = "PATH")]
    pub(crate) operands: Vec<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `tunnel`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox tunnel --id <lease-id-or-slug> [--local-port <port>] <remote-port>")]
pub(crate) struct TunnelArgs {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Claim the lease for this repository, even if another one claimed it
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Local port [default: a free one]
    #[arg(long, value_name = "PORT")]
    pub(crate) local_port: Option<u16>,
    /// Port in the lease
    #[arg(value_name = "REMOTE-PORT")]
    pub(crate) remote_port: Option<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `pause` and `resume`.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The lease.
    #[command(flatten)]
    pub(crate) lease: LeaseName,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `ports`.
#[derive(Debug, Args)]
#[command(
    override_usage = "crabbox ports --id <lease-id-or-slug> add <name> [<local-port>:]<remote-port>\n       \
                      crabbox ports --id <lease-id-or-slug> list [--json]\n       \
                      crabbox ports --id <lease-id-or-slug> rm <name>"
)]
pub(crate) struct PortsArgs {
    /// Lease id or slug
    #[arg(long, value_name = "LEASE")]
    pub(crate) id: Option<String>,
    /// Print the list as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// `add` with a name and ports, `list`, or `rm` with a name
    #[arg(value_name = "WORD")]
    pub(crate) words: Vec<String>,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// A duration flag; its error is Go's.
pub(super) fn duration(text: &str) -> Result<GoDuration, GoParseError> {
    text.parse().map_err(|_| GoParseError)
}

/// What Go's flag package says of a value it cannot read.
#[derive(Debug, thiserror::Error)]
#[error("parse error")]
pub(super) struct GoParseError;
