//! The supervisor of a lease: acquires the lease, is the parent of its VMM, and tears the lease down.
//!
//! It runs in its own session, so that no Ctrl-C reaches it. It talks to the command line over two pipes
//! until the lease is claimed; all that it needs afterwards is in the lease's record. If it is killed, the
//! machine keeps running, and the next crabbox command starts another supervisor ([`watch`]).
//!
//! ```text
//!             request                    ready                 claimed
//!  (started) ────────> making ─────────────────> handing over ─────────> watching ──┐ look: record, activity
//!                        │ error, gone,              │ end of input        ^  │  └───┘
//!                        │ signal                    │ without `claimed`   │  │ machine gone, expired, asked
//!                        v                           v                     │  v
//!                      rolling back: teardown, `failed` ──> (ended)        │ ending: lock, proof, teardown ──> (ended)
//!                                                                          │  ^
//!  (made ahead) ────────> waiting in its pool (`stand_by.rs`): taken ──> watching, or ending
//!  (adopted) ── lock ──> claimed, not ending, VMM known ───────────────────┘  │
//!                 └────> never claimed, or its end was begun ─────────────────┘
//! ```
//! It holds the lease's lock from the allocation to `watching`, during adoption, and from the decision to end
//! the lease to its end; never while it watches. Without the lock it must not decide anything: every reason
//! to end a lease is checked again under the lock. From `watching` on nobody reads its output, so errors go
//! to its log (`supervisor_log.rs`).

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::time::Duration;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_host::console::{self, Recorder};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::process::{self, ProcessError, ProcessHandle, ProcessId};
use crabbox_host::signals::{Interrupts, SignalError};
use crabbox_store::journal::{self, JournalFileError};
use crabbox_store::leases;
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

use crate::control::Phase;
use crate::control::server::Control;
use crate::failpoint::Who;
use crate::lease::find::is_running;
use crate::lease::ownership::{OwnedLease, OwnershipError};
use crate::lifecycle::acquire::{self, AcquireError, Making, Threads};
use crate::lifecycle::handover::{is_readable, says_claimed};
use crate::lifecycle::refill;
use crate::lifecycle::stand_by::{FailedHandover, Life, PoolOutcome, Waiting};
use crate::lifecycle::supervisor_log::SupervisorLog;
use crate::lifecycle::teardown::{self, Actor, Extent};
use crate::lifecycle::vmm_end;
use crate::lifecycle::watch::{End, observe};
use crate::log_filter::LogFilter;
use crate::protocol::{self, Event, Failure, Ready, RequestError};
use crate::request::{AcquireRequest, Pool, Start};
use crate::resource::network;
use crate::resource::ready::ReadyError;
use crate::resource::trim;

/// Number of console lines of a failed machine that the user is shown.
pub const CONSOLE_LINES: usize = 20;
/// How long a `stop` or `cleanup` may hold the lease while the supervisor waits for its own teardown.
const LOCK_LIMIT: Duration = Duration::from_mins(2);

/// Why a supervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A pipe, to the command line or within this process, is not available.
    #[error("cannot create a pipe")]
    Pipes(#[source] std::io::Error),
    /// The request is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The lease id is invalid.
    #[error(transparent)]
    LeaseId(#[from] crabbox_core::id::LeaseIdError),
    /// Signals cannot be received.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The identity of this process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease does not belong to this user.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// This process has no identity (start time, boot id).
    #[error("the supervisor cannot find itself in /proc")]
    NoSelf,
}

impl Fault for SuperviseError {
    fn kind(&self) -> Kind {
        Kind::General
    }
}

/// Makes the lease that the first line of `input` describes, then watches it to its end. Takes over this
/// process including its log, which records what `filter` selects.
pub fn run(input: File, output: File, filter: Option<LogFilter>) -> Result<(), SuperviseError> {
    let log = SupervisorLog::install(filter);
    logged(make_and_watch(input, output, &log))
}

/// Watches a lease whose supervisor has died, with the armed failpoint (empty for none). Takes over this
/// process including its log.
pub fn watch(
    places: &Places,
    id: &LeaseId,
    failpoint: &str,
    filter: Option<LogFilter>,
) -> Result<(), SuperviseError> {
    let log = SupervisorLog::install(filter);
    let _lease = tracing::info_span!("lease", %id).entered();
    logged(adopt(places, id, failpoint, &log))
}

/// Logs an error that ends the supervisor: nobody reads its standard error.
pub(super) fn logged<T, E: std::error::Error + 'static>(outcome: Result<T, E>) -> Result<T, E> {
    match &outcome {
        Ok(_) => tracing::info!("the supervisor ends"),
        Err(error) => tracing::error!("the supervisor gives up: {}", fault::chain(error)),
    }
    outcome
}

