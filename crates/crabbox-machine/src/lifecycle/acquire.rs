//! Acquiring a Firecracker lease, from the request to a guest that reports that it is ready. Runs in the
//! supervisor.
//!
//! ```text
//!  allocate ─ key ─ network ─ disk ─ vmm ─ boot ─ ready         every arrow: journal entry, effect, journal entry
//!      └───────┴───────┴───────┴──────┴──────┴──> on any error: teardown::teardown
//! ```
//! No effect may happen before its journal entry, and no stage may sleep for a fixed time: each waits for its
//! condition.

pub(crate) mod error;
mod volumes;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::id::LeaseId;
use crabbox_core::journal::Step;
use crabbox_core::labels;
use crabbox_core::process::ProcessId;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_guest_protocol::{IDENTITY_PORT, READY_PORT};
use crabbox_host::clock;
use crabbox_host::console::{self, Recorder};
use crabbox_host::files;
use crabbox_ssh::keys::{self, KeyError};
use crabbox_store::leases::StoredLease;
use crabbox_store::places::Places;

pub use error::AcquireError;

use crate::failpoint::{self, Phase, Who};
use crate::lease::admission;
use crate::lease::allocate;
use crate::lease::allocated::Allocated;
use crate::lease::keys::LeaseKeys;
use crate::lease::ownership::OwnedLease;
use crate::lifecycle::handover::Promised;
use crate::lifecycle::pool;
use crate::lifecycle::teardown::Actor;
use crate::protocol::{Event, Ready, Stage, StageSide};
use crate::request::{AcquireRequest, Pool, Start};
use crate::resource::disk::{self, DiskError, Drive};
use crate::resource::identity;
use crate::resource::network::{self, GuestSide, NameServer, Outer, SavedAttach};
use crate::resource::ready;
use crate::resource::trim::{self, Trims};
use crate::resource::vmm::{self, Patience, Running};

/// A lease in the making, with all that a rollback needs; filled as the stages proceed.
pub struct Making<'a> {
    /// The request.
    pub request: &'a AcquireRequest,
    /// The allocated lease.
    pub made: Allocated,
    /// Receives the events.
    pub events: &'a mut dyn FnMut(Event),
    recorder: Option<Recorder>,
    names: Option<NameServer>,
    trims: Option<Trims>,
    /// The lease's volumes, in the order of their drives.
    drives: Vec<Drive>,
    stage: Instant,
}

impl std::fmt::Debug for Making<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Making")
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

/// Services that run for a lease in its supervisor.
#[derive(Debug, Default)]
pub struct Threads {
    /// Records the console.
    pub recorder: Option<Recorder>,
    /// Forwards the guest's DNS queries.
    pub names: Option<NameServer>,
    /// Returns freed blocks of the guest to the host.
    pub trims: Option<Trims>,
}

/// A lease whose guest is ready.
#[derive(Debug)]
pub struct Acquired {
    /// Its VMM.
    pub vmm: Running,
    /// What the command line needs to enter the lease.
    pub ready: Ready,
}

/// The log span of a stage, entered until it is dropped.
fn stage_span(name: &'static str) -> tracing::span::EnteredSpan {
    tracing::info_span!("stage", name).entered()
}

/// Allocates the lease of the request. `gone` says whether the requesting client has gone away.
pub fn allocate<'a>(
    places: &Places,
    request: &'a AcquireRequest,
    id: &LeaseId,
    events: &'a mut dyn FnMut(Event),
    gone: &dyn Fn() -> bool,
) -> Result<Making<'a>, AcquireError> {
    let stage = Instant::now();
    let _stage = stage_span("allocate");
    let actor = Actor {
        who: Who::Supervisor,
        failpoint: &request.failpoint,
    };
    let made = loop {
        let error = match allocate::allocate(places, request, id) {
            Ok(made) => break made,
            Err(error) => error,
        };
        if gone() {
            return Err(AcquireError::Abandoned);
        }
        // An unclaimed pool member gives way to a requested lease. Stop retrying after the launch timeout,
        // since the pool may be refilled faster than we free it.
        let is_in_time = stage.elapsed() < request.launch_timeout;
        if request.member_of().is_some()
            || !is_in_time
            || !pool::make_room(places, request, &error, actor, gone)
        {
            return Err(error.into());
        }
    };
    events(Event::Allocated {
        slug: made.stored.record.slug.clone(),
        name: made.stored.record.name.clone(),
    });
    let mut making = Making {
        request,
        made,
        events,
        recorder: None,
        names: None,
        trims: None,
        drives: Vec::new(),
        stage,
    };
    making.over("allocate", StageSide::Ours);
    Ok(making)
}

