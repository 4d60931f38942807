//! The provider `ssh`: an existing host, named by `static.*` and `ssh.*` as in the Go program's provider of
//! that name.
//!
//! Nothing is made and nothing destroyed: a lease is a claim, and releasing it removes that claim. It must
//! never connect to a host that a repository alone chose, nor change a claim for another host.

pub(crate) mod checks;
pub mod error;
mod host;
mod probe;
mod reach;
mod users;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crabbox_core::claim::Claim;
use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Provider as Which, Settings};
use crabbox_core::id::{Slug, normalise};
use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::private_dir::PrivateDir;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::{NameError, Purpose};
use crabbox_machine::lifecycle::release::{Decision, Released};
use crabbox_machine::protocol::{Stage, StageSide};
use crabbox_machine::resource::connection;
use crabbox_store::claims;

use error::StaticError;
use host::Host;
pub use probe::{ProbeError, probe};
use users::Use;

use crate::host::doctor::check::{Check, Options};
use crate::host::prepare::NewLease;
use crate::provider::capability::{Capabilities, Capability};
use crate::provider::claim;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;
use crate::provider::terms::Terms;
use crate::provider::{AcquiredLease, Ending, Leases, Notice, Provider, Unusable};

/// The provider's name, as claims have it.
const NAME: &str = Which::Ssh.name();

/// What this provider can do.
pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    category: "byo-ssh",
    id_prefix: Some("static_"),
    can: &[Capability::SshProbe],
};

/// The properties that a new lease would have: `static.*` takes precedence over the general keys.
pub(crate) fn terms(settings: &Settings) -> Terms {
    let host = &settings.static_host;
    let ports = host::configured_ports(settings);
    Terms {
        user: either(&host.user.value, &host.ssh_user.value),
        port: ports.first,
        fallback_ports: ports.fallback,
        work_root: either(&host.work_root.value, &host.general_work_root.value),
        ..Terms::general(settings)
    }
}

/// The first text, or the second if the first is empty.
fn either(first: &str, second: &str) -> String {
    if first.is_empty() { second } else { first }.to_owned()
}

/// The provider `ssh`.
#[derive(Debug)]
pub struct StaticHost {
    engine: Engine,
    settings: Settings,
    /// Keeps others from ending the lease that this command uses.
    using: Mutex<Option<Use>>,
}

impl StaticHost {
    /// The provider with these settings.
    pub fn new(engine: Engine, settings: Settings) -> Self {
        Self {
            engine,
            settings,
            using: Mutex::new(None),
        }
    }

    /// The claims of this provider.
    fn claims(&self) -> Result<Vec<Claim>, StaticError> {
        let mut claims = claims::list(&self.engine.places)?.claims;
        claims.retain(|claim| claim.provider == NAME);
        Ok(claims)
    }

    /// The configured host, with what its claim remembers.
    fn configured(&self, claims: &[Claim]) -> Result<Host, StaticError> {
        let host = Host::new(&self.settings, &self.engine.places, None)?;
        match claim_of(&host, claims) {
            None => Ok(host),
            claim => Host::new(&self.settings, &self.engine.places, claim),
        }
    }

    /// The host that `text` names: by a claim's id, slug or host, otherwise the configured one.
    fn find(&self, text: &str) -> Result<Host, StaticError> {
        let claims = self.claims()?;
        if let Some(claim) = claimed(&claims, text)? {
            return Host::new(&self.settings, &self.engine.places, Some(claim));
        }
        let host = self.configured(&claims)?;
        if host.is_called(text) {
            Ok(host)
        } else {
            Err(NameError::NotFound {
                text: text.to_owned(),
            }
            .into())
        }
    }

