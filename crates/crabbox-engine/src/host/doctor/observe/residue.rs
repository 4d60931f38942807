//! What `crabbox cleanup` would have to take away, found by looking only: no lock is taken and nothing is made.

use crabbox_core::state::LeaseState;
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::orphans;
use crabbox_store::claims;

use super::super::world::{Seen, Trouble};
use crate::provider::Leases;
use crate::provider::firecracker::lookup;

/// One text for each thing that was left behind.
pub(super) fn residue(engine: &Engine) -> Seen<Vec<String>> {
    let places = &engine.places;
    let Leases { leases, unusable, .. } = lookup::list(engine).map_err(|error| Trouble::chain(&error))?;
    let mut found: Vec<String> = unusable
        .iter()
        .map(|bad| format!("unreadable lease {}", bad.name))
        .collect();
    let dead = leases.iter().filter(|lease| lease.state == LeaseState::Stopped);
    found.extend(dead.map(|lease| format!("dead lease {}", lease.id)));
    let claims = claims::list(places)
        .map_err(|error| Trouble::chain(&error))?
        .claims;
    let stale = claims
        .iter()
        // Whether a lease on another host is still there only that host knows.
        .filter(|claim| claim.provider == "firecracker" && claim.provider_scope.is_empty())
        .filter(|claim| !places.leases().join(&claim.lease_id).exists());
    found.extend(stale.map(|claim| format!("claim {}", claim.lease_id)));
    let objects = orphans::find(places).map_err(|error| Trouble::chain(&error))?;
    found.extend(
        objects
            .iter()
            .map(|object| format!("{} {}", object.kind(), object.name())),
    );
    Ok(found)
}