fn make_and_watch(input: File, output: File, log: &SupervisorLog) -> Result<(), SuperviseError> {
    let mut input = BufReader::new(input);
    let request = protocol::read_request(&mut input).inspect_err(|error| {
        tell(
            &output,
            &Event::Failed(Failure::of(error, Vec::new(), Vec::new())),
        );
    })?;
    make_requested(&request, input, output, log).map(drop)
}

/// Sends an event to the command line. A failed write is ignored, because the end of our input shows that the
/// command line has gone away.
fn tell(mut output: &File, event: &Event) {
    output.write_all(&protocol::line(event).unwrap_or_default()).ok();
}

/// Makes the lease of `request` for the client at the other end of `input` and `output`, then watches it to
/// its end; returns whether the client got it.
pub(super) fn make_requested(
    request: &AcquireRequest,
    mut input: BufReader<File>,
    output: File,
    log: &SupervisorLog,
) -> Result<bool, SuperviseError> {
    let mut tell = |event: Event| tell(&output, &event);
    let id = LeaseId::parse(&request.lease_id)?;
    let _lease = tracing::info_span!("lease", %id).entered();
    tracing::info!(pid = std::process::id(), "the supervisor makes the lease");
    let places: Places = request.places.clone().into();
    let interrupts = Interrupts::install()?;
    let mut control = Control::new(log).map_err(SuperviseError::Pipes)?;
    let actor = Actor {
        who: Who::Supervisor,
        failpoint: &request.failpoint,
    };
    if request.member_of().is_some() {
        control.reserve();
    }
    // The command line sends nothing more until the lease is ready, so readable input means that it has
    // closed the connection.
    let gone = || interrupts.caught().is_some() || is_readable(input.get_ref());
    let making = match acquire::allocate(&places, request, &id, &mut tell, &gone) {
        Ok(making) => making,
        Err(error) => {
            let mut failure = Failure::of(&error, Vec::new(), Vec::new());
            failure.hints = error.hints_for(request.asker());
            tell(Event::Failed(failure));
            return Ok(false);
        }
    };
    log.enter(making.made.lease.dir());
    control.listen(making.made.lease.dir());
    let Attempt {
        outcome,
        lease,
        threads,
    } = if let Start::Freeze { dir, token } = &request.start {
        freeze(making, &places, (dir, token), &mut input, &interrupts, &control)?
    } else {
        hand_over(making, &places, &mut input, &interrupts, &control)?
    };
    let handed = match outcome {
        Ok(Some(handed)) => handed,
        Ok(None) => {
            control.enter(Phase::Ending);
            finish(threads, None);
            let report = teardown::teardown(&places, lease, Extent::Everything, actor);
            tracing::info!("snapshot taken; removing its machine");
            tell(Event::Frozen {
                leftovers: report.leftovers(),
            });
            return Ok(false);
        }
        Err(error) => {
            control.enter(Phase::Ending);
            let failure = roll_back(&places, lease, threads, (request, &error));
            tell(Event::Failed(failure));
            return Ok(false);
        }
    };
    let dir = lease.dir().clone();
    lease.release();
    let Handed { vmm, pooled } = handed;
    tell(if pooled.is_some() {
        Event::Pooled
    } else {
        Event::Watching
    });
    drop((input, output));
    let life = Life {
        places: &places,
        id: &id,
        dir: &dir,
        vmm: &vmm,
        interrupts: &interrupts,
        control: &control,
    };
    match pooled {
        None => life.watch(threads, request)?,
        Some((ready, pool)) => life.wait(threads, &Waiting::new(&life, request, &pool, &ready))?,
    }
    Ok(true)
}

