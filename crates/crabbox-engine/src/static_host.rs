//! The provider `ssh`: a host that exists already, told by `static.*` and `ssh.*` (behaviour reference 8.9).
//!
//! Nothing is made and nothing destroyed: a lease is a claim, and giving it back removes that claim. It must never go to a host
//! that only a repository chose, nor change a claim that is for another host.

mod error;
mod host;
mod probe;
mod reach;

use std::path::Path;
use std::time::Duration;

use crabbox_core::claim::Claim;
use crabbox_core::config::{Provider as Which, Settings};
use crabbox_core::id::{Slug, normalise};
use crabbox_core::labels::{self, Labels};
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::signals::Interrupts;
use crabbox_store::claims;

pub use error::StaticError;
use host::Host;
pub use probe::{ProbeError, probe};

use crate::connection;
use crate::context::Engine;
use crate::event::{Stage, Whose};
use crate::firecracker::AcquiredLease;
use crate::lease::Lease;
use crate::prepare::NewLease;
use crate::provider::{LeaseError, Leases, Notice, Provider};
use crate::release::{Decision, Released};
use crate::resolve::Purpose;
use crate::touch;

/// The provider's name, as claims have it.
const NAME: &str = Which::Ssh.name();

/// The provider `ssh`.
#[derive(Debug)]
pub struct StaticHost {
    engine: Engine,
    settings: Settings,
}

impl StaticHost {
    /// The provider with these settings.
    pub fn new(engine: Engine, settings: Settings) -> Self {
        Self { engine, settings }
    }

    /// The claims of this provider.
    fn claims(&self) -> Result<Vec<Claim>, StaticError> {
        let mut claims = claims::list(&self.engine.places)?.claims;
        claims.retain(|claim| claim.provider == NAME);
        Ok(claims)
    }

    /// The host of the settings, with what its claim knows of it.
    fn configured(&self, claims: &[Claim]) -> Result<Host, StaticError> {
        let host = Host::new(&self.settings, &self.engine.places, None)?;
        let of_it = claims
            .iter()
            .find(|claim| claim.static_host == host.address && claim.lease_id == host.id);
        match of_it {
            None => Ok(host),
            claim => Host::new(&self.settings, &self.engine.places, claim),
        }
    }

    /// The host that `text` names: by a claim's id, slug or host, else as the settings have it.
    fn find(&self, text: &str) -> Result<Host, StaticError> {
        let claims = self.claims()?;
        if let Some(claim) = claimed(&claims, text)? {
            return Host::new(&self.settings, &self.engine.places, Some(claim));
        }
        let host = self.configured(&claims)?;
        if host.is_called(text) {
            Ok(host)
        } else {
            Err(StaticError::NotFound {
                text: text.to_owned(),
            })
        }
    }

    fn lease(&self, host: &Host) -> Result<Lease, StaticError> {
        host.lease(&self.settings, &self.engine.control_dir)
    }
}

/// The claim that `text` names.
fn claimed<'a>(claims: &'a [Claim], text: &str) -> Result<Option<&'a Claim>, StaticError> {
    if let Some(exact) = claims.iter().find(|claim| claim.lease_id == text) {
        return Ok(Some(exact));
    }
    let slug = normalise(text);
    let of_slug: Vec<&Claim> = claims
        .iter()
        .filter(|claim| !slug.is_empty() && claim.slug == slug)
        .collect();
    match of_slug.as_slice() {
        [] => Ok(claims.iter().find(|claim| claim.static_host == text)),
        [one] => Ok(Some(one)),
        several => Err(StaticError::Ambiguous {
            slug,
            matches: several
                .iter()
                .map(|claim| format!("lease={} host={}", claim.lease_id, claim.static_host))
                .collect(),
        }),
    }
}