    /// Replaces the lease that this command uses, and returns the previous one.
    fn uses(&self, using: Option<Use>) -> Option<Use> {
        let mut slot = self.using.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, using)
    }

    /// Removes the claim, and closes its connection.
    fn end(&self, claim: &Claim) -> Result<(), LeaseError> {
        claims::remove(&self.engine.places, &claim.lease_id, Some(claim)).map_err(StaticError::from)?;
        // A claim that lacks the data to find its connection has none.
        if let Ok(host) = Host::new(&self.settings, &self.engine.places, Some(claim)) {
            let control = host.control(&self.engine.control_dir().map_err(StaticError::from)?)?;
            connection::close(&control).map_err(|source| StaticError::Close {
                host: host.address,
                source,
            })?;
        }
        Ok(())
    }

    /// Closes the connection to a host that is nobody's lease and cannot be one. Over the same connection, its
    /// sshd would go on as before after its login shell or `authorized_keys` were mended. An error would hide
    /// the one that led here. A command that takes the same host under another id at this very moment, with no
    /// claim yet, would have to connect again.
    fn leave(&self, host: &Host, control_dir: &PrivateDir) {
        drop(self.uses(None));
        let Ok(Some(last)) = users::last(control_dir, &host.id) else {
            return;
        };
        // Another command may have taken it while this one waited.
        let is_free = self
            .claims()
            .is_ok_and(|claims| claims.iter().all(|claim| claim.static_host != host.address));
        if let (true, Ok(control)) = (is_free, host.control(control_dir)) {
            connection::close(&control).ok();
        }
        last.remove_while_held().ok();
    }

    fn lease(&self, host: &Host) -> Result<Lease, StaticError> {
        host.lease(&self.settings, &self.engine.control_dir()?)
    }

    /// The configured host, which is listed even if it is unclaimed, as in the Go program.
    fn unclaimed(&self, host: &Host, control_dir: &PrivateDir) -> Result<Leases, StaticError> {
        let mut lease = host.lease(&self.settings, control_dir)?;
        lease.state = LeaseState::Active;
        Ok(Leases {
            leases: vec![lease],
            ..Leases::default()
        })
    }
}

/// The claim of the configured host.
fn claim_of<'a>(host: &Host, claims: &'a [Claim]) -> Option<&'a Claim> {
    let mut claims = claims.iter();
    claims.find(|claim| claim.static_host == host.address && claim.lease_id == host.id)
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
        several => Err(NameError::Ambiguous {
            slug,
            matches: several
                .iter()
                .map(|claim| format!("lease={} host={}", claim.lease_id, claim.static_host))
                .collect(),
        }
        .into()),
    }
}

