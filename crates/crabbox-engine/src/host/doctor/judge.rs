//! Turns observations into checks. Pure: it looks at nothing but its arguments, so every fault can be tested.

mod classic;
mod guest;
mod hardening;
mod host;
mod network;
mod vmm;
mod warm;

use crabbox_core::config::firecracker::FirecrackerPlan;

use super::check::Check;
use super::world::World;

/// The checks of the provider `firecracker`: first the seven that the Go program has, in its order, then
/// ours.
pub fn firecracker(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let mut checks = classic::checks(plan, world);
    if world.host.os != "linux" {
        // On other systems there is nothing further to check.
        return checks;
    }
    checks.extend(host::checks(plan, world));
    checks.extend(vmm::checks(plan, world));
    checks.extend(network::checks(plan, world));
    checks.extend(guest::checks(plan, world));
    checks.push(warm::check(plan, world));
    checks.push(orphans(world));
    checks.extend(hardening::checks(world));
    checks
}

/// Leftovers without an owner.
fn orphans(world: &World) -> Check {
    use super::check::{Class, Status};
    let found = match &world.residue {
        Ok(found) if found.is_empty() => {
            return Check::firecracker(Status::Ok, "orphans", "orphans=0 mutation=false");
        }
        Ok(found) => found,
        // A user who may not see root's objects cannot have made any.
        Err(trouble) => {
            return Check::firecracker(
                Status::Skip,
                "orphans",
                format!("mutation=false not looked for: {trouble}"),
            );
        }
    };
    let message = format!("orphans={} mutation=false: {}", found.len(), found.join("; "));
    Check::firecracker(Status::Warning, "orphans", message)
        .trouble(Class::Residue, "crabbox cleanup --provider firecracker")
}
