//! The `nft` program: one atomic transaction per call, in the namespace of the calling thread. No change may
//! be split into two calls.

use std::path::Path;
use std::time::Duration;

use crabbox_host::command::{Captured, Cmd, CommandError};

/// Path of `nft` on most distributions, where the `PATH` of unprivileged users does not lead; searched before
/// `PATH`.
const PLACES: [&str; 4] = [
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/local/sbin/nft",
    "/usr/bin/nft",
];

/// Time limit. A transaction takes milliseconds, or a second or two while the kernel loads its modules for
/// the first time; a minute allows for a heavily loaded host.
const LIMIT: Duration = Duration::from_mins(1);

/// Why a change of the packet filter failed. A change is all or nothing.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("the program nft is not installed (Debian: apt install nftables)")]
    Missing,
    /// It refused, or could not be run.
    #[error("cannot {action}")]
    Refused {
        /// The attempted operation.
        action: &'static str,
        /// The underlying error.
        #[source]
        source: CommandError,
    },
}

/// Applies `rules` as one transaction.
pub(crate) fn apply(action: &'static str, rules: &str) -> Result<(), NftError> {
    run(action, &Cmd::new(program()).args(["-f", "-"]).stdin(rules)).map(drop)
}

/// Runs `nft` with `args` and returns what it printed.
pub(crate) fn ask(action: &'static str, args: &[&str]) -> Result<Captured, NftError> {
    run(action, &Cmd::new(program()).args(args))
}

fn program() -> &'static str {
    PLACES
        .into_iter()
        .find(|place| Path::new(place).is_file())
        .unwrap_or("nft")
}

fn run(action: &'static str, command: &Cmd) -> Result<Captured, NftError> {
    command
        .clone()
        .limit(LIMIT)
        .own_group()
        .run()
        .map_err(|source| match source {
            CommandError::NotFound { .. } => NftError::Missing,
            source => NftError::Refused { action, source },
        })
}
