//! The doctor's check of a lease: whether it answers and has what a sync needs.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::capture;
use crabbox_ssh::exec::ExecError;

use super::check::{Check, Status};
use crate::provider::lease::Lease;

/// The command run in the lease. A missing program has an empty version; only git is required.
const QUESTION: &str = "for tool in git rsync curl jq; do \
    echo \"$tool=$($tool --version 2>/dev/null | sed -n '1s/[^0-9]*\\([0-9][0-9.]*\\).*/\\1/p')\"; done; \
    command -v git >/dev/null";
/// The time limit for the lease to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a lease failed the check.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It has no address.
    #[error("remote doctor failed for {lease}: it has no address")]
    NoAddress {
        /// The lease.
        lease: String,
    },
    /// It does not answer.
    #[error("remote doctor failed for {lease}")]
    Silent {
        /// The lease.
        lease: String,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// It has no git.
    #[error("remote doctor failed for {lease}: git must be there, found {found}")]
    Lacking {
        /// The lease.
        lease: String,
        /// What it has.
        found: String,
    },
}

impl Fault for RemoteError {
    fn kind(&self) -> Kind {
        Kind::Remote
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Lacking { .. } => vec!["install git in the guest image".to_owned()],
            Self::NoAddress { lease } | Self::Silent { lease, .. } => {
                vec![format!(
                    "`crabbox status --id {lease}` shows its state, `crabbox logs --id {lease}` its console"
                )]
            }
        }
    }
}

/// Asks `lease` for the programs that sync and runs need.
pub fn remote(lease: &Lease) -> Result<Check, RemoteError> {
    let name = || lease.id.clone();
    let target = lease
        .target
        .as_ref()
        .ok_or_else(|| RemoteError::NoAddress { lease: name() })?;
    let answer = capture::capture_check(target, QUESTION, LIMIT, None);
    let answer = answer.map_err(|source| RemoteError::Silent {
        lease: name(),
        source,
    })?;
    let found = answer.stdout_text().lines().collect::<Vec<_>>().join(" ");
    if !answer.success() {
        return Err(RemoteError::Lacking { lease: name(), found });
    }
    Ok(Check::of_provider(lease.provider, Status::Ok, "remote", found).with("lease", &lease.id))
}
