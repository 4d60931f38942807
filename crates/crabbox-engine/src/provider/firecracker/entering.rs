//! The last part of acquiring a lease: a ready machine is entered and claimed by the one it was made for.
//!
//! Until it is claimed its supervisor holds it, and rolls it back if we die or give it up.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::fault;
use crabbox_host::clock;
use crabbox_host::signals::Interrupts;
use crabbox_image::READY;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::ResolveError;
use crabbox_machine::lifecycle::client::Acquisition;
use crabbox_machine::protocol::{self, Event, Ready, Stage, StageSide};
use crabbox_machine::request::{AcquireRequest, GuestSource, Start};
use crabbox_ssh::capture;
use crabbox_ssh::exec::Stdin;
use crabbox_ssh::master;
use crabbox_store::leases;
use crabbox_store::places::LeaseDir;

use super::error::AcquireLeaseError;
use super::lookup;
use crate::provider::claim;
use crate::provider::lease::Lease;
use crate::provider::{AcquiredLease, MachineStart, Notice};

/// The time limit of one try at the SSH handshake, which takes seconds under emulation.
const HANDSHAKE_LIMIT: Duration = Duration::from_mins(1);

/// A machine that has reported that it is ready.
#[derive(Debug)]
pub(crate) struct Made<'a> {
    /// Its lease.
    pub(crate) lease: &'a Lease,
    /// The supervisor's report.
    pub(crate) ready: &'a Ready,
    /// Whether the guest reports by itself when everything is in place.
    pub(crate) says_ready: bool,
    /// The deadline for entering it.
    pub(crate) deadline: Instant,
}

/// Takes over a new lease: the repository or the client that it is made for.
pub(crate) trait Taker {
    /// Enters and claims it.
    fn take(&mut self, made: &Made<'_>, interrupts: &Interrupts) -> Result<(), AcquireLeaseError>;

    /// The lease is claimed. Its labels are now the final ones.
    fn taken(&mut self, lease: &Lease) -> Result<(), AcquireLeaseError>;
}

/// Takes over a lease for a repository on this machine.
#[derive(Debug)]
pub(crate) struct Here<'a> {
    /// The engine, which knows where claims are kept.
    pub(crate) engine: &'a Engine,
    /// The root of the repository.
    pub(crate) repo: &'a Path,
}

impl Taker for Here<'_> {
    fn take(&mut self, made: &Made<'_>, interrupts: &Interrupts) -> Result<(), AcquireLeaseError> {
        enter(made.lease, made.says_ready, made.deadline, interrupts)?;
        self.taken(made.lease)
    }

    fn taken(&mut self, lease: &Lease) -> Result<(), AcquireLeaseError> {
        claim::claim(&self.engine.places, lease, self.repo, false)?;
        Ok(())
    }
}

/// Waits until the lease is ready, and hands it over to `taker`.
pub(super) fn acquire(
    engine: &Engine,
    mut acquisition: Acquisition<'_>,
    request: &AcquireRequest,
    taker: &mut dyn Taker,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<AcquiredLease, AcquireLeaseError> {
    let mut started = Instant::now();
    let mut stages = Vec::new();
    let ready = acquisition.wait_ready(Some(interrupts), &mut |event| match event {
        Event::Stage(stage) => {
            started = launch_begins(started, stage);
            stages.push(stage.clone());
            on_notice(&Notice::Stage(stage));
        }
        Event::Warning { text } => on_notice(&Notice::Without { text }),
        _ => {}
    })?;
    let deadline = started + request.launch_timeout;
    let entered = Instant::now();
    let outcome = read_back(engine, request).and_then(|lease| {
        let made = Made {
            lease: &lease,
            ready: &ready,
            says_ready: matches!(request.guest, GuestSource::Ours { .. }),
            deadline,
        };
        taker.take(&made, interrupts)?;
        Ok(lease)
    });
    stages.push(entering(entered));
    let lease = match outcome {
        Ok(lease) => lease,
        Err(error) => {
            acquisition.abandon();
            return Err(error);
        }
    };
    acquisition.claim()?;
    // The supervisor has now written the final labels; display the lease, and keep its claim, with those. The
    // lease has been claimed, so an error from here on only costs a warning.
    let mut lease = read_back(engine, request).unwrap_or_else(|error| {
        tracing::warn!("the lease's last labels are not shown: {}", fault::chain(&error));
        lease
    });
    // From here on anybody may release it.
    lease.is_claimed = true;
    if let Err(error) = taker.taken(&lease) {
        tracing::warn!("its claim keeps earlier labels: {}", fault::chain(&error));
    }
    Ok(AcquiredLease {
        lease,
        stages,
        guest_stages: ready.guest_stages,
        start: Some(match request.start {
            Start::Restore { .. } => MachineStart::Restored,
            Start::Boot | Start::Freeze { .. } => MachineStart::Cold(None),
        }),
    })
}

/// The start of the launch, whose time is limited: after the volumes' checks, which may take minutes.
fn launch_begins(since: Instant, stage: &Stage) -> Instant {
    if stage.name == protocol::VOLUMES {
        Instant::now()
    } else {
        since
    }
}

/// The stage of entering a lease, which started at `began`.
pub(crate) fn entering(began: Instant) -> Stage {
    Stage {
        name: "ssh".to_owned(),
        micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        whose: StageSide::Ssh,
    }
}

fn read_back(engine: &Engine, request: &AcquireRequest) -> Result<Lease, AcquireLeaseError> {
    let stored = leases::read(&LeaseDir::at(engine.places.leases().join(&request.lease_id)))?;
    Ok(lookup::in_use(engine, &stored.record)?)
}

/// Opens the shared connection of `lease` until `deadline`. If the guest does not report by itself, also
/// waits for its set-up to finish.
pub(crate) fn enter(
    lease: &Lease,
    says_ready: bool,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<(), AcquireLeaseError> {
    let no_address = || ResolveError::NoAddress { id: lease.id.clone() };
    let target = lease.target.as_ref().ok_or_else(no_address)?;
    let control = target.control.as_ref().ok_or_else(no_address)?;
    let host = || lease.address.clone();
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(HANDSHAKE_LIMIT);
        match master::open(
            target,
            control,
            left.max(Duration::from_secs(1)),
            Some(interrupts.as_fd()),
        ) {
            Ok(()) => break,
            Err(error)
                if error.is_passing() && Instant::now() < deadline && interrupts.caught().is_none() =>
            {
                clock::nap(Duration::from_millis(50));
            }
            Err(master::ConnectError::Cancelled { .. }) => {
                return Err(AcquireLeaseError::Interrupted { id: lease.id.clone() });
            }
            Err(source) => return Err(AcquireLeaseError::Ssh { host: host(), source }),
        }
    }
    // Our image reports `ready` only when everything is in place; a foreign image has to be asked.
    if says_ready {
        return Ok(());
    }
    // The seed's cloud-init data installs this program, as the Go program's does.
    let is_ready = format!("{READY} >/tmp/crabbox-ready.log 2>&1");
    loop {
        if interrupts.caught().is_some() {
            return Err(AcquireLeaseError::Interrupted { id: lease.id.clone() });
        }
        if Instant::now() >= deadline {
            return Err(AcquireLeaseError::NotReady { host: host() });
        }
        let (limit, cancel) = (Some(Duration::from_secs(30)), Some(interrupts.as_fd()));
        let asked = capture::capture_until(target, &is_ready, Stdin::Null, limit, cancel);
        if asked.is_ok_and(|answer| answer.success()) {
            return Ok(());
        }
        clock::nap(Duration::from_millis(50));
    }
}
