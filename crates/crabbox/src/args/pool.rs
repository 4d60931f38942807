//! Arguments of `pool`: leases that are kept ready ahead of their use.

use clap::{Args, Subcommand};

use super::keys::{KeyFlags, LeaseSet};
use super::lease::ListArgs;

/// `pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Create leases until the pool has firecracker.pool members
    Fill(Box<PoolFillArgs>),
    /// End all pool members
    Drain(Box<PoolDrainArgs>),
    /// List leases, pool members among them
    List(Box<ListArgs>),
}

/// `pool fill`.
#[derive(Debug, Args)]
pub(crate) struct PoolFillArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}

/// `pool drain`.
#[derive(Debug, Args)]
pub(crate) struct PoolDrainArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}
