//! Arguments of `adapter`: leases for another program.

use clap::{Args, Subcommand};

use super::keys::{AdapterSet, KeyFlags};

/// `adapter`.
#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Serve one request of the Go program's external protocol, from standard input to standard output
    External(Box<AdapterExternalArgs>),
}

/// `adapter external`.
#[derive(Debug, Args)]
pub(crate) struct AdapterExternalArgs {
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<AdapterSet>,
}
