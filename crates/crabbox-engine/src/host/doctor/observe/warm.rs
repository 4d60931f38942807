//! The templates available to leases with these settings, found without reading their contents or creating a
//! secret.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_host::{clock, hard_links};
use crabbox_machine::context::Engine;
use crabbox_machine::request::GuestSource;
use crabbox_machine::resource::network;
use crabbox_store::templates::{TemplateState, Templates, Unusable};

use super::super::world::{Frozen, ObserveError, Observed, Vmm, Warm};
use super::existing;
use crate::host::prepare;
use crate::host::warm::facts;

/// Looks for a template that fits what leases of `plan` would boot.
pub(super) fn warm(engine: &Engine, plan: &FirecrackerPlan, vmm: &Vmm) -> Warm {
    let templates = Templates::of(&engine.places);
    let network = prepare::network_request(plan);
    Warm {
        links: (!templates.is_there()).then(|| {
            let dir = existing(&engine.places.state);
            hard_links::work_in(&dir).map_err(|error| ObserveError::call("create a file in", &dir, &error))
        }),
        gives_tap: network.is_ok_and(|network| network::gives_tap(&network)),
        template: template(engine, plan, vmm, &templates),
    }
}

fn template(engine: &Engine, plan: &FirecrackerPlan, vmm: &Vmm, templates: &Templates) -> Observed<Frozen> {
    let guest = prepare::guest(engine, plan).map_err(|error| ObserveError::chain(&error))?;
    let GuestSource::Ours { digest, .. } = guest else {
        return Ok(Frozen::Foreign);
    };
    let program = vmm.firecracker.as_ref().map_err(Clone::clone)?.digest.clone()?;
    let facts = facts::of(&digest, prepare::machine(plan), &program);
    let key = templates.known_key(&facts.text);
    let Some(key) = key.map_err(|error| ObserveError::chain(&error))? else {
        return Ok(Frozen::Absent);
    };
    Ok(match templates.look(&key) {
        TemplateState::Absent => Frozen::Absent,
        TemplateState::Unusable(Unusable::SetAside { failures }) => Frozen::SetAside { failures },
        TemplateState::Unusable(why) => Frozen::Unusable {
            why: ObserveError::chain(&why).words,
        },
        TemplateState::Ready(template) => {
            let (now, _) = clock::unix_now();
            Frozen::Ready {
                key,
                dir: template.dir,
                made_at: template.about.made_at,
                age: u64::try_from(now - template.about.made_at).unwrap_or(0),
                bytes: template.allocated,
            }
        }
    })
}
