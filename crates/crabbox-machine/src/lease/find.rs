//! Finds a lease by the user's text, and computes its state.
//!
//! Liveness is computed from the process every time and never stored. One unreadable record must never hide
//! another lease.

use std::path::PathBuf;

use crabbox_core::claim::Claim;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::{LeaseId, normalise};
use crabbox_core::labels;
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_host::lock::LockError;
use crabbox_host::process;
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::leases::{self, RecordError, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

use crate::resource::connection;

/// The purpose of a lookup: a dead lease can be inspected and released, but not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Use: run something in it.
    Use,
    /// Inspect it.
    Look,
    /// Release it.
    Release,
}

/// The result of a lookup.
#[derive(Debug, Clone)]
pub struct LeaseMatch {
    /// The lease id.
    pub id: String,
    /// Its record; `None` where only a claim is left.
    pub stored: Option<StoredLease>,
    /// Its claim.
    pub claim: Option<Claim>,
}

/// Why a name does not identify a lease.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// No lease of that id, slug or name.
    #[error("lease/server not found: {text}")]
    NotFound {
        /// The user's text.
        text: String,
    },
    /// The slug belongs to several leases.
    #[error("slug {slug:?} matches multiple active leases:{}", lines(.matches))]
    Ambiguous {
        /// The slug.
        slug: String,
        /// One line per lease.
        matches: Vec<String>,
    },
}

/// Why no lease, or more than one, was found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name matches no lease, or several.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is a claim without a lease.
    #[error(
        "firecracker lease {id:?} has a stale local claim but no local state; run `crabbox cleanup --provider firecracker`"
    )]
    StaleClaim {
        /// The lease.
        id: String,
    },
    /// The machine is gone.
    #[error(
        "firecracker lease {name} is not running; use `crabbox stop --provider firecracker {id}` or `crabbox cleanup --provider firecracker`"
    )]
    NotRunning {
        /// The machine's name.
        name: String,
        /// The lease.
        id: String,
    },
    /// The machine has no address yet.
    #[error("firecracker lease {id} has no guest IP")]
    NoAddress {
        /// The lease.
        id: String,
    },
    /// Its record cannot be used.
    #[error("the record of lease {id} cannot be used")]
    Unreadable {
        /// The lease.
        id: String,
        /// Its directory, if there is no journal either that says what to undo.
        untold: Option<PathBuf>,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The records cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The claims cannot be read.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// The lock cannot be inspected.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It cannot be reached by SSH.
    #[error(transparent)]
    Connection(#[from] connection::ConnectionError),
}

fn lines(matches: &[String]) -> String {
    matches
        .iter()
        .fold(String::new(), |text, line| text + "\n  " + line)
}

impl Fault for NameError {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }
}

impl Fault for ResolveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name(_) | Self::StaleClaim { .. } => Kind::NotFound,
            Self::NotRunning { .. } | Self::NoAddress { .. } => Kind::Unavailable,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Name(NameError::NotFound { .. }) => {
                vec!["it has ended, or belongs to another user or state directory; `crabbox list --provider firecracker --all` shows those of this host".to_owned()]
            }
            Self::Unreadable {
                source: RecordError::TooNew { .. },
                ..
            } => {
                vec!["use the crabbox that made the lease, or a newer one (`crabbox version` shows this one's version); the lease keeps running".to_owned()]
            }
            Self::Unreadable {
                untold: Some(dir), ..
            } => {
                let dir = dir.display();
                vec![format!(
                    "restore {dir}/metadata.json: without it and a journal, crabbox does not know what to remove"
                )]
            }
            Self::Unreadable { id, .. } => {
                vec![format!("`crabbox stop {id}` removes the lease by its journal")]
            }
            Self::Connection(connection::ConnectionError::Control(error)) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// Finds the lease that `text` names: a lease id, a slug, or a machine's name.
