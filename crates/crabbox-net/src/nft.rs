//! The `nft` program: one atomic transaction at a time, in the namespace of the calling thread.

use std::path::Path;
use std::time::Duration;

use crabbox_host::command::{Captured, Cmd, CommandError};

/// Distributions keep `nft` where users without privileges do not look, so it is looked for here before `PATH`.
const PLACES: [&str; 4] = [
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/local/sbin/nft",
    "/usr/bin/nft",
];

/// A transaction takes milliseconds; a kernel that loads its modules for the first time, a second or two.
const LIMIT: Duration = Duration::from_secs(20);

/// Why a change of the packet filter did not happen. It is all or nothing.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("the program nft is not installed (Debian: apt install nftables)")]
    Missing,
    /// It refused, or could not be run.
    #[error("cannot {action}")]
    Refused {
        /// What was to be done.
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
