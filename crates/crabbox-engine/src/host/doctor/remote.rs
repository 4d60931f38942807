//! The doctor's check of a lease: whether it answers and has what a sync needs.

use std::time::Duration;

use crabbox_core::config::Provider as Which;
use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::capture;
use crabbox_ssh::exec::ExecError;

use super::check::{Check, Status};
use crate::provider::capability::Capability;
use crate::provider::lease::Lease;
use crate::provider::registry;

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
        /// Whether its console is kept.
        has_console: bool,
    },
    /// It does not answer.
    #[error("remote doctor failed for {lease}")]
    Silent {
        /// The lease.
        lease: String,
        /// Whether its console is kept.
        has_console: bool,
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
        /// Whether it was made from an image, where such a program belongs.
        has_image: bool,
    },
}

impl Fault for RemoteError {
    fn kind(&self) -> Kind {
        Kind::Remote
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Lacking { has_image, .. } => {
                let place = if *has_image {
                    "in the guest image"
                } else {
                    "on the host"
                };
                vec![format!("install git {place}")]
            }
            Self::NoAddress { lease, has_console }
            | Self::Silent {
                lease, has_console, ..
            } => {
                let mut hint = format!("`crabbox status --id {lease}` shows its state");
                if *has_console {
                    hint = format!("{hint}, `crabbox logs --id {lease}` its console");
                }
                vec![hint]
            }
        }
    }
}

/// Asks `lease` for the programs that sync and runs need.
pub fn remote(lease: &Lease) -> Result<Check, RemoteError> {
    let name = || lease.id.clone();
    let can = |capability| {
        Which::by_name(lease.provider).is_ok_and(|which| registry::capabilities(which).has(capability))
    };
    let has_console = can(Capability::Logs);
    let target = lease.target.as_ref().ok_or_else(|| RemoteError::NoAddress {
        lease: name(),
        has_console,
    })?;
    let answer = capture::capture_check(target, QUESTION, LIMIT, None);
    let answer = answer.map_err(|source| RemoteError::Silent {
        lease: name(),
        has_console,
        source,
    })?;
    let found = answer.stdout_text().lines().collect::<Vec<_>>().join(" ");
    if !answer.success() {
        return Err(RemoteError::Lacking {
            lease: name(),
            found,
            has_image: can(Capability::MakesMachine),
        });
    }
    Ok(Check::of_provider(lease.provider, Status::Ok, "remote", found).with("lease", &lease.id))
}