/// Rolls back what was made of a lease before `error`.
fn roll_back(
    places: &Places,
    lease: OwnedLease,
    threads: Threads,
    (request, error): (&AcquireRequest, &AcquireError),
) -> Failure {
    tracing::error!("rolling the lease back: {}", fault::chain(error));
    let console = finish_console(threads, lease.dir());
    let actor = Actor {
        who: Who::Supervisor,
        failpoint: &request.failpoint,
    };
    let report = teardown::teardown(places, lease, Extent::Everything, actor);
    let mut failure = Failure::of(error, console, report.leftovers());
    failure.machine_ended = matches!(error, AcquireError::Ready(ReadyError::Ended));
    failure.not_restored = error.is_of_restoring(&request.start);
    failure.blames_template = failure.not_restored && error.blames_template();
    failure
}

impl Life<'_> {
    /// Watches the claimed lease, which was requested with `request`, to its end.
    fn watch(&self, threads: Threads, request: &AcquireRequest) -> Result<(), SuperviseError> {
        tracing::info!("claimed; watching");
        self.control.enter(Phase::Watching);
        refill::start(request);
        let end = observe(self.places, self.dir, self.vmm, self.interrupts, self.control);
        self.conclude(end, threads, request)?;
        Ok(())
    }

    /// Keeps the lease as a pool member until a client takes it, then watches it.
    fn wait(&self, threads: Threads, waiting: &Waiting<'_>) -> Result<(), SuperviseError> {
        match waiting.stand_by() {
            PoolOutcome::Taken(request) => self.watch(threads, &request),
            PoolOutcome::FailedHandover(spoilt) => {
                let FailedHandover { lock, word } = *spoilt;
                word.tell(self.conclude((End::Unfinished, Some(lock)), threads, waiting.made_of)?);
                Ok(())
            }
            PoolOutcome::Ends(end) => {
                let is_old = matches!(end, End::Expired(_));
                self.conclude((end, None), threads, waiting.made_of)?;
                if is_old && self.control.is_pool_used() {
                    refill::start(waiting.made_of);
                }
                Ok(())
            }
        }
    }

    /// Tears the lease down; returns what could not be removed.
    fn conclude(
        &self,
        end: (End, Option<FileLock>),
        threads: Threads,
        request: &AcquireRequest,
    ) -> Result<Vec<String>, SuperviseError> {
        self.control.enter(Phase::Ending);
        let actor = Actor {
            who: Who::Supervisor,
            failpoint: &request.failpoint,
        };
        conclude(self.places, self.id, end, threads, actor)
    }
}

/// A lease that was made.
struct Handed {
    /// Its VMM.
    vmm: ProcessHandle,
    /// How it is entered and which pool it is for, if it is a pool member; otherwise it belongs to the
    /// command line.
    pooled: Option<(Ready, Pool)>,
}

/// How the making of a lease ended.
struct Attempt {
    /// The lease that was handed over, or `None` if a template was made of it.
    outcome: Result<Option<Handed>, AcquireError>,
    /// What was made of it, with its lock held in every case.
    lease: OwnedLease,
    threads: Threads,
}

/// Makes the lease and hands it to the command line.
fn hand_over(
    mut making: Making<'_>,
    places: &Places,
    input: &mut BufReader<File>,
    interrupts: &Interrupts,
    control: &Control,
) -> Result<Attempt, SuperviseError> {
    let supervisor = own_identity()?;
    let gone = || interrupts.caught().is_some() || control.is_asked() || is_readable(input.get_ref());
    let made = making.make(places, &supervisor, &gone).map_err(|error| {
        if control.gave_way() {
            AcquireError::GaveWay
        } else {
            error
        }
    });
    let outcome = made.and_then(|mut acquired| {
        if let Some(pool) = making.request.member_of() {
            making.pool(pool)?;
            return Ok(Handed {
                vmm: acquired.vmm.into_handle(),
                pooled: Some((acquired.ready, pool.clone())),
            });
        }
        let promised = making.promise(places, &mut acquired)?;
        making.tell(Event::Ready(acquired.ready));
        if !says_claimed(input, control, interrupts, acquired.vmm.handle()) {
            return Err(AcquireError::Abandoned);
        }
        making.claimed(promised)?;
        Ok(Handed {
            vmm: acquired.vmm.into_handle(),
            pooled: None,
        })
    });
    let (lease, threads) = making.into_parts();
    Ok(Attempt {
        outcome: outcome.map(Some),
        lease,
        threads,
    })
}