impl Making<'_> {
    /// Makes everything else. `cancelled` is polled while the guest boots.
    pub fn make(
        &mut self,
        places: &Places,
        supervisor: &ProcessId,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Acquired, AcquireError> {
        self.effect(Step::Supervisor {}, || Ok(((), Some(supervisor.clone()))))?;
        // Checking a volume's file system may take minutes, which do not count towards the launch timeout.
        self.volumes(places, cancelled)?;
        let deadline = Instant::now() + self.request.launch_timeout;
        let keys = self.keys(places)?;
        let plan = self.namespace()?;
        if plan.gives_tap() && !self.request.start.is_boot() {
            return Err(AcquireError::TapGiven);
        }
        // A CNI chain that makes the guest's tap must run first. Any other runs while the guest boots,
        // because the guest's own network is fixed.
        let early = if plan.gives_tap() {
            Some(self.attach(places, &plan)?)
        } else {
            None
        };
        let side = early.as_ref().map_or_else(GuestSide::inner, GuestSide::of);
        if early.is_none() {
            self.tap()?;
        }
        let home = self.disk(|plan| disk::prepare(plan, &keys, &side))?;
        let token = match &self.request.start {
            Start::Restore { token, .. } => Some(token.as_str()),
            Start::Boot | Start::Freeze { .. } => None,
        };
        let listener = home.listen(if token.is_some() {
            IDENTITY_PORT
        } else {
            READY_PORT
        })?;
        self.trims = trim::begin(&home);
        let pipe = self.record_console()?;
        let patience = Patience { deadline, cancelled };
        let (_, vmm) = self.start(&home, &side, &pipe, patience)?;
        let outer = match early {
            Some(outer) => outer,
            None => self.attach(places, &plan)?,
        };
        let attached = self.stage.elapsed();
        keys.pin(&outer, self.request.ssh_port)?;
        let boot = stage_span("boot");
        let (stages, identity) = if let Some(token) = token {
            let files = disk::identity(&disk::plan(self.request, &self.made, &[])?, &keys, &side)?;
            let woken = identity::assign(&listener, token, &files, &vmm, patience)?;
            (woken.stages, Some(woken.identity))
        } else {
            let stages = ready::wait(&ready::Wait {
                listener: &listener,
                vmm: &vmm,
                address: (outer.address, self.request.ssh_port).into(),
                says_ready: home.says_ready,
                deadline,
                cancelled,
            })?;
            (stages, None)
        };
        self.booted(attached, &stages);
        drop(boot);
        self.must_be_mounted(places, &stages)?;
        let ready = Ready {
            address: outer.address.to_string(),
            key: keys.private,
            known_hosts: keys.known_hosts,
            // The process that enters the lease sets this.
            control: std::path::PathBuf::new(),
            guest_stages: stages,
            identity,
        };
        Ok(Acquired { vmm, ready })
    }

    /// Hands the ready lease to the command line.
    pub(crate) fn promise(
        &mut self,
        places: &Places,
        acquired: &mut Acquired,
    ) -> Result<Promised, AcquireError> {
        let made = &mut self.made;
        let promised = Promised::make(&mut made.journal, &made.stored.record, places, self.request)?;
        acquired.ready.control.clone_from(&promised.control);
        Ok(promised)
    }

    /// Puts the ready lease into the pool for which it was made.
    pub(crate) fn pool(&mut self, pool: &Pool) -> Result<(), AcquireError> {
        let armed = self.request.failpoint.as_str();
        let hit = |phase| failpoint::hit(armed, Who::Supervisor, "pool", phase);
        hit(Phase::Begun);
        self.record(|stored| {
            let (now, _) = clock::unix_now();
            labels::touch(
                &mut stored.record.labels,
                Some(&LeaseState::Pooled),
                Some(pool.max_age),
                now,
            );
        })?;
        hit(Phase::Done);
        Ok(())
    }

    /// Boots a guest without an identity, snapshots it, and stores the parts of the template in `dir`. The
    /// lease itself must be torn down afterwards like any other.
    pub(crate) fn freeze(
        &mut self,
        places: &Places,
        dir: &Path,
        token: &str,
        supervisor: &ProcessId,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), AcquireError> {
        let deadline = Instant::now() + self.request.launch_timeout;
        let patience = Patience { deadline, cancelled };
        self.effect(Step::Supervisor {}, || Ok(((), Some(supervisor.clone()))))?;
        // This host key is discarded before the snapshot, so nothing has to record it.
        let host_key = keys::generate("of a template")?;
        if self.namespace()?.gives_tap() {
            return Err(AcquireError::TapGiven);
        }
        let side = GuestSide::inner();
        self.tap()?;
        let home = self.disk(|plan| disk::prepare_template(plan, &host_key, &side))?;
        let listener = home.listen(IDENTITY_PORT)?;
        let pipe = self.record_console()?;
        let (plan, vmm) = self.start(&home, &side, &pipe, patience)?;
        let boot = stage_span("boot");
        let _parked = identity::park(&listener, token, &vmm, patience)?;
        self.over("boot", StageSide::Guest);
        drop(boot);
        let _freeze = stage_span("freeze");
        // The space that was free at admission may be used up by now. Check again, because a machine that is
        // paused with half of its memory written is useless.
        admission::fits_frozen(places, self.request, &home.dir.join(disk::DISK))?;
        // Writing the memory of a large machine may take longer than a launch is allowed to take.
        let patience = Patience {
            deadline: Instant::now() + vmm::FREEZE_LIMIT,
            cancelled,
        };
        vmm::freeze_guest(&plan, &vmm, patience)?;
        self.over("freeze", StageSide::Firecracker);
        // Disk and memory must be from the same moment, so the VMM is killed while the guest is paused.
        vmm.kill()?;
        disk::keep(&home, dir)?;
        self.over("keep", StageSide::Ours);
        Ok(())
    }

    /// The lease and its service threads when the acquisition has ended, successfully or not.
    pub(crate) fn into_parts(self) -> (OwnedLease, Threads) {
        (
            self.made.lease,
            Threads {
                recorder: self.recorder,
                names: self.names,
                trims: self.trims,
            },
        )
    }

    /// Sends an event to the command line.
    pub fn tell(&mut self, event: Event) {
        (self.events)(event);
    }

    /// Records that the command line has entered and claimed the lease: the promised effects exist.
    pub(crate) fn claimed(&mut self, promised: Promised) -> Result<(), AcquireError> {
        let made = &mut self.made;
        promised.keep(&mut made.journal, &mut made.stored, self.request)
    }

    /// Opens the VMM's console pipe and starts to record its output.
    fn record_console(&mut self) -> Result<File, AcquireError> {
        let dir = self.made.lease.dir();
        let path = dir.path().join("console.pipe");
        let pipe = console::open_pipe(&path)?;
        self.recorder = Some(Recorder::start(console::open_pipe(&path)?, &dir.console())?);
        Ok(pipe)
    }

    /// Warns the user, and logs the warning.
    fn warn(&mut self, text: String) {
        tracing::warn!("{text}");
        self.tell(Event::Warning { text });
    }

    fn keys(&mut self, places: &Places) -> Result<LeaseKeys, AcquireError> {
        let _stage = stage_span("key");
        let id = self.made.lease.id().clone();
        let dir = places.keys(id.as_str());
        let step = Step::Key {
            dir: dir.to_string_lossy().into_owned(),
        };
        let owner = self.request.owner.as_ref();
        let keys = self.effect(step, || {
            let authorized = if let Some(owner) = owner {
                // The private key is on the owner's machine; this directory holds only the pinned host key of
                // the guest.
                files::create_private_dir(&dir).map_err(KeyError::from)?;
                keys::public(&owner.public_key, &format!("crabbox {id}"))?
            } else {
                let lease = keys::generate(&format!("crabbox {id}"))?;
                keys::write_pair(&dir, &lease)?;
                lease.public_openssh
            };
            Ok(((authorized, keys::generate(&format!("crabbox host {id}"))?), None))
        })?;
        self.over("key", StageSide::Ours);
        let (authorized, host) = keys;
        Ok(LeaseKeys {
            private: dir.join("id_ed25519"),
            known_hosts: dir.join("known_hosts"),
            authorized,
            host,
        })
    }

    /// Makes the namespace and plans the attachment of its outer address; a missing network is reported now.
    fn namespace(&mut self) -> Result<SavedAttach, AcquireError> {
        let _stage = stage_span("namespace");
        let dir = self.made.lease.dir().clone();
        let plan = network::plan(&self.request.network, &self.made)?;
        let path = dir.netns().to_string_lossy().into_owned();
        self.effect(Step::Namespace { path }, || {
            Ok((network::create(&dir.netns())?, None))
        })?;
        self.over("namespace", StageSide::Ours);
        Ok(plan)
    }

    fn tap(&mut self) -> Result<(), AcquireError> {
        let _stage = stage_span("tap");
        let netns = self.made.lease.dir().netns();
        let owner = self.made.uid.map(|uid| (uid, uid));
        let step = Step::Tap {
            netns: netns.to_string_lossy().into_owned(),
        };
        self.effect(step, || Ok((network::make_tap(&netns, owner)?, None)))?;
        self.over("tap", StageSide::Ours);
        Ok(())
    }

    /// Attaches the namespace, maps its address onto the guest, and serves DNS in it.
    fn attach(&mut self, places: &Places, plan: &SavedAttach) -> Result<Outer, AcquireError> {
        let _stage = stage_span("network");
        let netns = self.made.lease.dir().netns();
        let step = Step::Attach {
            saved: plan.to_value(),
        };
        let outer = self.effect(step, || Ok((network::attach(places, plan)?, None)))?;
        let owner = self.made.uid.map(|uid| (uid, uid));
        let mapping = network::mapping(&netns, &outer, owner)?;
        let step = Step::Mapping {
            netns: netns.to_string_lossy().into_owned(),
        };
        self.effect(step, || Ok((network::map(&mapping)?, None)))?;
        if outer.guest_tap.is_none() {
            self.names = Some(network::serve_names(&netns)?);
        }
        tracing::info!(address = %outer.address, "network attached");
        self.record(|stored| stored.record.guest_ip = outer.address.to_string())?;
        Ok(outer)
    }

    /// Reports the time between the machine's start and `ready`. The network is made in parallel and counts
    /// as ours only if the guest was ready before it.
    fn booted(&mut self, attached: Duration, stages: &[(String, u64)]) {
        let whole = self.stage.elapsed();
        let guest = stages
            .last()
            .map_or(whole, |(_, uptime)| Duration::from_millis(*uptime));
        let ours = attached.saturating_sub(guest);
        self.spent("network", attached.saturating_sub(ours), StageSide::Meanwhile);
        self.spent("network", ours, StageSide::Ours);
        self.spent("boot", whole.saturating_sub(ours), StageSide::Guest);
        self.stage = Instant::now();
    }

    /// Makes the VMM's directory; `prepare` fills it with the lease's private files.
    fn disk(
        &mut self,
        prepare: impl FnOnce(&disk::Plan<'_>) -> Result<disk::Home, DiskError>,
    ) -> Result<disk::Home, AcquireError> {
        let _stage = stage_span("disk");
        let drives = self.drives.clone();
        let plan = disk::plan(self.request, &self.made, &drives)?;
        let step = match &plan.jail {
            Some(jail) => Step::Jail {
                path: jail.to_string_lossy().into_owned(),
            },
            None => Step::Disk {
                path: plan.home.to_string_lossy().into_owned(),
            },
        };
        let home = self.effect(step, || Ok((prepare(&plan)?, None)))?;
        for mount in &plan.mounts {
            let step = Step::Mount {
                path: mount.target.to_string_lossy().into_owned(),
            };
            self.effect(step, || Ok((disk::mount(mount)?, None)))?;
        }
        self.made.journal.note("disk", home.method)?;
        self.record(|stored| {
            let text = |name: &str| home.dir.join(name).to_string_lossy().into_owned();
            stored.record.rootfs_path = text(disk::DISK);
            stored.record.socket_path = text(disk::API);
            stored.record.log_path = text(disk::LOG);
            stored.record.cloud_init_path = home.seed.map(text).unwrap_or_default();
            let labels = &mut stored.record.labels;
            labels.insert("disk_method".to_owned(), home.method.to_owned());
        })?;
        self.over("disk", StageSide::Ours);
        Ok(home)
    }

    fn start(
        &mut self,
        home: &disk::Home,
        side: &GuestSide,
        pipe: &File,
        patience: Patience<'_>,
    ) -> Result<(vmm::Plan, Running), AcquireError> {
        let _stage = stage_span("vmm");
        let plan = vmm::plan(self.request, &self.made, home, side)?;
        if let Some(cgroup) = &plan.cgroup {
            let step = Step::Cgroup {
                path: cgroup.to_string_lossy().into_owned(),
            };
            // The jailer makes it; from here on it may exist.
            self.effect(step, || Ok(((), None)))?;
        }
        let step = Step::Vmm {
            vmid: self.made.stored.record.vmid.clone(),
            dir: home.dir.to_string_lossy().into_owned(),
        };
        let vmm = self.effect(step, || {
            let running = vmm::start(&plan, pipe)?;
            let process = running.id().clone();
            Ok((running, Some(process)))
        })?;
        self.record(|stored| {
            let record = &mut stored.record;
            record.set_process(Some(vmm.id().clone()));
            labels::set_state(&mut record.labels, &LeaseState::Running);
        })?;
        self.over("vmm-start", StageSide::Firecracker);
        vmm::start_guest(&plan, &vmm, patience)?;
        self.over("vmm-boot", StageSide::Firecracker);
        Ok((plan, vmm))
    }

    /// Journals the intent of `step`, runs `make`, and journals the mark.
    fn effect<T>(
        &mut self,
        step: Step,
        make: impl FnOnce() -> Result<(T, Option<ProcessId>), AcquireError>,
    ) -> Result<T, AcquireError> {
        let name = step.name();
        let _step = tracing::info_span!("step", name).entered();
        let armed = self.request.failpoint.as_str();
        let pending = self.made.journal.begin(step)?;
        failpoint::hit(armed, Who::Supervisor, name, Phase::Begun);
        tracing::debug!("step started");
        let (value, process) = make()?;
        failpoint::hit(armed, Who::Supervisor, name, Phase::Made);
        self.made.journal.done(pending, process)?;
        failpoint::hit(armed, Who::Supervisor, name, Phase::Done);
        tracing::debug!("step finished");
        Ok(value)
    }

    fn record(&mut self, change: impl FnOnce(&mut StoredLease)) -> Result<(), AcquireError> {
        let (seconds, nanoseconds) = clock::unix_now();
        change(&mut self.made.stored);
        self.made.stored.record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
        Ok(self.made.stored.save()?)
    }

    fn over(&mut self, name: &str, whose: StageSide) {
        self.spent(name, self.stage.elapsed(), whose);
        self.stage = Instant::now();
    }

    fn spent(&mut self, name: &str, time: Duration, whose: StageSide) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(name, micros, ?whose, "stage finished");
        (self.events)(Event::Stage(Stage {
            name: name.to_owned(),
            micros,
            whose,
        }));
    }
}
