//! Acquiring a Firecracker lease, from the request to a guest that says it is ready. Runs in the supervisor.
//!
//! ```text
//!  allocate ─ key ─ network ─ disk ─ vmm ─ boot ─ ready         every arrow: journal entry, effect, journal entry
//!      └───────┴───────┴───────┴──────┴──────┴──> on any error: teardown::teardown
//! ```
//! Nothing here may be made before its journal entry, and no stage may sleep: each waits for what it needs to become true.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::journal::Step;
use crabbox_core::labels;
use crabbox_core::process::ProcessId;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_guest_protocol::{IDENTITY_PORT, READY_PORT};
use crabbox_host::clock;
use crabbox_host::console::{self, Recorder};
use crabbox_ssh::keys;
use crabbox_store::journal::{JournalFileError, Pending};
use crabbox_store::leases::{RecordError, StoredLease};
use crabbox_store::places::Places;

use crate::failpoint::{self, Phase, Who};
use crate::lease::allocate::{self, AllocateError};
use crate::lease::allocated::Allocated;
use crate::lease::keys::LeaseKeys;
use crate::lease::ownership::OwnedLease;
use crate::protocol::{Event, Ready, Stage, Whose};
use crate::request::{AcquireRequest, Start};
use crate::resource::connection::{self, ConnectionError};
use crate::resource::disk::{self, DiskError};
use crate::resource::identity::{self, IdentityError};
use crate::resource::network::{self, GuestSide, NameServer, NetworkError, Outer, SavedAttach};
use crate::resource::ready::{self, ReadyError};
use crate::resource::trim::{self, Trims};
use crate::resource::vmm::{self, Patience, Running, VmmError};

