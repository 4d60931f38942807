//! What `crabbox cleanup` would remove. Read-only: takes no lock and creates nothing.

use crabbox_core::state::LeaseState;
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::orphans;
use crabbox_store::claims;

use super::super::world::{ObserveError, Observed};
use crate::provider::Leases;
use crate::provider::firecracker::lookup;

/// One text per leftover.
pub(super) fn residue(engine: &Engine) -> Observed<Vec<String>> {
    let places = &engine.places;
    let Leases { leases, unusable, .. } =
        lookup::list(engine).map_err(|error| ObserveError::chain(&error))?;
    let mut found: Vec<String> = unusable
        .iter()
        .map(|bad| format!("unreadable lease {}", bad.name))
        .collect();
    let dead = leases.iter().filter(|lease| lease.state == LeaseState::Stopped);
    found.extend(dead.map(|lease| format!("dead lease {}", lease.id)));
    let claims = claims::list(places)
        .map_err(|error| ObserveError::chain(&error))?
        .claims;
    let stale = claims
        .iter()
        // A claim with a scope is on another host, and only that host knows whether its lease still exists.
        .filter(|claim| claim.provider == "firecracker" && claim.provider_scope.is_empty())
        .filter(|claim| !places.leases().join(&claim.lease_id).exists());
    found.extend(stale.map(|claim| format!("claim {}", claim.lease_id)));
    let objects = orphans::find(places);
    let names = objects.orphans.iter();
    found.extend(names.map(|object| format!("{} {}", object.kind(), object.name())));
    let trouble = |unseen: &orphans::Unseen| ObserveError::chain(&unseen.error);
    if found.is_empty()
        && let Some(unseen) = objects.unseen.first()
    {
        return Err(trouble(unseen));
    }
    let unseen = objects.unseen.iter().filter(|unseen| unseen.is_trouble());
    found.extend(unseen.map(|unseen| format!("{} not looked for: {}", unseen.kind, trouble(unseen))));
    Ok(found)
}