/// Makes a template of the lease.
fn freeze(
    mut making: Making<'_>,
    places: &Places,
    (dir, token): (&Path, &str),
    input: &mut BufReader<File>,
    interrupts: &Interrupts,
    control: &Control,
) -> Result<Attempt, SuperviseError> {
    let supervisor = own_identity()?;
    let gone = || interrupts.caught().is_some() || control.is_asked() || is_readable(input.get_ref());
    let frozen = making.freeze(places, dir, token, &supervisor, &gone);
    let (lease, threads) = making.into_parts();
    Ok(Attempt {
        outcome: frozen.map(|()| None),
        lease,
        threads,
    })
}

fn own_identity() -> Result<ProcessId, SuperviseError> {
    process::identify(std::process::id())?.ok_or(SuperviseError::NoSelf)
}

/// Adopts a lease whose supervisor has died, unless another process has.
fn adopt(places: &Places, id: &LeaseId, failpoint: &str, log: &SupervisorLog) -> Result<(), SuperviseError> {
    let interrupts = Interrupts::install()?;
    let supervisor = own_identity()?;
    let dir = LeaseDir::at(places.lease(id));
    let guard = locks::lease(places, id.as_str(), LOCK_LIMIT)?;
    let Some(mut journal) = journal::JournalFile::open(&dir.journal())? else {
        if dir.is_gone() {
            // The lease was torn down while we waited; remove the lock file that we created by locking it.
            guard.remove_while_held()?;
        }
        return Ok(());
    };
    if let Some(standing) = journal.state().process("supervisor")
        && process::is_alive(standing)
    {
        return Ok(());
    }
    // Open the log only under the lock: another process that is removing the directory must not find a new
    // file in it.
    log.enter(&dir);
    let actor = Actor {
        who: Who::Supervisor,
        failpoint,
    };
    if journal.state().note(teardown::ENDING).is_some() || !journal.state().is_claimed() {
        drop((journal, guard));
        conclude(places, id, (End::Unfinished, None), Threads::default(), actor)?;
        return Ok(());
    }
    let Some(vmm) = journal.state().process("vmm").cloned() else {
        tracing::error!("the lease is claimed but its journal names no VMM: nothing to watch");
        return Ok(());
    };
    let pending = journal.begin(crabbox_core::journal::Step::Supervisor {})?;
    journal.done(pending, Some(supervisor))?;
    tracing::info!(pid = std::process::id(), "the supervisor adopts the lease");
    let mut control = Control::new(log).map_err(SuperviseError::Pipes)?;
    control.listen(&dir);
    control.enter(Phase::Watching);
    let trims = leases::read(&dir)
        .ok()
        .and_then(|stored| trim::resume(&stored.record, journal.state()));
    drop((journal, guard));
    // The lease is watched even if its console or DNS forwarder cannot be resumed.
    let recorder = console::open_pipe(&dir.path().join("console.pipe"))
        .and_then(|pipe| Recorder::start(pipe, &dir.console()));
    let threads = Threads {
        recorder: taken_up("console", recorder),
        names: taken_up("names", network::serve_names(&dir.netns())),
        trims,
    };
    let end = match process::open(&vmm)? {
        Some(handle) => observe(places, &dir, &handle, &interrupts, &control),
        None => (End::MachineGone, None),
    };
    control.enter(Phase::Ending);
    conclude(places, id, end, threads, actor)?;
    Ok(())
}

