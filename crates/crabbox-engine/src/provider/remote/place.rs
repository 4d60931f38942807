//! Which machine a lease is on: the one that its claim names, or else the one of the settings.
//!
//! It must never choose between several leases of one name.

use crabbox_core::claim::Claim;
use crabbox_core::config::Settings;
use crabbox_core::id::normalise;
use crabbox_machine::lease::find::NameError;
use crabbox_store::claims;
use crabbox_store::places::Places;

use super::error::RemoteError;
use crate::fleet::address::KvmHost;
use crate::provider::error::LeaseError;
use crate::provider::firecracker;

/// The location of a lease.
pub(super) enum Place {
    /// This machine.
    Here,
    /// Another machine, with the claim that names it; without one, the settings do.
    There(KvmHost, Option<Box<Claim>>),
}

impl Place {
    /// Locates the lease that `text` names: by its claim, otherwise by the settings. A slug that is claimed
    /// on several machines is refused, since the wrong lease could be stopped.
    pub(super) fn of(text: &str, places: &Places, settings: &Settings) -> Result<Self, LeaseError> {
        let slug = normalise(text);
        let claims = claims::list(places).map_err(RemoteError::from)?.claims;
        let found = named(claims, text, &slug);
        let hosts: Vec<Option<KvmHost>> = found
            .iter()
            .map(|claim| KvmHost::of_scope(&claim.provider_scope))
            .collect();
        match (found.as_slice(), hosts.as_slice()) {
            ([claim], [Some(host)]) => Ok(Self::There(host.clone(), Some(Box::new(claim.clone())))),
            ([], _) => Ok(match KvmHost::configured(settings)? {
                Some(host) => Self::There(host, None),
                None => Self::Here,
            }),
            // If all claims are of this machine, the local records decide.
            (_, hosts) if hosts.iter().all(Option::is_none) => Ok(Self::Here),
            (several, hosts) => {
                let line = |(claim, host): (&Claim, &Option<KvmHost>)| match host {
                    Some(host) => format!("lease={} host={host}", claim.lease_id),
                    None => format!("lease={}", claim.lease_id),
                };
                let matches = several.iter().zip(hosts).map(line).collect();
                Err(RemoteError::from(NameError::Ambiguous { slug, matches }).into())
            }
        }
    }
}

/// The claims with the id `text`; if there are none, those with the slug.
fn named(mut claims: Vec<Claim>, text: &str, slug: &str) -> Vec<Claim> {
    claims.retain(|claim| claim.provider == firecracker::NAME);
    let by_id: Vec<Claim> = claims
        .iter()
        .filter(|claim| claim.lease_id == text)
        .cloned()
        .collect();
    if !by_id.is_empty() || slug.is_empty() {
        return by_id;
    }
    claims.retain(|claim| claim.slug == slug);
    claims
}

/// The host of a claim, if its lease is on another machine.
pub(super) fn of_host(claim: Claim) -> Option<(KvmHost, Claim)> {
    let host = KvmHost::of_scope(&claim.provider_scope).filter(|_| claim.provider == firecracker::NAME)?;
    Some((host, claim))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crabbox_store::claims::ClaimError;

    use super::*;

    #[test]
    fn a_slug_that_is_claimed_on_two_machines_is_nobody_s_and_an_id_leads_to_its_own() {
        let root = tempfile::tempdir().unwrap();
        let engine = crate::fixture::engine(root.path());
        let host = KvmHost::parse("a@kvm1").unwrap();
        let claimed = |id: &str, slug: &str, scope: String| {
            claims::update::<ClaimError>(&engine.places, id, |_| {
                Ok(Some(Claim {
                    slug: slug.to_owned(),
                    provider: firecracker::NAME.to_owned(),
                    provider_scope: scope,
                    ..Claim::default()
                }))
            })
            .unwrap();
        };
        claimed("cbx_000000000001", "far", host.scope());
        claimed("cbx_000000000002", "both", host.scope());
        claimed("cbx_000000000003", "both", String::new());
        claimed("cbx_000000000004", "here", String::new());
        let resolved = crabbox_core::config::resolve(&crabbox_core::config::Inputs {
            files: &[],
            environment: &|name| (name == "CRABBOX_FIRECRACKER_HOST").then(|| "a@kvm9".to_owned()),
            flags: &[],
            home: Some(Path::new("/h")),
            cwd: Path::new("/"),
            user_file: None,
        });
        let settings = resolved.unwrap().settings;
        let place = |text: &str| match Place::of(text, &engine.places, &settings) {
            Ok(Place::Here) => "here".to_owned(),
            Ok(Place::There(host, claim)) => format!("{host} {}", claim.is_some()),
            Err(error) => error.to_string(),
        };
        assert_eq!(place("far"), "a@kvm1 true");
        assert_eq!(place("cbx_000000000002"), "a@kvm1 true");
        assert_eq!(place("cbx_000000000003"), "here");
        assert_eq!(place("here"), "here");
        assert_eq!(place("unknown"), "a@kvm9 false");
        assert!(
            place("both").contains("multiple active leases"),
            "{}",
            place("both")
        );
    }
}