/// Why a lease could not be acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// It could not be allocated.
    #[error("cannot allocate a lease")]
    Allocate(#[from] AllocateError),
    /// Its SSH keys could not be made.
    #[error("cannot make the lease's SSH keys")]
    Key(#[from] keys::KeyError),
    /// Its disk could not be prepared.
    #[error("cannot prepare the lease's disk")]
    Disk(#[from] DiskError),
    /// Its network could not be made.
    #[error("cannot make the lease's network")]
    Network(#[from] NetworkError),
    /// Firecracker did not start the machine.
    #[error("firecracker did not start the machine")]
    Vmm(#[from] VmmError),
    /// The guest did not become ready.
    #[error("the guest did not become ready")]
    Ready(#[from] ReadyError),
    /// The guest of a template did not become this lease's, or did not park.
    #[error("the guest did not take its identity")]
    Identity(#[from] IdentityError),
    /// The network of this host gives each guest a tap and an address of its own, so what is frozen with one is of no use with another.
    #[error("a network whose chain makes the guest's tap cannot be frozen")]
    TapGiven,
    /// There is no way to name or share an SSH connection to it.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The console could not be recorded.
    #[error(transparent)]
    Console(#[from] console::ConsoleError),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The command line that asked for the lease is gone, or was interrupted.
    #[error("the lease was given up by the command that asked for it")]
    Abandoned,
}

impl Fault for AcquireError {
    fn kind(&self) -> Kind {
        match self {
            Self::Allocate(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Vmm(error) => error.kind(),
            Self::Ready(_) | Self::Identity(_) | Self::Abandoned => Kind::Unavailable,
            Self::Key(_)
            | Self::TapGiven
            | Self::Connection(_)
            | Self::Console(_)
            | Self::Journal(_)
            | Self::Record(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Allocate(error) => error.hints(),
            Self::Disk(error) => error.hints(),
            Self::Network(error) => error.hints(),
            Self::Vmm(error) => error.hints(),
            Self::Ready(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// A lease in the making: what rollback needs, filled as the stages go.
pub struct Making<'a> {
    /// What was asked for.
    pub request: &'a AcquireRequest,
    /// The allocated lease.
    pub made: Allocated,
    /// Where events go.
    pub events: &'a mut dyn FnMut(Event),
    recorder: Option<Recorder>,
    names: Option<NameServer>,
    trims: Option<Trims>,
    stage: Instant,
}

impl std::fmt::Debug for Making<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Making")
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

/// What runs for a lease in its supervisor.
#[derive(Debug, Default)]
pub struct Threads {
    /// Keeps the console.
    pub recorder: Option<Recorder>,
    /// Answers the guest's questions for names.
    pub names: Option<NameServer>,
    /// Takes blocks back that the guest has freed.
    pub trims: Option<Trims>,
}

/// A lease whose guest is ready.
#[derive(Debug)]
pub struct Acquired {
    /// Its VMM.
    pub vmm: Running,
    /// What the command line is told.
    pub ready: Ready,
    promised: Vec<Pending>,
}

/// A stage in the log. Entered until it is dropped.
fn stage_span(name: &'static str) -> tracing::span::EnteredSpan {
    tracing::info_span!("stage", name).entered()
}

/// Gives the request its lease.
pub fn allocate<'a>(
    places: &Places,
    request: &'a AcquireRequest,
    id: &LeaseId,
    events: &'a mut dyn FnMut(Event),
) -> Result<Making<'a>, AcquireError> {
    let stage = Instant::now();
    let _stage = stage_span("allocate");
    let made = allocate::allocate(places, request, id)?;
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
        stage,
    };
    making.over("allocate", Whose::Ours);
    Ok(making)
}

impl Making<'_> {
    /// Makes everything else. `cancelled` is asked while the guest boots.
    pub fn make(
        &mut self,
        places: &Places,
        supervisor: &ProcessId,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Acquired, AcquireError> {
        let deadline = Instant::now() + self.request.launch_timeout;
        self.effect(Step::Supervisor {}, || Ok(((), Some(supervisor.clone()))))?;
        let keys = self.keys(places)?;
        let plan = self.namespace()?;
        if plan.gives_tap() && !self.request.start.is_boot() {
            return Err(AcquireError::TapGiven);
        }
        // A chain that makes the guest's tap must run first. Any other runs while the guest boots, whose own network is fixed.
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
            let files = disk::identity(&disk::plan(self.request, &self.made)?, &keys, &side)?;
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
        let record = &self.made.stored.record;
        let target = connection::target(record, places)?;
        // Looked at again: the request came from another process, some time ago.
        let dir = connection::control_dir(&self.request.control_dir)?;
        let control = connection::control(&dir, &target)?;
        // The command line makes these two; their intents are written here, where the journal is.
        let connection = Step::Connection {
            control: control.to_string_lossy().into_owned(),
        };
        let promised = vec![
            self.made.journal.begin(connection)?,
            self.made.journal.begin(Step::Claim {})?,
        ];
        let armed = self.request.failpoint.as_str();
        failpoint::hit(armed, Who::Supervisor, "claim", Phase::Begun);
        let ready = Ready {
            address: outer.address.to_string(),
            key: keys.private,
            known_hosts: keys.known_hosts,
            control,
            guest_stages: stages,
            identity,
        };
        Ok(Acquired { vmm, ready, promised })
    }

    /// Boots a guest that waits before it is anybody's, stops it there, and puts what a machine can go on from into `dir`. The rest is
    /// to be taken back like that of any other lease.
    pub(crate) fn freeze(
        &mut self,
        dir: &Path,
        token: &str,
        supervisor: &ProcessId,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), AcquireError> {
        let deadline = Instant::now() + self.request.launch_timeout;
        let patience = Patience { deadline, cancelled };
        self.effect(Step::Supervisor {}, || Ok(((), Some(supervisor.clone()))))?;
        // It is thrown away before anything is frozen, so nobody has to know of it.
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
        self.over("boot", Whose::Guest);
        drop(boot);
        let _freeze = stage_span("freeze");
        // Writing the memory of a large machine may take longer than one may take to start.
        let patience = Patience {
            deadline: Instant::now() + vmm::FREEZE_LIMIT,
            cancelled,
        };
        vmm::freeze_guest(&plan, &vmm, patience)?;
        self.over("freeze", Whose::Firecracker);
        // The disk belongs to the memory: both are of the moment when the machine stood still.
        vmm.kill()?;
        disk::keep(&home, dir)?;
        self.over("keep", Whose::Ours);
        Ok(())
    }

    /// The lease and its threads, when the making is over, one way or the other.
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

    /// Tells the command line something.
    pub fn tell(&mut self, event: Event) {
        (self.events)(event);
    }

    /// The command line has entered and claimed the lease: what it promised is there.
    pub fn claimed(&mut self, acquired: &mut Acquired) -> Result<(), AcquireError> {
        let armed = self.request.failpoint.as_str();
        failpoint::hit(armed, Who::Supervisor, "claim", Phase::Made);
        for pending in acquired.promised.drain(..) {
            self.made.journal.done(pending, None)?;
        }
        failpoint::hit(armed, Who::Supervisor, "claim", Phase::Done);
        self.record(|stored| {
            let (now, _) = clock::unix_now();
            labels::touch(&mut stored.record.labels, Some(&LeaseState::Ready), None, now);
        })
    }

    /// Opens the console pipe for the VMM and starts to record what comes out of it.
    fn record_console(&mut self) -> Result<File, AcquireError> {
        let dir = self.made.lease.dir();
        let path = dir.path().join("console.pipe");
        let pipe = console::open_pipe(&path)?;
        self.recorder = Some(Recorder::start(console::open_pipe(&path)?, &dir.console())?);
        Ok(pipe)
    }

    fn keys(&mut self, places: &Places) -> Result<LeaseKeys, AcquireError> {
        let _stage = stage_span("key");
        let id = self.made.lease.id().clone();
        let dir = places.keys(id.as_str());
        let step = Step::Key {
            dir: dir.to_string_lossy().into_owned(),
        };
        let pairs = self.effect(step, || {
            let lease = keys::generate(&format!("crabbox {id}"))?;
            keys::write_pair(&dir, &lease)?;
            Ok(((lease, keys::generate(&format!("crabbox host {id}"))?), None))
        })?;
        self.over("key", Whose::Ours);
        let (lease, host) = pairs;
        Ok(LeaseKeys {
            private: dir.join("id_ed25519"),
            known_hosts: dir.join("known_hosts"),
            lease,
            host,
        })
    }

    /// Makes the namespace and plans what gives it its outer address: a network that is not there is told now.
    fn namespace(&mut self) -> Result<SavedAttach, AcquireError> {
        let _stage = stage_span("namespace");
        let dir = self.made.lease.dir().clone();
        let plan = network::plan(&self.request.network, &self.made)?;
        let path = dir.netns().to_string_lossy().into_owned();
        self.effect(Step::Namespace { path }, || {
            Ok((network::create(&dir.netns())?, None))
        })?;
        self.over("namespace", Whose::Ours);
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
        self.over("tap", Whose::Ours);
        Ok(())
    }

    /// Attaches the namespace, maps its address onto the guest, and serves names in it.
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
        tracing::info!(address = %outer.address, "attached");
        self.record(|stored| stored.record.guest_ip = outer.address.to_string())?;
        Ok(outer)
    }

    /// Tells where the time between the machine's start and `ready` went: the network was made meanwhile, and counts as ours only
    /// where the guest was ready before it.
    fn booted(&mut self, attached: Duration, stages: &[(String, u64)]) {
        let whole = self.stage.elapsed();
        let guest = stages
            .last()
            .map_or(whole, |(_, uptime)| Duration::from_millis(*uptime));
        let ours = attached.saturating_sub(guest);
        self.spent("network", attached.saturating_sub(ours), Whose::Meanwhile);
        self.spent("network", ours, Whose::Ours);
        self.spent("boot", whole.saturating_sub(ours), Whose::Guest);
        self.stage = Instant::now();
    }

    /// Makes the VMM's directory, in which `prepare` puts what is the lease's own.
    fn disk(
        &mut self,
        prepare: impl FnOnce(&disk::Plan<'_>) -> Result<disk::Home, DiskError>,
    ) -> Result<disk::Home, AcquireError> {
        let _stage = stage_span("disk");
        let plan = disk::plan(self.request, &self.made)?;
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
        self.over("disk", Whose::Ours);
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
        self.over("vmm-start", Whose::Firecracker);
        vmm::start_guest(&plan, &vmm, patience)?;
        self.over("vmm-boot", Whose::Firecracker);
        Ok((plan, vmm))
    }

    /// Journals `step`, lets `make` bring it about, and journals that it is there.
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
        tracing::debug!("begun");
        let (value, process) = make()?;
        failpoint::hit(armed, Who::Supervisor, name, Phase::Made);
        self.made.journal.done(pending, process)?;
        failpoint::hit(armed, Who::Supervisor, name, Phase::Done);
        tracing::debug!("done");
        Ok(value)
    }

    fn record(&mut self, change: impl FnOnce(&mut StoredLease)) -> Result<(), AcquireError> {
        let (seconds, nanoseconds) = clock::unix_now();
        change(&mut self.made.stored);
        self.made.stored.record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
        Ok(self.made.stored.save()?)
    }

    fn over(&mut self, name: &str, whose: Whose) {
        self.spent(name, self.stage.elapsed(), whose);
        self.stage = Instant::now();
    }

    fn spent(&mut self, name: &str, time: Duration, whose: Whose) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(name, micros, ?whose, "spent");
        (self.events)(Event::Stage(Stage {
            name: name.to_owned(),
            micros,
            whose,
        }));
    }
}