impl Provider for StaticHost {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn checks(&self, options: &Options) -> Vec<Check> {
        checks::checks(&self.engine, &self.settings, options)
    }

    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let mut host = Host::new(&self.settings, &self.engine.places, None)?;
        let slug = new.slug.as_deref().map(Slug::requested);
        let slug = slug.transpose().map_err(StaticError::Slug)?;
        let control_dir = self.engine.control_dir().map_err(StaticError::from)?;
        // From here on, a command that releases the lease does not end it while we use it.
        let mut using = Use::begin(&control_dir, &host.id, new.keep)?;
        let claims = self.claims()?;
        let standing = claims
            .iter()
            .find(|claim| claim.lease_id == host.id && claim.static_host == host.address);
        using.kept_before = standing.is_some_and(users::is_kept);
        if using.kept_before && !new.keep {
            // Somebody keeps it under their own name for it, and will look for it when we are done.
            host = Host::new(&self.settings, &self.engine.places, standing)?;
        } else {
            if let Some(slug) = &slug {
                slug.as_str().clone_into(&mut host.slug);
            }
            host.keep = new.keep;
        }
        self.uses(Some(using));
        on_notice(&Notice::Using {
            lease: &host.id,
            slug: &host.slug,
            host: &host.address,
            keep: new.keep,
        });
        let started = std::time::Instant::now();
        if let Err(error) = reach::reach(&mut host, &control_dir, interrupts, on_notice) {
            self.leave(&host, &control_dir);
            return Err(error.into());
        }
        let mut lease = self.lease(&host)?;
        if !host.is_claimed() {
            lease.state = LeaseState::Ready;
            labels::set_state(&mut lease.labels, &LeaseState::Ready);
        }
        // Whoever asks for the host gets it, also when its previous lease was released just now.
        lease.is_claimed = false;
        self.claim(&lease, repo, new.reclaim)?;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(AcquiredLease {
            lease,
            stages: vec![Stage {
                name: "ssh".to_owned(),
                micros,
                whose: StageSide::Ssh,
            }],
            guest_stages: Vec::new(),
            start: None,
        })
    }

    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError> {
        let mut host = self.find(text)?;
        if purpose == Purpose::Use {
            let control_dir = self.engine.control_dir().map_err(StaticError::from)?;
            self.uses(Some(Use::begin(&control_dir, &host.id, true)?));
        }
        reach::choose_port(&mut host);
        Ok(self.lease(&host)?)
    }

    fn is_down(&self, _: &Lease) -> Option<bool> {
        None
    }

    fn is_far(&self, _: &Lease) -> bool {
        true
    }

    fn list(&self) -> Result<Leases, LeaseError> {
        let claims = self.claims()?;
        let control_dir = self.engine.control_dir().map_err(StaticError::from)?;
        let of_hosts: Vec<&Claim> = match Host::new(&self.settings, &self.engine.places, None) {
            // Without a configured host, list the claimed ones.
            Err(StaticError::NoHost { .. }) if claims.iter().any(|claim| !claim.static_host.is_empty()) => {
                claims
                    .iter()
                    .filter(|claim| !claim.static_host.is_empty())
                    .collect()
            }
            configured => {
                let host = configured?;
                match claim_of(&host, &claims) {
                    Some(claim) => vec![claim],
                    None => return Ok(self.unclaimed(&host, &control_dir)?),
                }
            }
        };
        let mut listing = Leases::default();
        for claim in of_hosts {
            let host = Host::new(&self.settings, &self.engine.places, Some(claim));
            match host.and_then(|host| host.lease(&self.settings, &control_dir)) {
                Ok(mut lease) => {
                    if !lease.is_claimed {
                        lease.state = LeaseState::Active;
                    }
                    listing.leases.push(lease);
                }
                // The settings are at fault, not the claim.
                Err(error @ StaticError::Key { .. }) => return Err(error.into()),
                Err(error) => listing.unusable.push(Unusable {
                    name: claim.lease_id.clone(),
                    error: error.into(),
                }),
            }
        }
        Ok(listing)
    }

    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError> {
        let of_another = |standing: &Claim| {
            let same_host = standing.static_host.is_empty() || standing.static_host == lease.address;
            standing.provider != NAME || !same_host
        };
        let (user, port) = lease.target.as_ref().map_or_else(Default::default, |target| {
            (target.user.clone(), target.port.to_string())
        });
        claim::claim_as(&self.engine.places, lease, repo, reclaim, |standing, claim| {
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
        state: Option<&LeaseState>,
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
                kvm_host: None,
                kept: None,
            });
        };
        self.end(&claim)?;
        drop(self.uses(None));
        let control_dir = self.engine.control_dir().map_err(StaticError::from)?;
        if let Some(last) = users::last(&control_dir, &claim.lease_id)? {
            last.remove_while_held().map_err(StaticError::Users)?;
        }
        Ok(Released {
            id: claim.lease_id.clone(),
            name: claim.lease_id.clone(),
            host: Some(claim.static_host.clone()),
            kvm_host: None,
            kept: None,
        })
    }

    fn give_back_as(&self, lease: &Lease, ending: Ending) -> Result<bool, LeaseError> {
        let Some(using) = self.uses(None) else {
            return self.release(&lease.id).map(|_| true);
        };
        let (keep, kept_before) = (using.keep, using.kept_before);
        drop(using);
        let control_dir = self.engine.control_dir().map_err(StaticError::from)?;
        // If others still use it, the last of them ends it.
        let Some(last) = users::last(&control_dir, &lease.id)? else {
            return Ok(false);
        };
        let claims = self.claims()?;
        let ours = claims.iter().find(|claim| claim.lease_id == lease.id);
        let ends =
            ours.filter(|claim| ending == Ending::Asked || !kept_before && (keep || !users::is_kept(claim)));
        if let Some(claim) = ends {
            self.end(claim)?;
        }
        last.remove_while_held().map_err(StaticError::Users)?;
        Ok(ends.is_some() || ours.is_none())
    }

    fn is_given_back(&self, lease: &Lease) -> bool {
        // If the claims cannot be read, the lease may still exist.
        self.claims().is_ok_and(|claims| {
            !claims
                .iter()
                .any(|claim| claim.lease_id == lease.id && claim.static_host == lease.address)
        })
    }

    fn after_release(&self, lease: &Lease) -> Option<Vec<FlagValue>> {
        if self.settings.static_host.host.value.trim() == lease.address {
            return Some(Vec::new());
        }
        // Only the claim knew these.
        let target = lease.target.as_ref()?;
        let facts = [
            (Name::StaticHost, lease.address.clone()),
            (Name::StaticUser, target.user.clone()),
            (Name::StaticPort, target.port.to_string()),
            (Name::StaticWorkRoot, lease.work_root.clone()),
        ];
        let flag = |(key, value)| FlagValue {
            key,
            values: vec![value],
        };
        Some(facts.map(flag).to_vec())
    }

    fn cleanup(
        &self,
        _dry_run: bool,
        _on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError> {
        Err(StaticError::Cleanup.into())
    }
}
