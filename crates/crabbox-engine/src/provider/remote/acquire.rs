//! A new lease on another machine: requested there, entered and claimed from here.
//!
//! The private key is generated before the request and never leaves this machine. If we do not get the lease,
//! it is given up on the host and nothing of it stays here. If we may have got it, nothing may be deleted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::firecracker as plans;
use crabbox_core::config::layer::Sourced;
use crabbox_core::id::Slug;
use crabbox_core::labels;
use crabbox_host::signals::Interrupts;
use crabbox_machine::failpoint::{self, Phase, Who};
use crabbox_machine::lifecycle::client::ClientError;
use crabbox_ssh::keys;
use crabbox_store::claims;

use super::Remote;
use super::error::RemoteError;
use crate::fleet::address::{KvmHost, is_name};
use crate::fleet::client::{ANSWER_LIMIT, FleetError};
use crate::fleet::wire::{FarLease, FleetRequest, GATEWAY, Reply, STAGES};
use crate::host::prepare::NewLease;
use crate::provider::error::LeaseError;
use crate::provider::firecracker::entering;
use crate::provider::firecracker::error::AcquireLeaseError;
use crate::provider::lease::Lease;
use crate::provider::{AcquiredLease, MachineStart, Notice, Provider as _};

/// How long a host may take to roll back a lease that was given up.
const ROLLBACK_LIMIT: Duration = Duration::from_mins(1);

/// How long a host may take to confirm our claim.
const CLAIMED_LIMIT: Duration = Duration::from_secs(30);

/// Whether a host has reported more steps than making a lease can have; `reported` counts them.
fn is_too_much(reported: &mut usize) -> bool {
    *reported += 1;
    *reported > STAGES
}

/// The host of a new lease: the one that we asked, or the one behind that gateway that the lease names.
pub(super) fn made_on(host: &KvmHost, is_gateway: bool, lease: &FarLease) -> Option<KvmHost> {
    match (is_gateway, labels::node(&lease.labels)) {
        (false, _) => Some(host.clone()),
        (true, Some(node)) if is_name(node) => Some(host.behind(node)),
        (true, _) => None,
    }
}

impl Remote {
    /// Whether this machine already has something of a lease `id`.
    fn is_known(&self, id: &str) -> Result<bool, RemoteError> {
        let has_keys = self.engine.places.keys(id).exists();
        Ok(has_keys || claims::read(&self.engine.places, id)?.is_some())
    }

    /// The settings to request for the lease: what the user configured, without our defaults.
    fn sayable(&self) -> Result<BTreeMap<String, String>, LeaseError> {
        let plan = plans::plan(&self.settings)?;
        let (settings, own) = (&self.settings, &self.settings.firecracker);
        let mut said = BTreeMap::new();
        let mut say = |key: &str, is_default: bool, value: String| {
            if !is_default {
                said.insert(key.to_owned(), value);
            }
        };
        let both =
            |own: &Sourced<String>, general: &Sourced<String>| own.is_default() && general.is_default();
        say("firecracker.cpus", own.cpus.is_default(), plan.cpus.to_string());
        say(
            "firecracker.memoryMiB",
            own.memory_mib.is_default(),
            plan.memory_mib.to_string(),
        );
        say(
            "firecracker.diskMiB",
            own.disk_mib.is_default(),
            plan.disk_mib.to_string(),
        );
        say("firecracker.user", both(&own.user, &settings.ssh.user), plan.user);
        say(
            "firecracker.workRoot",
            both(&own.work_root, &settings.work_root),
            plan.work_root,
        );
        say(
            "firecracker.launchTimeout",
            own.launch_timeout.is_default(),
            plan.launch_timeout.to_string(),
        );
        say("ttl", settings.ttl.is_default(), plan.ttl.to_string());
        say(
            "idleTimeout",
            settings.idle_timeout.is_default(),
            plan.idle_timeout.to_string(),
        );
        say("profile", settings.profile.is_default(), plan.profile);
        Ok(said)
    }

