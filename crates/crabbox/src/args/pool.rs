//! Arguments of `pool`: leases that are kept ready ahead of their use.

use clap::{Args, Subcommand};

use super::keys::{KeyFlags, LeaseSet};
use super::lease::ListArgs;

/// `pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make leases until as many wait as firecracker.pool says
    Fill(Box<PoolFillArgs>),
    /// End every lease that waits
    Drain(Box<PoolDrainArgs>),
    /// List leases, those that wait among them
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