fn taken_up<T, E: std::error::Error + 'static>(service: &str, outcome: Result<T, E>) -> Option<T> {
    outcome
        .inspect_err(|error| tracing::warn!("cannot resume {service}: {}", fault::chain(error)))
        .ok()
}

/// Tears the lease down, unless another process holds its lock or has done it; returns what could not be
/// removed.
fn conclude(
    places: &Places,
    id: &LeaseId,
    (end, guard): (End, Option<FileLock>),
    threads: Threads,
    actor: Actor<'_>,
) -> Result<Vec<String>, SuperviseError> {
    tracing::info!(?end, "watch ended");
    end_threads(threads, &LeaseDir::at(places.lease(id)));
    if end == End::LeaseGone {
        return Ok(Vec::new());
    }
    let guard = match guard {
        Some(guard) => guard,
        None => locks::lease(places, id.as_str(), LOCK_LIMIT)?,
    };
    let lease = OwnedLease::prove(places, id, guard)?;
    let stored = match leases::read(lease.dir()) {
        Ok(stored) => stored,
        Err(_) if lease.dir().is_gone() => {
            lease.forget()?;
            return Ok(Vec::new());
        }
        // What the lease may leave behind is not known, and so nothing of it is removed.
        Err(error) => {
            let why = format!("its record cannot be read: {}", fault::chain(&error));
            tracing::error!("the lease was not changed: {why}");
            lease.release();
            return Ok(vec![why]);
        }
    };
    if is_taken_back(&stored.record) {
        lease.release();
        return Ok(Vec::new());
    }
    // A lease that was never handed over has nothing that a user may want to keep.
    let journal = journal::read(&lease.dir().journal());
    let is_unclaimed = journal.is_ok_and(|journal| journal.is_some_and(|journal| !journal.is_claimed()));
    let extent = if is_unclaimed {
        Extent::Everything
    } else {
        Extent::of(&stored.record)
    };
    // Leftovers stay in the journal, where `cleanup` finds and reports them. The teardown has logged them.
    Ok(teardown::teardown(places, lease, extent, actor).leftovers())
}

/// Whether another process has torn the lease down already: the label says so, and the machine has ended. The
/// label alone is not trusted; otherwise a VMM that still runs could never be removed.
fn is_taken_back(record: &LeaseRecord) -> bool {
    labels::state(&record.labels) == LeaseState::Released && !is_running(record)
}

/// Ends the lease's service threads. If its VMM has ended, the last line of the console and of the log say
/// how.
fn end_threads(threads: Threads, dir: &LeaseDir) -> Option<String> {
    let reason = vmm_end::describe(dir);
    if let Some(reason) = &reason {
        tracing::warn!("{reason}");
    }
    finish(threads, reason.as_deref());
    reason
}

/// Ends the lease's service threads: DNS before the namespace is removed, trim before the disk is, and the
/// console after its pipe has been drained, with our line `last`.
fn finish(threads: Threads, last: Option<&str>) {
    drop((threads.names, threads.trims));
    if let Some(recorder) = threads.recorder {
        recorder.finish(last);
    }
}

/// The last lines of a machine that did not come up: of its console, or of the VMM's log if the guest printed
/// nothing.
fn finish_console(threads: Threads, dir: &LeaseDir) -> Vec<String> {
    let reason = end_threads(threads, dir);
    let console = console::tail(&dir.console(), CONSOLE_LINES);
    if console.iter().any(|line| Some(line) != reason.as_ref()) {
        return console;
    }
    let log = leases::read(dir)
        .map(|stored| stored.record.log_path)
        .unwrap_or_default();
    let mut words = console::tail(Path::new(&log), CONSOLE_LINES);
    words.extend(reason);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_whose_machine_runs_is_not_taken_back_whatever_its_label_says() {
        let mut record = LeaseRecord::default();
        record.set_process(process::identify(std::process::id()).unwrap());
        labels::set_state(&mut record.labels, &LeaseState::Released);
        assert!(is_running(&record) && !is_taken_back(&record));
        record.set_process(None);
        assert!(is_taken_back(&record));
        labels::set_state(&mut record.labels, &LeaseState::Ready);
        assert!(!is_taken_back(&record));
    }
}
