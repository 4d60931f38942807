//! A new lease on another machine: asked for, entered from here, claimed here.
//!
//! The private key is made before anything is there and never leaves this machine. A lease that does not become ours is given up there, and
//! nothing of it stays here.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::firecracker as plans;
use crabbox_core::config::layer::Sourced;
use crabbox_core::id::Slug;
use crabbox_host::signals::Interrupts;
use crabbox_machine::lifecycle::client::ClientError;
use crabbox_ssh::keys;

use super::Remote;
use super::error::RemoteError;
use crate::fleet::address::KvmHost;
use crate::fleet::client::{ANSWER_LIMIT, FleetError};
use crate::fleet::wire::{Ask, FarLease, Reply};
use crate::host::prepare::NewLease;
use crate::provider::error::LeaseError;
use crate::provider::firecracker::entering;
use crate::provider::firecracker::error::AcquireLeaseError;
use crate::provider::lease::Lease;
use crate::provider::{AcquiredLease, MachineStart, Notice, Provider as _};

/// How long a host may take to take back what was given up.
const ROLLBACK_LIMIT: Duration = Duration::from_mins(1);

impl Remote {
    /// What a client says of its lease: what the user set, and nothing that is a default here.
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

    /// Enters and claims the lease that `host` has ready.
    fn take(
        &self,
        host: &KvmHost,
        pair: &keys::KeyPair,
        (told, host_key): (FarLease, &str),
        (says_ready, deadline): (bool, Instant),
        (repo, interrupts): (&Path, &Interrupts),
    ) -> Result<Lease, LeaseError> {
        let dir = self.engine.places.keys(told.id.as_str());
        keys::write_pair(&dir, pair).map_err(RemoteError::from)?;
        keys::pin(&dir.join("known_hosts"), told.id.as_str(), told.port, host_key)
            .map_err(RemoteError::from)?;
        let lease = self.lease(host, told)?;
        entering::enter(&lease, says_ready, deadline, interrupts)?;
        self.claim(&lease, repo, false)?;
        Ok(lease)
    }

    /// Waits for a lease that is being made on `host`, and has it.
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
        // Made before anything is there, so that its public half is all that ever leaves this machine.
        let pair = keys::generate("crabbox").map_err(RemoteError::from)?;
        let mut talk = self.open(host, Some(interrupts))?;
        talk.say(&Ask::Acquire {
            key: pair.public_openssh.clone(),
            settings,
            slug,
            keep: new.keep,
            external: new.external.clone(),
        })?;
        let until = Instant::now() + limit;
        let (mut stages, mut why) = (Vec::new(), None);
        let mut entered: Option<(Lease, Vec<(String, u64)>)> = None;
        let outcome = loop {
            // A lease that has been entered is almost ours: who interrupts now has it to be stopped.
            let cancel = entered.is_none().then(|| interrupts.as_fd());
            match talk.hear(cancel, until) {
                Ok(Reply::Stage(stage)) => {
                    on_notice(&Notice::Stage(&stage));
                    stages.push(stage);
                }
                Ok(Reply::Cold { why: said }) => {
                    let said = crabbox_host::console::harmless(&said);
                    on_notice(&Notice::Cold {
                        why: &said,
                        console: &[],
                    });
                    why = Some(said);
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
                    let deadline = began + Duration::from_secs(seconds).min(limit);
                    let parts = (says_ready, deadline);
                    match self.take(host, &pair, (lease, &host_key), parts, (repo, interrupts)) {
                        Ok(lease) => {
                            stages.push(entering::entering(began));
                            entered = Some((lease, guest_stages));
                            if let Err(error) = talk.say(&Ask::Claimed) {
                                break Err(error.into());
                            }
                        }
                        Err(error) => {
                            // Nothing of it may stay here when it is taken back there.
                            let lease = self.resolve_target(&id);
                            self.forget(lease.as_ref(), &id).ok();
                            break Err(error);
                        }
                    }
                }
                Ok(Reply::Lease(told)) if entered.is_some() => break Ok(told),
                Ok(_) => break Err(talk.nonsense().into()),
                Err(FleetError::Refused(failure, cause)) => {
                    // In the words, and with the remedy, of a machine that was to be made here.
                    break Err(AcquireLeaseError::from(ClientError::Failed(failure, cause)).into());
                }
                Err(error) => break Err(error.into()),
            }
        };
        match outcome {
            Ok(told) => {
                // Its labels are the last ones of its making.
                let lease = self.lease(host, told)?;
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
                if let Some((lease, _)) = &entered {
                    self.forget(Some(lease), &lease.id).ok();
                }
                Err(error)
            }
        }
    }
}
