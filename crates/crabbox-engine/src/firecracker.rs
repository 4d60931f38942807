//! The `firecracker` provider as the command line uses it: a machine is made, entered and claimed, in that order.
//!
//! Until the claim is written the supervisor holds the lease and takes it back should we die; afterwards it watches it.

use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::{Provider as Which, Settings, firecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels::Labels;
use crabbox_host::clock;
use crabbox_host::signals::Interrupts;
use crabbox_ssh::capture;
use crabbox_ssh::exec::Stdin;
use crabbox_ssh::master::{self, ConnectError};
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::LeaseDir;

use crate::client::{self, ClientError};
use crate::context::Engine;
use crate::event::{Event, Ready, Stage, Whose};
use crate::lease::Lease;
use crate::prepare::{self, NewLease};
use crate::provider::{LeaseError, Leases, Notice, Provider};
use crate::release::{self, Decision, Released};
use crate::request::{AcquireRequest, GuestSource};
use crate::resolve::{self, Purpose, ResolveError};
use crate::touch::{self, TouchError};

/// What foreign images are asked whether they are ready; cloud-init writes it (behaviour reference 8.4).
const READY_COMMAND: &str = "/usr/local/bin/crabbox-ready >/tmp/crabbox-ready.log 2>&1";
/// How long one try at the handshake may take; under emulation it takes seconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_mins(1);

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

impl Provider for Firecracker {
    fn name(&self) -> &'static str {
        Which::Firecracker.name()
    }

    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError> {
        let plan = firecracker::plan(&self.settings)?;
        let request = prepare::request(&self.engine, &plan, new)?;
        let acquired = acquire(&self.engine, &request, repo, interrupts, &mut |event| {
            on_notice(&Notice::Machine(event));
        })?;
        Ok(acquired)
    }

    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError> {
        Ok(resolve::resolve(&self.engine, text, purpose)?)
    }

    fn is_down(&self, lease: &Lease) -> Option<bool> {
        match resolve::resolve(&self.engine, &lease.id, Purpose::Look) {
            Ok(lease) => {
                let down = ["stopped", "released", "failed", "expired"];
                Some(down.contains(&lease.state.as_str()))
            }
            Err(ResolveError::NotFound { .. }) => Some(true),
            Err(_) => None,
        }
    }

    fn list(&self) -> Result<Leases, LeaseError> {
        let (leases, unreadable) = resolve::list(&self.engine)?;
        Ok(Leases { leases, unreadable })
    }

    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError> {
        touch::claim(&self.engine.places, lease, repo, reclaim)?;
        Ok(())
    }

    fn touch(
        &self,
        lease: &Lease,
        state: Option<&str>,
        idle: Option<Duration>,
    ) -> Result<Labels, LeaseError> {
        Ok(touch::touch(&self.engine.places, &lease.id, state, idle)?)
    }

    fn release(&self, text: &str) -> Result<Released, LeaseError> {
        Ok(release::stop(&self.engine, text)?)
    }

    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError> {
        Ok(release::cleanup(&self.engine, dry_run, on_decision)?)
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireLeaseError {
    /// The machine was not made.
    #[error(transparent)]
    Machine(#[from] ClientError),
    /// The machine is up and cannot be entered.
    #[error(
        "timed out waiting for SSH on {host} during bootstrap; next_action=check lease status, then stop or replace the lease if SSH stays unreachable"
    )]
    Ssh {
        /// The machine's address.
        host: String,
        /// What the last try met.
        #[source]
        source: ConnectError,
    },
    /// The machine can be entered and does not finish its own set-up.
    #[error(
        "timed out waiting for SSH on {host} during bootstrap (ready-check); next_action=check lease status, then stop or replace the lease if SSH stays unreachable"
    )]
    NotReady {
        /// The machine's address.
        host: String,
    },
    /// The record cannot be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lease cannot be put together.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It cannot be claimed.
    #[error(transparent)]
    Claim(#[from] TouchError),
    /// The user interrupted.
    #[error("interrupted while lease {id} was being entered; it was taken back")]
    Interrupted {
        /// The lease.
        id: String,
    },
}

