//! Claims a lease for a repository: the claim is updated under the claims' lock.
//!
//! Another repository's claim is never taken over without being asked to, and the claim of a lease that was
//! released since it was resolved is never made again.

use std::path::Path;

use crabbox_core::claim::Claim;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_machine::lease::touch::TouchError;
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::places::Places;

use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;

/// Claims `lease` for the repository at `repo`. Another repository's claim is only taken over if `reclaim` is
/// set.
pub fn claim(places: &Places, lease: &Lease, repo: &Path, reclaim: bool) -> Result<Claim, TouchError> {
    claim_as(places, lease, repo, reclaim, |_, _| Ok::<_, TouchError>(()))
}

/// Like [`claim`]; `finish` may refuse the existing claim, and completes the new one.
pub(crate) fn claim_as<E: From<TouchError>>(
    places: &Places,
    lease: &Lease,
    repo: &Path,
    reclaim: bool,
    finish: impl FnOnce(Option<&Claim>, &mut Claim) -> Result<(), E>,
) -> Result<Claim, E> {
    let wanted = repo.to_string_lossy().into_owned();
    let now = timestamp::rfc3339(clock::unix_seconds());
    let port = lease.target.as_ref().map_or(22, |target| i64::from(target.port));
    let claim = claims::update::<Refusal<E>>(places, &lease.id, |standing| {
        if lease.is_claimed && standing.is_none() {
            return Err(TouchError::Ended { id: lease.id.clone() }.into());
        }
        if let Some(held) = standing
            && !reclaim
            && !held.repo_root.is_empty()
            && held.repo_root != wanted
        {
            return Err(TouchError::Held {
                id: lease.id.clone(),
                holder: held.repo_root.clone(),
                wanted: wanted.clone(),
            }
            .into());
        }
        let mut claim = Claim {
            slug: lease.slug.clone(),
            provider: lease.provider.to_owned(),
            cloud_id: lease.cloud_id.clone(),
            target_os: "linux".to_owned(),
            repo_root: wanted.clone(),
            claimed_at: standing.map_or_else(|| now.clone(), |held| held.claimed_at.clone()),
            last_used_at: now.clone(),
            idle_timeout_seconds: lease.idle_seconds(),
            ssh_host: lease.address.clone(),
            ssh_port: port,
            labels: lease.labels.clone(),
            ..standing.cloned().unwrap_or_default()
        };
        finish(standing, &mut claim).map_err(Refusal)?;
        Ok(Some(claim))
    });
    claim
        .map(Option::unwrap_or_default)
        .map_err(|Refusal(error)| error)
}

impl From<TouchError> for LeaseError {
    fn from(error: TouchError) -> Self {
        Self::new(error)
    }
}

/// Carries the caller's error through the store, which can add errors of its own.
struct Refusal<E>(E);

impl<E: From<TouchError>> From<ClaimError> for Refusal<E> {
    fn from(error: ClaimError) -> Self {
        Self(TouchError::from(error).into())
    }
}

impl<E: From<TouchError>> From<TouchError> for Refusal<E> {
    fn from(error: TouchError) -> Self {
        Self(error.into())
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::fault::{Fault as _, Kind};
    use crabbox_core::labels::Labels;
    use crabbox_core::state::LeaseState;

    use super::*;

    #[test]
    fn the_claim_of_a_lease_that_was_released_meanwhile_is_not_made_again() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let mut lease = Lease {
            id: "cbx_000000000001".to_owned(),
            slug: "jade-krill".to_owned(),
            name: "crabbox-jade-krill".to_owned(),
            cloud_id: "crabbox-jade-krill".to_owned(),
            provider: "firecracker",
            server_type: "microvm".to_owned(),
            state: LeaseState::Ready,
            labels: Labels::new(),
            kvm_host: None,
            address: String::new(),
            target: None,
            work_root: "/work".to_owned(),
            fallback_ports: Vec::new(),
            is_claimed: false,
            unjailed: false,
        };
        let repo = Path::new("/r");
        claim(&places, &lease, repo, false).unwrap();
        lease.is_claimed = true;
        claim(&places, &lease, repo, false).unwrap();
        claims::remove(&places, &lease.id, None).unwrap();
        let refused = claim(&places, &lease, repo, true).unwrap_err();
        assert_eq!(refused.kind(), Kind::NotFound, "{refused}");
        assert!(claims::read(&places, &lease.id).unwrap().is_none());
    }
}
