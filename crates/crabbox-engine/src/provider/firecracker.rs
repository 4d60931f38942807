//! The `firecracker` provider on this machine: makes a machine, enters it and claims it, in that order.
//!
//! Until the claim is written, the supervisor holds the lease and rolls it back if we die; from then on it
//! watches the lease.

mod checks;
pub(crate) mod entering;
pub mod error;
pub mod lookup;

use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::layer::Origin;
use crabbox_core::config::{Provider as Which, Settings, firecracker};
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::{NameError, Purpose, ResolveError};
use crabbox_machine::lease::touch;
use crabbox_machine::lifecycle::client;
use crabbox_machine::lifecycle::hold::JobCredentials;
use crabbox_machine::lifecycle::release::{self, Decision, ReleaseError, Released};
use crabbox_machine::request::{AcquireRequest, Job, Owner};

use crabbox_core::fault;
use crabbox_core::id::{LeaseId, Slug};
use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_host::console::OpenLog;
use crabbox_host::signals::Interrupts;
use crabbox_store::leases;
use crabbox_store::places::LeaseDir;

use crate::host::doctor::check::{Check, Options};
use crate::host::pool;
use crate::host::prepare::{self, NewLease};
use crate::host::warm::{self, Source};
use crate::provider::capability::{Capabilities, Capability};
use crate::provider::claim;
use crate::provider::error::LeaseError;
use crate::provider::firecracker::entering::{Here, Taker};
use crate::provider::firecracker::error::AcquireLeaseError;
use crate::provider::lease::Lease;
use crate::provider::terms::Terms;
use crate::provider::{AcquiredLease, Leases, MachineStart, Notice, Provider};

/// The provider's name, as claims have it.
pub(crate) const NAME: &str = Which::Firecracker.name();

/// The fraction of the launch timeout that entering a pool member may take (1/n): failing ones must leave
/// time for a boot.
const POOL_PART: u32 = 4;

/// Why a lease with volumes boots even if a template would fit.
const WITH_VOLUMES: &str = "it has cache volumes, and a template has the drives that it was made with";

/// What this provider can do.
pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    category: "self-hosted-virtualization",
    id_prefix: None,
    can: &[
        Capability::MakesMachine,
        Capability::KeepsRecords,
        Capability::Cleanup,
        Capability::Logs,
        Capability::SetUp,
    ],
};

/// The properties that a new lease would have.
pub(crate) fn terms(settings: &Settings) -> Result<Terms, LeaseError> {
    let plan = firecracker::plan(settings)?;
    Ok(Terms {
        user: plan.user,
        port: plan.ssh_port,
        fallback_ports: Vec::new(),
        work_root: plan.work_root,
        server_type: plan.server_type,
    })
}

/// On whose behalf a new lease is made, if not for the user of this command.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct For<'a> {
    /// A remote owner.
    pub(crate) owner: Option<&'a Owner>,
    /// The scheduler's job that it is made in.
    pub(crate) job: Option<HeldJob<'a>>,
}

/// A job whose process waits to be asked for a lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldJob<'a> {
    /// The scheduler's name of this host.
    pub(crate) node: &'a str,
    /// The request that the job's process expects.
    pub(crate) credentials: &'a JobCredentials,
    /// When it must have answered.
    pub(crate) deadline: Instant,
}

/// The provider `firecracker`.
#[derive(Debug)]
pub struct Firecracker {
    engine: Engine,
    settings: Settings,
}

impl Firecracker {
    /// The provider with these settings.
    pub fn new(engine: Engine, settings: Settings) -> Self {
        Self { engine, settings }
    }
}