pub fn find(places: &Places, text: &str, purpose: Purpose) -> Result<LeaseMatch, ResolveError> {
    let listing = leases::list(&places.leases())?;
    if let Ok(id) = LeaseId::parse(text) {
        return by_id(places, listing, &id, purpose);
    }
    let slug = normalise(text);
    let of_slug: Vec<&StoredLease> = listing
        .leases
        .iter()
        // An unclaimed pool member can be named only by its id.
        .filter(|lease| labels::pool(&lease.record.labels).is_none() && lease.record.slug == slug)
        .collect();
    let found = match of_slug.as_slice() {
        [one] => Some(*one),
        [] => listing
            .leases
            .iter()
            .find(|lease| labels::pool(&lease.record.labels).is_none() && lease.record.name == text),
        several => {
            let matches = several.iter().map(|lease| describe(&lease.record)).collect();
            return Err(NameError::Ambiguous { slug, matches }.into());
        }
    };
    if let Some(lease) = found {
        let claim = claims::read(places, &lease.record.lease_id)?;
        return Ok(LeaseMatch {
            id: lease.record.lease_id.clone(),
            stored: Some(lease.clone()),
            claim,
        });
    }
    let mut claimed = claims::list(places)?.claims.into_iter();
    let of_slug = claimed.rfind(|claim| claim.provider == "firecracker" && claim.slug == slug);
    match of_slug {
        Some(claim) => claim_only(claim, purpose),
        None => Err(NameError::NotFound {
            text: text.to_owned(),
        }
        .into()),
    }
}

fn by_id(
    places: &Places,
    listing: leases::Listing,
    id: &LeaseId,
    purpose: Purpose,
) -> Result<LeaseMatch, ResolveError> {
    let claim = claims::read(places, id.as_str())?;
    if let Some(lease) = listing
        .leases
        .into_iter()
        .find(|lease| lease.record.lease_id == id.as_str())
    {
        return Ok(LeaseMatch {
            id: id.to_string(),
            stored: Some(lease),
            claim,
        });
    }
    if let Some(bad) = listing.unreadable.into_iter().find(|bad| bad.name == id.as_str()) {
        if purpose == Purpose::Release {
            return Ok(LeaseMatch {
                id: id.to_string(),
                stored: None,
                claim,
            });
        }
        let dir = LeaseDir::at(places.leases().join(&bad.name));
        return Err(ResolveError::Unreadable {
            id: id.to_string(),
            untold: (!dir.journal().exists()).then(|| dir.path().to_owned()),
            source: bad.error,
        });
    }
    match claim {
        Some(claim) => claim_only(claim, purpose),
        None => Err(NameError::NotFound { text: id.to_string() }.into()),
    }
}

fn claim_only(claim: Claim, purpose: Purpose) -> Result<LeaseMatch, ResolveError> {
    if purpose == Purpose::Release {
        Ok(LeaseMatch {
            id: claim.lease_id.clone(),
            stored: None,
            claim: Some(claim),
        })
    } else {
        Err(ResolveError::StaleClaim { id: claim.lease_id })
    }
}

fn describe(record: &LeaseRecord) -> String {
    format!(
        "lease={} slug={} server={} host={}",
        record.lease_id, record.slug, record.name, record.guest_ip
    )
}

/// Whether the record's VMM is running: same pid, start time and boot id.
pub fn is_running(record: &LeaseRecord) -> bool {
    record.process().is_some_and(|vmm| process::is_alive(&vmm))
}

/// The state of a lease: that of its label, or `stopped` when the machine has ended.
pub fn state(places: &Places, record: &LeaseRecord) -> Result<LeaseState, LockError> {
    let labelled = labels::state(&record.labels);
    if labelled.is_settled() || is_running(record) {
        return Ok(labelled);
    }
    // A lease that is being made has no process yet, and its maker holds its lock.
    if labelled == LeaseState::Provisioning && locks::is_busy(places, &record.lease_id)? {
        return Ok(labelled);
    }
    Ok(LeaseState::Stopped)
}