    /// Claims and enters the ready lease on `host`. The claim is written before the keys, so that a cleanup
    /// can find the leftovers of a command killed in between.
    fn take(
        &self,
        host: &KvmHost,
        pair: &keys::KeyPair,
        (far, host_key): (FarLease, &str),
        (says_ready, deadline): (bool, Instant),
        (repo, interrupts): (&Path, &Interrupts),
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<Lease, LeaseError> {
        let dir = self.engine.places.keys(far.id.as_str());
        self.claim(&self.lease(host, far.clone())?, repo, false)?;
        let hit = |phase| failpoint::hit(&self.engine.failpoint, Who::Cli, "keys", phase);
        hit(Phase::Begun);
        keys::write_pair(&dir, pair).map_err(RemoteError::from)?;
        keys::pin(&dir.join("known_hosts"), far.id.as_str(), far.port, host_key)
            .map_err(RemoteError::from)?;
        hit(Phase::Done);
        let mut lease = self.lease(host, far)?;
        lease.is_claimed = true;
        entering::enter(&lease, says_ready, deadline, interrupts, on_notice)?;
        self.claim(&lease, repo, false)?;
        Ok(lease)
    }

    /// Settles what is here of a lease that `host` did not hand over because of `error`; `entered` if we had
    /// claimed it.
    fn given_up(
        &self,
        entered: Option<Lease>,
        host: KvmHost,
        is_refused: bool,
        error: LeaseError,
    ) -> LeaseError {
        match entered {
            Some(lease) if is_refused => {
                self.forget(Some(&lease), &lease.id).ok();
                error
            }
            // The host may have received our claim, so the lease may be alive. Keep its key, which is nowhere
            // else.
            Some(lease) => RemoteError::Unheard {
                id: lease.id,
                host,
                source: Box::new(error),
            }
            .into(),
            None => error,
        }
    }

    /// Waits for a lease that is being made on `host`, and takes it over.
    #[expect(
        clippy::too_many_lines,
        reason = "one conversation, whose replies share what came before"
    )]
    pub(super) fn acquire_there(
        &self,
        host: &KvmHost,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let slug = new.slug.as_deref().map(Slug::requested).transpose();
        let slug = slug.map_err(RemoteError::from)?.map(|slug| slug.to_string());
        let settings = self.sayable()?;
        let limit = self.settings.firecracker.launch_timeout.value.to_std() * 2 + ANSWER_LIMIT;
        // Generate the key first: only its public half ever leaves this machine.
        let pair = keys::generate("crabbox").map_err(RemoteError::from)?;
        let ask = FleetRequest::Acquire {
            key: pair.public_openssh.clone(),
            settings,
            slug,
            keep: new.keep,
            external: new.external.clone(),
            queue: true,
            job: None,
        };
        let mut talk = self.open(host, ask.heed())?;
        let is_gateway = talk.greeting.role == GATEWAY;
        talk.say(&ask)?;
        let mut until = Instant::now() + limit;
        let (mut stages, mut why, mut reported) = (Vec::new(), None, 0);
        let mut is_refused = false;
        let mut at = host.clone();
        let mut entered: Option<(Lease, Vec<(String, u64)>)> = None;
        let outcome = loop {
            match talk.hear(until) {
                Ok(Reply::Stage(_) | Reply::Cold { .. }) if is_too_much(&mut reported) => {
                    break Err(talk.nonsense().into());
                }
                Ok(Reply::Stage(stage)) => {
                    on_notice(&Notice::Stage(&stage));
                    stages.push(stage);
                }
                // Queueing has no time limit: the user sees it and can interrupt it.
                Ok(Reply::Queued { text }) if is_gateway && entered.is_none() => {
                    on_notice(&Notice::Queued(&crabbox_host::console::harmless(&text)));
                    until = Instant::now() + limit;
                }
                Ok(Reply::Cold { why: text }) => {
                    let text = crabbox_host::console::harmless(&text);
                    on_notice(&Notice::Cold {
                        why: &text,
                        console: &[],
                    });
                    why = Some(text);
                }
                Ok(Reply::Ready {
                    lease,
                    host_key,
                    says_ready,
                    seconds,
                    guest_stages,
                }) if entered.is_none() => {
                    let began = Instant::now();
                    let id = lease.id.to_string();
                    match made_on(host, is_gateway, &lease) {
                        Some(found) => at = found,
                        None => break Err(talk.nonsense().into()),
                    }
                    match self.is_known(&id) {
                        Ok(false) => {}
                        // A new lease has a new id, so the existing files belong to another lease.
                        Ok(true) => break Err(talk.nonsense().into()),
                        Err(error) => break Err(error.into()),
                    }
                    let deadline = began + Duration::from_secs(seconds).min(limit);
                    let parts = (says_ready, deadline);
                    let owner = (repo, interrupts);
                    match self.take(&at, &pair, (lease, &host_key), parts, owner, on_notice) {
                        Ok(lease) => {
                            stages.push(entering::entering(began));
                            entered = Some((lease, guest_stages));
                            // We have claimed it, so an interrupt no longer abandons the lease; it would have
                            // to be stopped.
                            talk.heed_no_more();
                            until = until.min(Instant::now() + CLAIMED_LIMIT);
                            if let Err(error) = talk.say(&FleetRequest::Claimed) {
                                break Err(error.into());
                            }
                        }
                        Err(error) => {
                            // Since the host rolls it back, nothing of it may stay here.
                            let lease = self.resolve_target(&id);
                            self.forget(lease.as_ref(), &id).ok();
                            break Err(error);
                        }
                    }
                }
                Ok(Reply::Lease(far))
                    if entered
                        .as_ref()
                        .is_some_and(|(lease, _)| lease.id == far.id.as_str()) =>
                {
                    break Ok(far);
                }
                Ok(_) => break Err(talk.nonsense().into()),
                Err(FleetError::Refused(failure, cause)) => {
                    is_refused = true;
                    // Report it with the text and the remedy of a failed local machine.
                    break Err(AcquireLeaseError::from(ClientError::Failed(failure, cause)).into());
                }
                Err(error) => break Err(error.into()),
            }
        };
        match outcome {
            Ok(far) => {
                // These labels are the final ones.
                let mut lease = self.lease(&at, far)?;
                lease.is_claimed = true;
                self.claim(&lease, repo, false)?;
                Ok(AcquiredLease {
                    lease,
                    stages,
                    guest_stages: entered.map(|(_, stages)| stages).unwrap_or_default(),
                    start: Some(MachineStart::Cold(why)),
                })
            }
            Err(error) => {
                talk.give_up(ROLLBACK_LIMIT);
                let lease = entered.map(|(lease, _)| lease);
                Err(self.given_up(lease, at, is_refused, error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crabbox_core::claim::Claim;
    use crabbox_store::claims::ClaimError;

    use super::*;

    #[test]
    fn the_stages_that_a_host_tells_have_an_end() {
        let mut reported = 0;
        assert!((0..STAGES).all(|_| !is_too_much(&mut reported)));
        assert!(is_too_much(&mut reported));
    }

    #[test]
    fn a_lease_of_a_fleet_is_on_the_host_that_it_names_and_any_other_on_the_one_that_was_asked() {
        let host = KvmHost::parse("a@gw").unwrap();
        let lease = |node: &str| -> FarLease {
            serde_json::from_value(serde_json::json!({
                "id": "cbx_0123456789ab", "slug": "s", "name": "n", "server_type": "t", "state": "ready", "user": "u", "port": 22,
                "labels": {"node": node}, "work_root": "/w", "has_address": true,
            }))
            .unwrap()
        };
        let made =
            |is_gateway, node: &str| made_on(&host, is_gateway, &lease(node)).map(|host| host.to_string());
        assert_eq!(made(true, "h1").as_deref(), Some("a@gw/h1"));
        assert_eq!(made(false, "h1").as_deref(), Some("a@gw"));
        for odd in ["", "-x", "h1/h2", "h 1"] {
            assert_eq!(made(true, odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_new_lease_never_has_the_id_of_one_whose_keys_or_claim_are_here() {
        let root = tempfile::tempdir().unwrap();
        let engine = crate::fixture::engine(root.path());
        let (keyed, claimed) = ("cbx_000000000001", "cbx_000000000002");
        std::fs::create_dir_all(engine.places.keys(keyed)).unwrap();
        claims::update::<ClaimError>(&engine.places, claimed, |_| Ok(Some(Claim::default()))).unwrap();
        let resolved = crabbox_core::config::resolve(&crabbox_core::config::Inputs {
            files: &[],
            environment: &|_| None,
            flags: &[],
            home: Some(Path::new("/h")),
            cwd: Path::new("/"),
            user_file: None,
        });
        let remote = Remote::new(engine, resolved.unwrap().settings);
        assert!(remote.is_known(keyed).unwrap() && remote.is_known(claimed).unwrap());
        assert!(!remote.is_known("cbx_000000000003").unwrap());
    }
}
