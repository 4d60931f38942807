//! Arguments of `proof`.

use std::path::PathBuf;

use clap::Args;

use super::keys::{KeyFlags, LeaseSet};

/// `proof`.
#[derive(Debug, Args)]
#[command(override_usage = "crabbox proof [--output PATH] [flags]\n       crabbox proof --check FILE")]
pub(crate) struct ProofArgs {
    /// Verify the proof in this file, without leasing anything
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "yes"])]
    pub(crate) check: Option<PathBuf>,
    /// Where to write it: a new file, or a directory
    #[arg(long, value_name = "PATH", default_value = "crabbox-proof.md")]
    pub(crate) output: PathBuf,
    /// Set up this host first if necessary, without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Flags that set configuration keys.
    #[command(flatten)]
    pub(crate) keys: KeyFlags<LeaseSet>,
}