impl Firecracker {
    fn acquire_one(
        &self,
        request: &AcquireRequest,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, AcquireLeaseError> {
        let acquisition = client::start(&self.engine, request)?;
        entering::acquire(&self.engine, acquisition, request, taker, interrupts, on_notice)
    }

    /// Takes a waiting lease from the pool of `request`, if possible. A lease that somebody else takes first,
    /// or that cannot be entered, is skipped.
    fn acquire_pooled(
        &self,
        request: &AcquireRequest,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Option<AcquiredLease> {
        let pool = request.pool.as_ref()?;
        // An invalid request is reported when a lease is made, and must not use up a pool member.
        if request
            .slug
            .as_deref()
            .is_some_and(|slug| Slug::requested(slug).is_err())
        {
            return None;
        }
        for lease_id in pool::waiting(&self.engine, &pool.key) {
            let wish = AcquireRequest {
                lease_id,
                launch_timeout: request.launch_timeout / POOL_PART,
                ..request.clone()
            };
            let acquired = client::take(&self.engine, &wish, &pool.key)
                .map_err(AcquireLeaseError::from)
                .and_then(|acquisition| {
                    entering::acquire(&self.engine, acquisition, &wish, taker, interrupts, on_notice)
                });
            match acquired {
                Ok(mut acquired) => {
                    acquired.start = Some(MachineStart::Pooled);
                    return Some(acquired);
                }
                Err(error) => on_notice(&Notice::NotPooled {
                    lease: Some(&wish.lease_id),
                    why: &fault::chain(&error),
                }),
            }
            if interrupts.caught().is_some() {
                return None;
            }
        }
        None
    }

    /// Acquires a machine that a job's process makes, and hands it over to `taker`. It always boots: a
    /// restore may need a second try, and a job has only one lease.
    fn acquire_held(
        &self,
        mut request: AcquireRequest,
        job: HeldJob<'_>,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, AcquireLeaseError> {
        let credentials = job.credentials;
        request.lease_id = credentials.lease.to_string();
        request.job = Some(Job {
            id: credentials.job,
            node: job.node.to_owned(),
        });
        let acquisition = client::knock(&self.engine, &request, credentials, job.deadline, interrupts)?;
        entering::acquire(&self.engine, acquisition, &request, taker, interrupts, on_notice)
    }

    /// Acquires a machine for `whose` and hands it over to `taker`.
    pub(crate) fn acquire_for(
        &self,
        new: &NewLease,
        whose: &For<'_>,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let plan = firecracker::plan(&self.settings)?;
        let mut request = prepare::request(&self.engine, &plan, new)?;
        let owner = whose.owner;
        request.owner = owner.cloned();
        if let Some(job) = whose.job {
            return Ok(self.acquire_held(request, job, taker, interrupts, on_notice)?);
        }
        // This host's volumes belong to its own user, and are not available to remote owners.
        if owner.is_none() && !plan.volumes.is_empty() {
            request.volumes = plan.volumes;
            return self.acquire_with_volumes(&request, plan.warm, taker, interrupts, on_notice);
        }
        // Pool members have a key of this machine, so nobody else can enter them.
        if owner.is_none() {
            match pool::of(&self.engine, &plan, &request) {
                Ok(pool) => request.pool = pool,
                // Go on without a pool; making the lease will report what is missing.
                Err(error) => on_notice(&Notice::NotPooled {
                    lease: None,
                    why: &error.to_string(),
                }),
            }
            if let Some(acquired) = self.acquire_pooled(&request, taker, interrupts, on_notice) {
                return Ok(acquired);
            }
        }
        self.acquire_new(request, &plan, new, taker, interrupts, on_notice)
    }

    /// Makes a machine from the template if there is one. A restore that fails is followed by a boot.
    fn acquire_new(
        &self,
        mut request: AcquireRequest,
        plan: &firecracker::FirecrackerPlan,
        new: &NewLease,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let (started, limit) = (Instant::now(), request.launch_timeout);
        let is_ours = request.owner.is_none();
        let source = warm::choose(&self.engine, plan.warm, &mut request);
        let mut why = None;
        if let Source::Cold(Some(said)) = &source {
            on_notice(&Notice::Cold {
                why: said,
                console: &[],
            });
            why = Some(said.clone());
        }
        if matches!(source, Source::Restored { .. }) {
            // The time limit covers both, so leave time for a boot in case the restore fails.
            request.launch_timeout /= 2;
        }
        let mut acquired = self.acquire_one(&request, taker, interrupts, on_notice);
        if let Source::Restored { key, token } = &source {
            match &acquired {
                Ok(_) => warm::note_success(&self.engine, key),
                // The cause may be what the remote owner asked for, which must not disable the template for
                // everybody.
                Err(error) if error.blames_template() && is_ours => {
                    warm::note_failure(&self.engine, key, token);
                }
                Err(_) => {}
            }
            if let Some(error) = acquired.as_ref().err().filter(|error| error.is_of_restoring())
                && interrupts.caught().is_none()
            {
                let said = fault::chain(error);
                on_notice(&Notice::Cold {
                    why: &said,
                    console: error.console(),
                });
                why = Some(said);
                let mut again = prepare::request(&self.engine, plan, new)?;
                again.pool = request.pool.take();
                again.owner = request.owner.take();
                again.launch_timeout = limit.saturating_sub(started.elapsed()).max(limit / 2);
                acquired = self.acquire_one(&again, taker, interrupts, on_notice);
            }
        }
        let mut acquired = acquired?;
        if why.is_some() {
            acquired.start = Some(MachineStart::Cold(why));
        }
        Ok(acquired)
    }

    /// Acquires a machine with volumes. It always boots, because pool members and templates have a fixed set
    /// of drives.
    fn acquire_with_volumes(
        &self,
        request: &AcquireRequest,
        warm: bool,
        taker: &mut dyn Taker,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let mut acquired = self.acquire_one(request, taker, interrupts, on_notice)?;
        let why = warm.then(|| WITH_VOLUMES.to_owned());
        acquired.start = Some(MachineStart::Cold(why));
        Ok(acquired)
    }

    /// Takes the pool member `id`, because it was named.
    fn take_named(&self, id: &str, key: &str) -> Result<(), LeaseError> {
        let plan = firecracker::plan(&self.settings)?;
        let stored = leases::read(&LeaseDir::at(self.engine.places.leases().join(id)))
            .map_err(AcquireLeaseError::from)?;
        let request = prepare::request_of(&self.engine, &plan, &stored.record)?;
        let take = || -> Result<(), AcquireLeaseError> {
            let mut acquisition = client::take(&self.engine, &request, key)?;
            acquisition.wait_ready(None, &mut |_| ())?;
            Ok(acquisition.claim()?)
        };
        Ok(take()?)
    }
}

impl Provider for Firecracker {
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
        let mut taker = Here {
            engine: &self.engine,
            repo,
        };
        self.acquire_for(new, &For::default(), &mut taker, interrupts, on_notice)
    }

    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError> {
        let lease = lookup::resolve(&self.engine, text, purpose)?;
        // A pool member must be taken before it is used; otherwise somebody else may take it at any moment.
        if purpose == Purpose::Use
            && let Some(key) = labels::pool(&lease.labels)
        {
            self.take_named(&lease.id, key)?;
            return Ok(lookup::resolve(&self.engine, &lease.id, purpose)?);
        }
        Ok(lease)
    }

    fn is_down(&self, lease: &Lease) -> Option<bool> {
        match lookup::resolve(&self.engine, &lease.id, Purpose::Look) {
            Ok(lease) => Some(lease.state.is_terminal()),
            Err(ResolveError::Name(NameError::NotFound { .. })) => Some(true),
            Err(_) => None,
        }
    }

    fn console(&self, lease: &Lease) -> Option<OpenLog> {
        let id = LeaseId::parse(&lease.id).ok()?;
        OpenLog::open(&LeaseDir::at(self.engine.places.lease(&id)).console())
    }

    fn list(&self) -> Result<Leases, LeaseError> {
        Ok(lookup::list(&self.engine)?)
    }

    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError> {
        let places = &self.engine.places;
        // A lease of this machine need not have been claimed before, so only its record tells whether it
        // still exists.
        touch::while_it_stands(places, &lease.id, || {
            claim::claim(places, lease, repo, reclaim).map(|_| ())
        })?;
        Ok(())
    }

    fn touch(
        &self,
        lease: &Lease,
        state: Option<&LeaseState>,
        idle: Option<Duration>,
    ) -> Result<Labels, LeaseError> {
        Ok(touch::touch(&self.engine.places, &lease.id, state, idle)?)
    }

    fn release(&self, text: &str) -> Result<Released, LeaseError> {
        let keep = &self.settings.firecracker.delete_on_release;
        // The record has the setting from when the lease was made. The disk may only be discarded if a flag
        // says so now, for this lease.
        let discard = keep.value && matches!(keep.origin, Origin::Flag(_));
        Ok(release::stop(&self.engine, text, discard)?)
    }

    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError> {
        if !dry_run {
            warm::remove_dead(&self.engine);
        }
        // Without a valid plan we cannot tell which members are outdated, but members whose files are gone
        // are removed anyway.
        let plan = firecracker::plan(&self.settings).ok();
        let mut swept = pool::sweep(&self.engine, plan.as_ref(), dry_run).map_err(ReleaseError::from)?;
        for decision in &swept {
            on_decision(decision);
        }
        let ids: Vec<String> = swept.iter().map(|decision| decision.lease.clone()).collect();
        let decided = release::cleanup(&self.engine, dry_run, &mut |decision| {
            if !ids.contains(&decision.lease) {
                on_decision(decision);
            }
        })?;
        swept.extend(
            decided
                .into_iter()
                .filter(|decision| !ids.contains(&decision.lease)),
        );
        Ok(swept)
    }
}
