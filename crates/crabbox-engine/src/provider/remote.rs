//! The `firecracker` provider for leases on other machines: each host is asked over SSH. Private matters stay
//! on this machine: the guest's private key, its pinned host key, the claim.
//!
//! A known lease is looked for on the host that its claim names, a new one is made on the configured host;
//! without either, this machine is used. It must never conclude from a host's silence that the host has no
//! lease.

mod acquire;
pub mod error;
mod kept;
mod place;
mod trust;
mod way;

pub use way::control;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::claim::Claim;
use crabbox_core::config::Settings;
use crabbox_core::config::layer::Origin;
use crabbox_core::fault::{self, Fault as _, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::console::OpenLog;
use crabbox_host::files;
use crabbox_host::signals::{self, Cancellation, Interrupts};
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::Purpose;
use crabbox_machine::lease::logs::Source;
use crabbox_machine::lifecycle::release::{Decision, ReleaseError, Released, Subject};
use crabbox_machine::resource::connection;
use crabbox_store::claims;

use crate::fleet::address::{Access, KvmHost};
use crate::fleet::client::{Conversation, FleetError};
use crate::fleet::wire::{self, FarLease, FleetRequest, GATEWAY, LogSource, Reply, ResolvePurpose};
use crate::host::doctor::check::{Check, Class, Options, Status};
use crate::host::doctor::generic;
use crate::host::prepare::NewLease;
use crate::provider::capability::Capabilities;
use crate::provider::claim;
use crate::provider::error::LeaseError;
use crate::provider::firecracker::{self, Firecracker};
use crate::provider::lease::Lease;
use crate::provider::remote::error::RemoteError;
use crate::provider::remote::kept::Kept;
use crate::provider::remote::place::{Place, of_host};
use crate::provider::remote::trust::{is_answer, is_its_owner, is_to_forget, nonsense};
use crate::provider::remote::way::{target, told_by};
use crate::provider::{AcquiredLease, Leases, Notice, Provider, UnreachableHost};

/// A host's list of leases, each with the host that it is on.
type HostLeases = Result<Vec<(KvmHost, FarLease)>, FleetError>;

/// Leases of this machine and of others.
#[derive(Debug)]
pub struct Remote {
    engine: Engine,
    settings: Settings,
    local: Firecracker,
    talks: Kept<Conversation>,
}

impl Remote {
    /// The provider with these settings.
    pub fn new(engine: Engine, settings: Settings) -> Self {
        Self {
            local: Firecracker::new(engine.clone(), settings.clone()),
            engine,
            settings,
            talks: Kept::default(),
        }
    }

    /// The claims of leases on other machines.
    fn claims(&self) -> Result<Vec<(KvmHost, Claim)>, RemoteError> {
        let listed = claims::list(&self.engine.places)?.claims;
        Ok(listed.into_iter().filter_map(of_host).collect())
    }

    fn place(&self, text: &str) -> Result<Place, LeaseError> {
        Place::of(text, &self.engine.places, &self.settings)
    }

    fn open(&self, host: &KvmHost, heed: Cancellation) -> Result<Conversation, FleetError> {
        let access = Access::of(&self.settings)?;
        let dir = self.engine.control_dir()?;
        Conversation::open(host, &access, &dir, heed)
    }

    /// Asks `host` over a kept conversation, or over a new one.
    fn ask<T>(
        &self,
        host: &KvmHost,
        ask: &FleetRequest,
        take: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, LeaseError> {
        let asked = || {
            let mut talk = match self.talks.take(host, Instant::now()) {
                Some(talk) => talk.heeding(ask.heed()),
                None => self.open(host, ask.heed())?,
            };
            let answer = talk.ask(ask, take);
            // A conversation that broke off must not be reused.
            if matches!(answer, Ok(_) | Err(FleetError::Refused(..))) {
                self.talks.keep(host, talk, Instant::now());
            }
            answer
        };
        Ok(signals::watching(asked, tells_of_it)?)
    }

    /// Whether `host`, in our recent conversation, took us for the owner of the lease of `claim`. To anyone
    /// else it reports the lease as missing.
    fn speaks_to_its_owner(&self, host: &KvmHost, claim: &Claim) -> Result<(), RemoteError> {
        let now = self.talks.look(host, |talk| talk.greeting.owner.clone());
        is_its_owner(host, claim, now)
    }

    /// The lease as commands see it.
    fn lease(&self, host: &KvmHost, far: FarLease) -> Result<Lease, LeaseError> {
        let access = Access::of(&self.settings)?;
        let id = far.id.to_string();
        let has_key = self.engine.places.keys(&id).join("id_ed25519").is_file();
        let target = (far.has_address && has_key)
            .then(|| target(&self.engine, host, &access, &far))
            .transpose()?;
        Ok(Lease {
            slug: far.slug,
            name: far.name.clone(),
            cloud_id: far.name,
            provider: firecracker::NAME,
            server_type: far.server_type,
            state: LeaseState::from(far.state.as_str()),
            labels: far.labels,
            kvm_host: Some(host.clone()),
            fallback_ports: Vec::new(),
            is_claimed: false,
            address: if far.has_address {
                id.clone()
            } else {
                String::new()
            },
            id,
            target,
            work_root: far.work_root,
            unjailed: far.unjailed,
        })
    }

    fn resolve_there(&self, host: &KvmHost, text: &str, aim: ResolvePurpose) -> Result<Lease, LeaseError> {
        let ask = FleetRequest::Resolve {
            lease: text.to_owned(),
            aim,
        };
        let far = self.ask(host, &ask, lease_of)?;
        if !is_answer(text, far.id.as_str()) {
            return Err(nonsense(host).into());
        }
        self.lease(host, far)
    }

    /// Lists the leases of all hosts in parallel, so that several unreachable hosts cost only one wait.
    fn list_at(&self, hosts: BTreeSet<KvmHost>) -> Vec<(KvmHost, HostLeases)> {
        // Use one `heed` for all, so that a signal that arrives in between cancels every one.
        let heed = FleetRequest::List.heed();
        std::thread::scope(|scope| {
            let asked: Vec<_> = hosts
                .into_iter()
                .map(|host| {
                    let asking = scope.spawn({
                        let host = host.clone();
                        move || self.list_there(&host, heed)
                    });
                    (host, asking)
                })
                .collect();
            asked
                .into_iter()
                .filter_map(|(host, asking)| Some((host, asking.join().ok()?)))
                .collect()
        })
    }

    /// How the job of the lease of `claim` ended, if its host behind a gateway did not answer (error `why`)
    /// and the scheduler has given up the job. Otherwise the lease may be alive, and the original error
    /// stands.
    fn lost(&self, host: &KvmHost, claim: Option<&Claim>, why: &LeaseError) -> Option<String> {
        let claim = claim.filter(|_| host.node().is_some() && why.kind() == Kind::Unavailable)?;
        let job = labels::job(&claim.labels)?.parse().ok()?;
        let lease = LeaseId::parse(&claim.lease_id).ok()?;
        let fate = self.ask(
            &host.gateway(),
            &FleetRequest::Fate { lease, job },
            |reply| match reply {
                Reply::Fate { how } => Some(how),
                _ => None,
            },
        );
        lost_how(fate.ok()?)
    }

    /// All leases on `host`, or on the hosts behind it if it is a gateway, over a conversation of its own.
    fn list_there(&self, host: &KvmHost, heed: Cancellation) -> Result<Vec<(KvmHost, FarLease)>, FleetError> {
        let mut talk = self.open(host, heed)?;
        let is_gateway = talk.greeting.role == GATEWAY;
        let leases = talk.list()?.into_iter();
        leases
            .map(|lease| match acquire::made_on(host, is_gateway, &lease) {
                Some(at) => Ok((at, lease)),
                None => Err(talk.nonsense()),
            })
            .collect()
    }

    /// Removes everything on this machine that belongs to a remote lease.
    fn forget(&self, lease: Option<&Lease>, id: &str) -> Result<(), RemoteError> {
        let control = lease.and_then(|lease| lease.target.as_ref()?.control.clone());
        if let Some(control) = control {
            connection::close(&control).map_err(|source| RemoteError::Close {
                id: id.to_owned(),
                source,
            })?;
        }
        claims::remove(&self.engine.places, id, None)?;
        files::remove_tree(&self.engine.places.keys(id))?;
        Ok(())
    }

    /// A claim's lease as far as this machine knows it, in order to close its connection.
    fn resolve_target(&self, id: &str) -> Option<Lease> {
        let (host, claim) = self
            .claims()
            .ok()?
            .into_iter()
            .find(|(_, claim)| claim.lease_id == id)?;
        self.lease(&host, told_by(&claim)?).ok()
    }

    /// Decides about the claim of a lease on `host`, and does it unless `dry_run`. `away` has the hosts that
    /// did not answer, and why.
    fn decide(
        &self,
        host: &KvmHost,
        claim: &Claim,
        dry_run: bool,
        away: &mut BTreeMap<KvmHost, String>,
    ) -> Decision {
        let mut decision = Decision {
            lease: claim.lease_id.clone(),
            subject: Subject::Claim {
                slug: claim.slug.clone(),
            },
            remove: false,
            reason: String::new(),
            error: None,
        };
        if let Some(why) = away.get(host) {
            decision.reason = format!("host_away ({why})");
            return decision;
        }
        match self.resolve_there(host, &claim.lease_id, ResolvePurpose::Look) {
            Ok(lease) => decision.reason = format!("state={} host={host}", lease.state),
            Err(error)
                if error.kind() == Kind::NotFound && self.speaks_to_its_owner(host, claim).is_err() =>
            {
                decision.reason = format!("another_owner host={host}");
            }
            Err(error) if error.kind() == Kind::NotFound => {
                decision.remove = true;
                decision.reason = format!("missing_state host={host}");
                if !dry_run {
                    let lease = self.resolve_target(&claim.lease_id);
                    let forgotten = self.forget(lease.as_ref(), &claim.lease_id);
                    decision.error = forgotten.err().map(|error| match error {
                        RemoteError::Claims(error) => ReleaseError::Claims(error),
                        RemoteError::Files(error) => ReleaseError::Files(error),
                        other => ReleaseError::Leftovers {
                            id: claim.lease_id.clone(),
                            leftovers: vec![fault::chain(&other)],
                        },
                    });
                }
            }
            Err(error) => {
                let why = fault::chain(&error);
                decision.reason = format!("host_away ({why})");
                // If the conversation is still open, the host is not away; it answered something about
                // this lease.
                if self.talks.look(host, |_| ()).is_none() {
                    away.insert(host.clone(), why);
                }
            }
        }
        decision
    }
}

/// Whether this reports an interrupt to the user.
fn tells_of_it<T>(outcome: &Result<T, FleetError>) -> bool {
    matches!(outcome, Err(FleetError::Interrupted { .. }))
}

/// How the lease of a job on an unreachable host was lost, if it was, according to the scheduler (`squeue`,
/// job state codes). A job that the scheduler does not know any more has ended, and its host removes the
/// lease when it is up again.
fn lost_how(state: Option<String>) -> Option<String> {
    match state {
        None => Some("forgotten".to_owned()),
        Some(state) => ["NODE_FAIL", "BOOT_FAIL"]
            .contains(&state.as_str())
            .then_some(state),
    }
}

fn lease_of(reply: Reply) -> Option<FarLease> {
    match reply {
        Reply::Lease(lease) => Some(lease),
        _ => None,
    }
}

impl Provider for Remote {
    fn name(&self) -> &'static str {
        firecracker::NAME
    }

    fn capabilities(&self) -> Capabilities {
        firecracker::CAPABILITIES
    }

    fn checks(&self, options: &Options) -> Vec<Check> {
        let host = match KvmHost::configured(&self.settings) {
            Ok(None) => return self.local.checks(options),
            Ok(Some(host)) => host,
            Err(error) => return vec![generic::invalid(firecracker::NAME, &error)],
        };
        // Whether that host can make machines is for its own doctor to check.
        match self.open(&host, Cancellation::from_now_on()) {
            Ok(talk) => {
                let greeting = &talk.greeting;
                let message = format!(
                    "host={host} owner={} crabbox={} protocol={}-{}",
                    greeting.owner, greeting.program, greeting.protocol.least, greeting.protocol.most
                );
                let message = crabbox_host::console::harmless(&message);
                vec![Check::firecracker(Status::Ok, "host", message)]
            }
            Err(error) => {
                let message = fault::chain(&error);
                vec![
                    Check::firecracker(Status::Failed, "host", format!("host={host}: {message}"))
                        .with("class", Class::EnvironmentBlocked.name())
                        .with("fix", error.hints().join("; ")),
                ]
            }
        }
    }

    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        match KvmHost::configured(&self.settings)? {
            None => self.local.acquire(new, repo, interrupts, on_notice),
            Some(host) => self.acquire_there(&host, new, repo, interrupts, on_notice),
        }
    }

    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError> {
        let (host, claim) = match self.place(text)? {
            Place::Here => return self.local.resolve(text, purpose),
            Place::There(host, claim) => (host, claim),
        };
        let name = claim.as_ref().map_or(text, |claim| &claim.lease_id);
        let aim = if purpose == Purpose::Use {
            ResolvePurpose::Use
        } else {
            ResolvePurpose::Look
        };
        let mut lease = match self.resolve_there(&host, name, aim) {
            Ok(lease) => lease,
            Err(error) => match self.lost(&host, claim.as_deref(), &error) {
                Some(how) => return Err(RemoteError::lost(name, &host, &how, error).into()),
                None => return Err(error),
            },
        };
        lease.is_claimed = claim.is_some();
        if purpose == Purpose::Use && lease.target.is_none() {
            let id = lease.id;
            return Err(RemoteError::KeyElsewhere { id, host }.into());
        }
        Ok(lease)
    }

    fn is_down(&self, lease: &Lease) -> Option<bool> {
        let Some(host) = &lease.kvm_host else {
            return self.local.is_down(lease);
        };
        match self.resolve_there(host, &lease.id, ResolvePurpose::Look) {
            Ok(lease) => Some(lease.state.is_terminal()),
            Err(error) if error.kind() == Kind::NotFound => Some(true),
            Err(_) => None,
        }
    }

    fn console(&self, lease: &Lease) -> Option<OpenLog> {
        if lease.kvm_host.is_some() {
            return None;
        }
        self.local.console(lease)
    }

    fn far_log(&self, text: &str, source: Source) -> Result<Option<String>, LeaseError> {
        let Place::There(host, claim) = self.place(text)? else {
            return Ok(None);
        };
        let ask = FleetRequest::Logs {
            lease: claim.as_ref().map_or(text, |claim| &claim.lease_id).to_owned(),
            source: match source {
                Source::Console => LogSource::Console,
                Source::Vmm => LogSource::Vmm,
                Source::Supervisor => LogSource::Supervisor,
            },
        };
        let log = self.ask(&host, &ask, |reply| match reply {
            Reply::Log { text } => Some(text),
            _ => None,
        });
        log.map(Some)
    }

    fn list(&self) -> Result<Leases, LeaseError> {
        let configured = KvmHost::configured(&self.settings)?;
        let mut listing = match configured {
            None => self.local.list()?,
            Some(_) => Leases::default(),
        };
        let mut hosts: BTreeSet<KvmHost> = self.claims()?.into_iter().map(|(host, _)| host).collect();
        hosts.extend(configured);
        let ask = || self.list_at(hosts);
        let answers = signals::watching(ask, |answers| {
            answers.iter().any(|(_, leases)| tells_of_it(leases))
        });
        for (host, answer) in answers {
            let leases = match answer {
                Ok(leases) => leases
                    .into_iter()
                    .map(|(at, lease)| self.lease(&at, lease))
                    .collect(),
                // On an interrupt the user does not want any host's answer, whichever host reports it first.
                Err(error @ FleetError::Interrupted { .. }) => return Err(error.into()),
                Err(error) => Err(LeaseError::from(error)),
            };
            match leases {
                Ok::<Vec<_>, _>(leases) => {
                    for lease in leases {
                        // A host behind a gateway that has a claim is asked directly, too, so the lease may
                        // be listed already.
                        let is_same =
                            |other: &Lease| other.id == lease.id && other.kvm_host == lease.kvm_host;
                        if !listing.leases.iter().any(is_same) {
                            listing.leases.push(lease);
                        }
                    }
                }
                Err(error) => listing.away.push(UnreachableHost { host, error }),
            }
        }
        Ok(listing)
    }

    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError> {
        let Some(host) = &lease.kvm_host else {
            return self.local.claim(lease, repo, reclaim);
        };
        claim::claim_as(&self.engine.places, lease, repo, reclaim, |_, claim| {
            claim.provider_scope = host.scope();
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
        let Some(host) = &lease.kvm_host else {
            return self.local.touch(lease, state, idle);
        };
        let ask = FleetRequest::Touch {
            lease: lease.id.clone(),
            state: state.map(ToString::to_string),
            idle_seconds: idle.map(|idle| idle.as_secs()),
        };
        let granted = self.ask(host, &ask, |reply| match reply {
            Reply::Labels { labels } => Some(labels),
            _ => None,
        })?;
        let labels = wire::judged(granted).map_err(|source| FleetError::InvalidValue {
            host: host.clone(),
            source,
        })?;
        claims::update::<RemoteError>(&self.engine.places, &lease.id, |standing| {
            Ok(standing.map(|claim| Claim {
                labels: labels.clone(),
                last_used_at: timestamp::rfc3339(clock::unix_seconds()),
                idle_timeout_seconds: labels::idle_seconds(&labels),
                ..claim.clone()
            }))
        })?;
        Ok(labels)
    }

    fn release(&self, text: &str) -> Result<Released, LeaseError> {
        let (host, claim) = match self.place(text)? {
            Place::Here => return self.local.release(text),
            Place::There(host, claim) => (host, claim),
        };
        let keep = &self.settings.firecracker.delete_on_release;
        let ask = FleetRequest::Release {
            lease: claim.as_ref().map_or(text, |claim| &claim.lease_id).to_owned(),
            discard: keep.value && matches!(keep.origin, Origin::Flag(_)),
        };
        let released = self.ask(&host, &ask, |reply| match reply {
            Reply::Released { id, name, kept } => Some((id, name, kept)),
            _ => None,
        });
        let (id, name, kept) = match (released, &claim) {
            (Ok(released), _) => released,
            // It has ended by itself; only our part of it is left.
            (Err(error), Some(claim)) if error.kind() == Kind::NotFound => {
                self.speaks_to_its_owner(&host, claim)?;
                (claim.lease_id.clone(), claim.cloud_id.clone(), None)
            }
            // Its host is down, and will remove the lease when it is up again.
            (Err(error), Some(claim)) if self.lost(&host, Some(claim), &error).is_some() => {
                (claim.lease_id.clone(), claim.cloud_id.clone(), None)
            }
            (Err(error), _) => return Err(error),
        };
        let Ok(id) = LeaseId::parse(&id) else {
            return Err(nonsense(&host).into());
        };
        let standing = claims::read(&self.engine.places, id.as_str()).map_err(RemoteError::from)?;
        let asked = (text, claim.as_deref());
        if is_to_forget(&host, asked, id.as_str(), standing.as_ref())? {
            self.forget(self.resolve_target(id.as_str()).as_ref(), id.as_str())?;
        }
        Ok(Released {
            id: id.to_string(),
            name: crabbox_host::console::harmless(&name),
            host: None,
            // Without its claim, a lease behind a gateway is found through that.
            kvm_host: Some(host.gateway().to_string()),
            kept: kept.map(|path| crabbox_host::console::harmless(&path).into()),
        })
    }

    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError> {
        // If another host is configured, this machine need not be able to have leases.
        let is_here = KvmHost::configured(&self.settings)?.is_none();
        let mut decisions = if is_here {
            self.local.cleanup(dry_run, on_decision)?
        } else {
            Vec::new()
        };
        let claims = match claims::list(&self.engine.places) {
            Ok(listing) => listing.claims,
            // The local cleanup was done and reported.
            Err(_) if is_here => return Ok(decisions),
            Err(error) => {
                let decision = Decision::unseen("claim", Some(error.into()));
                on_decision(&decision);
                return Ok(vec![decision]);
            }
        };
        // Wait for an unreachable host only once, however many leases it has.
        let mut away: BTreeMap<KvmHost, String> = BTreeMap::new();
        for (host, claim) in claims.into_iter().filter_map(of_host) {
            let decision = self.decide(&host, &claim, dry_run, &mut away);
            on_decision(&decision);
            decisions.push(decision);
        }
        Ok(decisions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_lost_when_its_job_ended_with_its_host_or_is_not_known_any_more() {
        let told = |how: &str| lost_how(Some(how.to_owned()));
        assert_eq!(told("NODE_FAIL").as_deref(), Some("NODE_FAIL"));
        assert_eq!(told("BOOT_FAIL").as_deref(), Some("BOOT_FAIL"));
        assert_eq!(lost_how(None).as_deref(), Some("forgotten"));
        for alive in [
            "RUNNING",
            "PENDING",
            "COMPLETING",
            "COMPLETED",
            "CANCELLED",
            "SOMETHING_NEW",
        ] {
            assert_eq!(told(alive), None, "{alive}");
        }
    }
}