impl Fault for AcquireLeaseError {
    fn kind(&self) -> Kind {
        match self {
            Self::Machine(error) => error.kind(),
            Self::Ssh { .. } | Self::NotReady { .. } | Self::Interrupted { .. } => Kind::Unavailable,
            Self::Resolve(error) => error.kind(),
            Self::Record(_) | Self::Claim(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Machine(error) => error.hints(),
            Self::Resolve(error) => error.hints(),
            Self::Ssh { .. } => vec!["a slow host needs a larger firecracker.launchTimeout".to_owned()],
            Self::NotReady { .. } => vec![
                "the image must have git, rsync, curl and jq, or be able to install them; with `--firecracker-launch-timeout` it gets more time".to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

impl AcquireLeaseError {
    /// Whether a fresh lease may come up where this one did not: its machine ended while it booted, and nothing of it is left.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Machine(ClientError::Failed(failure, _)) if failure.machine_ended && failure.leftovers.is_empty())
    }

    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Machine(ClientError::Failed(failure, _)) => &failure.console,
            _ => &[],
        }
    }
}

/// A lease that is this command's, and where the time went.
#[derive(Debug)]
pub struct AcquiredLease {
    /// The lease.
    pub lease: Lease,
    /// Its stages in order.
    pub stages: Vec<Stage>,
    /// What the guest said of its own boot: stages with its uptime in milliseconds.
    pub guest_stages: Vec<(String, u64)>,
}

/// Makes the lease, enters it and claims it for the repository at `repo`.
pub fn acquire(
    engine: &Engine,
    request: &AcquireRequest,
    repo: &Path,
    interrupts: &Interrupts,
    on_event: &mut dyn FnMut(&Event),
) -> Result<AcquiredLease, AcquireLeaseError> {
    let started = Instant::now();
    let mut acquisition = client::start(engine, request)?;
    let mut stages = Vec::new();
    let ready = acquisition.wait_ready(interrupts, &mut |event| {
        if let Event::Stage(stage) = event {
            stages.push(stage.clone());
        }
        on_event(event);
    })?;
    let deadline = started + request.launch_timeout;
    let entered = Instant::now();
    let outcome = enter(engine, request, &ready, deadline, interrupts).and_then(|lease| {
        let micros = u64::try_from(entered.elapsed().as_micros()).unwrap_or(u64::MAX);
        stages.push(Stage {
            name: "ssh".to_owned(),
            micros,
            whose: Whose::Ssh,
        });
        touch::claim(&engine.places, &lease, repo, false)?;
        Ok(lease)
    });
    if let Err(error) = outcome {
        acquisition.abandon();
        return Err(error);
    }
    acquisition.claim()?;
    // The supervisor has written the last labels; the lease is shown, and its claim kept, with those.
    let lease = read_back(engine, request)?;
    touch::claim(&engine.places, &lease, repo, false)?;
    Ok(AcquiredLease {
        lease,
        stages,
        guest_stages: ready.guest_stages,
    })
}

fn read_back(engine: &Engine, request: &AcquireRequest) -> Result<Lease, AcquireLeaseError> {
    let stored = leases::read(&LeaseDir::at(engine.places.leases().join(&request.lease_id)))?;
    Ok(resolve::lease(engine, &stored.record)?)
}

/// Opens the shared connection, and waits for a foreign image to finish its set-up.
fn enter(
    engine: &Engine,
    request: &AcquireRequest,
    ready: &Ready,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Lease, AcquireLeaseError> {
    let lease = read_back(engine, request)?;
    let Some(target) = &lease.target else {
        return Err(ResolveError::NoAddress { id: lease.id }.into());
    };
    let host = || ready.address.clone();
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(HANDSHAKE_LIMIT);
        match master::open(target, &ready.control, left.max(Duration::from_secs(1))) {
            Ok(()) => break,
            Err(error)
                if error.is_passing() && Instant::now() < deadline && interrupts.caught().is_none() =>
            {
                clock::nap(Duration::from_millis(50));
            }
            Err(source) => return Err(AcquireLeaseError::Ssh { host: host(), source }),
        }
    }
    // Our image says `ready` only when everything is in its place; anyone else's is asked.
    if matches!(request.guest, GuestSource::Ours { .. }) {
        return Ok(lease);
    }
    loop {
        if interrupts.caught().is_some() {
            return Err(AcquireLeaseError::Interrupted { id: lease.id });
        }
        if Instant::now() >= deadline {
            return Err(AcquireLeaseError::NotReady { host: host() });
        }
        let asked = capture::capture(target, READY_COMMAND, Stdin::Null, Some(Duration::from_secs(30)));
        if asked.is_ok_and(|answer| answer.success()) {
            return Ok(lease);
        }
        clock::nap(Duration::from_millis(50));
    }
}
