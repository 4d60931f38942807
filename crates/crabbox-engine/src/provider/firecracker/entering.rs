//! The last part of acquiring a lease: a ready machine is entered and claimed by the one it was made for.
//!
//! Until it is claimed its supervisor holds it, and rolls it back if we die or give it up.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;

use crabbox_core::fault;
use crabbox_host::console;
use crabbox_host::signals::Interrupts;
use crabbox_image::READY;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::ResolveError;
use crabbox_machine::lifecycle::client::Acquisition;
use crabbox_machine::lifecycle::supervise::CONSOLE_LINES;
use crabbox_machine::protocol::{self, Event, Ready, Stage, StageSide};
use crabbox_machine::request::{AcquireRequest, GuestSource, Start};
use crabbox_ssh::ready::{NotReady, ReadyError, Wait, wait_ssh};
use crabbox_store::leases;
use crabbox_store::places::LeaseDir;

use super::error::AcquireLeaseError;
use super::lookup;
use crate::provider::claim;
use crate::provider::lease::Lease;
use crate::provider::{AcquiredLease, MachineStart, Notice};

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
    fn take(
        &mut self,
        made: &Made<'_>,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<(), AcquireLeaseError>;

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
    fn take(
        &mut self,
        made: &Made<'_>,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<(), AcquireLeaseError> {
        enter(made.lease, made.says_ready, made.deadline, interrupts, on_notice)?;
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
        taker.take(&made, interrupts, on_notice)?;
        Ok(lease)
    });
    stages.push(entering(entered));
    let lease = match outcome {
        Ok(lease) => lease,
        Err(mut error) => {
            if let AcquireLeaseError::NotReady { console, .. } = &mut error {
                let dir = LeaseDir::at(engine.places.leases().join(&request.lease_id));
                *console = console::tail(&dir.console(), CONSOLE_LINES);
            }
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

/// How many times one session asks a foreign image: for two seconds and what the questions take, which is
/// some seconds each on a guest that is slow. The session must end before it is cut short, to say what is
/// missing.
const QUESTIONS: u32 = 10;

/// The guest's file for the answer; the Go program's.
const READY_LOG: &str = "/tmp/crabbox-ready.log";

/// Asks a foreign image until its first boot has finished, and otherwise says in its words what is missing.
/// One session asks many times: each costs the guest a login, and a slow guest would do little else while it
/// boots.
fn ask(ready: &str, log: &str, questions: u32) -> String {
    format!(
        "left={questions}\n\
         until {ready} >{log} 2>&1; do\n  \
           left=$((left - 1)); [ \"$left\" -gt 0 ] || {{ tail -n 1 {log} >&2; exit 1; }}\n  \
           sleep 0.2\n\
         done"
    )
}

/// Opens the shared connection of `lease` until `deadline`. If the guest does not report by itself, also
/// waits for its set-up to finish.
pub(crate) fn enter(
    lease: &Lease,
    says_ready: bool,
    deadline: Instant,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<(), AcquireLeaseError> {
    let target = lease.target.as_ref().filter(|target| target.control.is_some());
    let target = target.ok_or_else(|| ResolveError::NoAddress { id: lease.id.clone() })?;
    // Our image reports `ready` only when everything is in place; a foreign image has to be asked.
    // The seed's cloud-init data installs the program, as the Go program's does.
    let ask = (!says_ready).then(|| ask(READY, READY_LOG, QUESTIONS));
    let wait = Wait {
        target,
        phase: "bootstrap",
        ready_command: ask.as_deref(),
        settled: false,
        deadline,
        // The guest has reported that its sshd listens.
        probe_port: false,
        cancel: Some(interrupts.as_fd()),
    };
    let host = lease.address.clone();
    match wait_ssh(&wait, &mut |progress| on_notice(&Notice::Waiting(progress))) {
        Ok(_) => Ok(()),
        Err(ReadyError::Cancelled { .. }) => Err(AcquireLeaseError::Interrupted { id: lease.id.clone() }),
        Err(ReadyError::TimedOut { last, .. }) if matches!(*last, NotReady::Check { .. }) => {
            Err(AcquireLeaseError::NotReady {
                host,
                source: last,
                console: Vec::new(),
            })
        }
        Err(
            ReadyError::TimedOut { last: source, .. }
            | ReadyError::Hopeless { source, .. }
            | ReadyError::Unfit { source, .. },
        ) => Err(AcquireLeaseError::Ssh { host, source }),
        Err(source @ ReadyError::Resolve { .. }) => Err(AcquireLeaseError::Ssh {
            host,
            source: Box::new(source),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use crabbox_host::command::Cmd;

    use super::*;

    #[test]
    fn a_foreign_image_is_asked_until_it_is_ready_and_otherwise_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let asked = |questions| {
            let script = ask(&path("ready"), &path("log"), questions);
            let answer = Cmd::new("sh").args(["-c", &script]).capture().unwrap();
            let said = answer.stderr_text();
            (answer.status.code(), said)
        };
        let (code, said) = asked(2);
        assert_eq!(code, Some(1));
        assert!(said.contains(&path("ready")), "{said}");
        let program = format!(
            "#!/bin/sh\necho first\necho missing\necho x >> {asked}\n[ $(wc -l < {asked}) -ge 3 ]\n",
            asked = path("asked")
        );
        std::fs::write(path("ready"), program).unwrap();
        std::fs::set_permissions(path("ready"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(asked(2), (Some(1), "missing".to_owned()));
        assert_eq!(asked(2), (Some(0), String::new()));
    }
}
