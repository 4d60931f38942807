//! `--prepare-check`: looks up everything that a lease is made of in the same way as a lease does. Creates
//! nothing.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::fault::Fault as _;
use crabbox_machine::context::Engine;
use crabbox_machine::request::GuestSource;

use super::check::{Check, Class, Status};
use super::world::ObserveError;
use crate::host::prepare::{self, NewLease};

const NAME: &str = "prepare";

/// Whether the request for a lease can be completed on this host.
pub(crate) fn check(engine: &Engine, plan: &FirecrackerPlan) -> Check {
    let new = NewLease {
        slug: None,
        keep: false,
        reclaim: false,
        external: None,
    };
    let request = match prepare::request(engine, plan, &new) {
        Ok(request) => request,
        Err(error) => {
            let fix = error.hints().into_iter().next();
            return Check::firecracker(Status::Failed, NAME, ObserveError::chain(&error).to_string())
                .trouble(
                    Class::EnvironmentBlocked,
                    fix.unwrap_or_else(|| "try again".to_owned()),
                );
        }
    };
    let guest = match request.guest {
        GuestSource::Ours { .. } => "ours",
        GuestSource::Foreign { .. } => "foreign",
    };
    let network = request.network.mode.name();
    let jail = if request.programs.jailer.is_some() {
        "jailer"
    } else {
        "none"
    };
    Check::firecracker(
        Status::Ok,
        NAME,
        format!("guest={guest} network={network} jail={jail} mutation=false"),
    )
}