impl Provider for StaticHost {
    fn name(&self) -> &'static str {
        NAME
    }

    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let mut host = Host::new(&self.settings, &self.engine.places, None)?;
        if let Some(slug) = &new.slug {
            let slug = Slug::requested(slug).map_err(StaticError::Slug)?;
            slug.as_str().clone_into(&mut host.slug);
        }
        host.keep = new.keep;
        on_notice(&Notice::Using {
            lease: &host.id,
            slug: &host.slug,
            host: &host.address,
            keep: new.keep,
        });
        let started = std::time::Instant::now();
        reach::reach(&mut host, &self.engine.control_dir, interrupts, on_notice)?;
        let lease = self.lease(&host)?;
        self.claim(&lease, repo, new.reclaim)?;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(AcquiredLease {
            lease,
            stages: vec![Stage {
                name: "ssh".to_owned(),
                micros,
                whose: Whose::Ssh,
            }],
            guest_stages: Vec::new(),
        })
    }

    fn resolve(&self, text: &str, _purpose: Purpose) -> Result<Lease, LeaseError> {
        let mut host = self.find(text)?;
        reach::choose_port(&mut host);
        Ok(self.lease(&host)?)
    }

    fn is_down(&self, _: &Lease) -> Option<bool> {
        None
    }

    fn list(&self) -> Result<Leases, LeaseError> {
        let claims = self.claims()?;
        let hosts = match self.configured(&claims) {
            // Nothing configured: what is claimed is known all the same.
            Err(StaticError::NoHost) if claims.iter().any(|claim| !claim.static_host.is_empty()) => claims
                .iter()
                .filter(|claim| !claim.static_host.is_empty())
                .map(|claim| Host::new(&self.settings, &self.engine.places, Some(claim)))
                .collect::<Result<Vec<_>, _>>()?,
            configured => vec![configured?],
        };
        let leases = hosts.iter().map(|host| self.lease(host));
        Ok(Leases {
            leases: leases.collect::<Result<_, _>>()?,
            unreadable: Vec::new(),
        })
    }

    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError> {
        let of_another = |standing: &Claim| {
            let same_host = standing.static_host.is_empty() || standing.static_host == lease.address;
            standing.provider != NAME || !same_host
        };
        let (user, port) = lease.target.as_ref().map_or_else(Default::default, |target| {
            (target.user.clone(), target.port.to_string())
        });
        touch::claim_as(&self.engine.places, lease, repo, reclaim, |standing, claim| {
            if standing.is_some_and(of_another) {
                return Err(StaticError::OtherHost {
                    id: lease.id.clone(),
                    host: lease.address.clone(),
                }
                .into());
            }
            claim.static_host.clone_from(&lease.address);
            claim.static_user = user;
            claim.static_port = port;
            claim.static_work_root.clone_from(&lease.work_root);
            Ok::<_, LeaseError>(())
        })?;
        Ok(())
    }

    fn touch(
        &self,
        lease: &Lease,
        state: Option<&str>,
        idle: Option<Duration>,
    ) -> Result<Labels, LeaseError> {
        let now = clock::unix_seconds();
        let claim = claims::update::<StaticError>(&self.engine.places, &lease.id, |standing| {
            let ours = standing.filter(|claim| {
                claim.provider == NAME && claim.cloud_id == lease.id && claim.static_host == lease.address
            });
            let mut claim = ours.cloned().ok_or_else(|| StaticError::NotClaimed {
                id: lease.id.clone(),
                host: lease.address.clone(),
            })?;
            labels::touch(&mut claim.labels, state, idle, now);
            claim.last_used_at = timestamp::rfc3339(now);
            claim.idle_timeout_seconds = labels::idle_seconds(&claim.labels);
            Ok(Some(claim))
        })?;
        Ok(claim.unwrap_or_default().labels)
    }

    fn release(&self, text: &str) -> Result<Released, LeaseError> {
        let claims = self.claims()?;
        let Some(claim) = claimed(&claims, text)?.cloned() else {
            let host = self.find(text)?;
            return Ok(Released {
                id: host.id,
                name: host.name,
                host: Some(host.address),
            });
        };
        claims::remove(&self.engine.places, &claim.lease_id, Some(&claim)).map_err(StaticError::from)?;
        let released = Released {
            id: claim.lease_id.clone(),
            name: claim.lease_id.clone(),
            host: Some(claim.static_host.clone()),
        };
        // A claim that says too little to find the connection again has none.
        if let Ok(host) = Host::new(&self.settings, &self.engine.places, Some(&claim)) {
            let control = host.control(&self.engine.control_dir)?;
            connection::close(&control).map_err(|source| StaticError::Close {
                host: host.address,
                source,
            })?;
        }
        Ok(released)
    }

    fn cleanup(
        &self,
        _dry_run: bool,
        _on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError> {
        Err(StaticError::Cleanup.into())
    }
}
