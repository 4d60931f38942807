//! The per-lease supervisor: makes the lease, is the parent of its VMM, and sees to its end.
//!
//! It lives in its own session, so that no Ctrl-C reaches it. It speaks to the command line over two pipes until the lease is
//! claimed, and from then on to nobody: everything it needs to know is in the lease's record. If it is killed the machine
//! lives on, and the next crabbox command starts another one ([`watch`]).

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::{self, Verdict};
use crabbox_host::clock;
use crabbox_host::console::{self, Recorder};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::process::{self, ProcessError, ProcessHandle};
use crabbox_host::signals::{Interrupts, SignalError};
use crabbox_store::journal::{self, JournalFileError};
use crabbox_store::leases::{self, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::acquire::{self, AcquireError, Making, Threads};
use crate::activity::{self, Watchpoint};
use crate::event::{Event, Failure};
use crate::failpoint::Who;
use crate::network;
use crate::ownership::{OwnedLease, OwnershipError};
use crate::ready::ReadyError;
use crate::request::AcquireRequest;
use crate::teardown::{self, Actor, Extent};
use crate::trim;

/// What the command line writes when the lease has become its own.
pub const CLAIMED: &str = "claimed";
/// How many lines of a failed machine's console the user is shown.
const CONSOLE_LINES: usize = 20;
/// How often the record is looked at for its expiry while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a `stop` or `cleanup` may hold the lease while the supervisor waits to clean up itself.
const LOCK_LIMIT: Duration = Duration::from_mins(2);

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The request could not be read.
    #[error("cannot read the lease request")]
    Request(#[source] std::io::Error),
    /// The request is not one.
    #[error("the lease request is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The lease id is not one.
    #[error(transparent)]
    LeaseId(#[from] crabbox_core::id::LeaseIdError),
    /// Signals cannot be watched.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// Our own identity cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease is not ours.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// This process has no identity.
    #[error("the supervisor cannot find itself in /proc")]
    NoSelf,
}

impl Fault for SuperviseError {
    fn kind(&self) -> Kind {
        Kind::General
    }
}

/// Why a lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Its VMM ended.
    MachineGone,
    /// It expired.
    Expired(String),
    /// The supervisor was asked to end.
    Asked,
    /// Somebody else took it back.
    LeaseGone,
    /// Its making or its end was broken off by a death.
    Unfinished,
}

/// Makes the lease that `input` describes in its first line, then watches it to its end.
pub fn run(input: File, mut output: File) -> Result<(), SuperviseError> {
    let mut input = BufReader::new(input);
    let mut line = String::new();
    input.read_line(&mut line).map_err(SuperviseError::Request)?;
    let request: AcquireRequest = serde_json::from_str(&line).map_err(SuperviseError::Malformed)?;
    let id = LeaseId::parse(&request.lease_id)?;
    let places: Places = request.places.clone().into();
    let interrupts = Interrupts::install()?;
    let actor = Actor {
        who: Who::Supervisor,
        failpoint: &request.failpoint,
    };
    let mut tell = |event: Event| {
        // A command line that has gone away shows as the end of our input; that its pipe is closed is no news.
        let mut text = serde_json::to_vec(&event).unwrap_or_default();
        text.push(b'\n');
        output.write_all(&text).ok();
    };
    let making = match acquire::allocate(&places, &request, &id, &mut tell) {
        Ok(making) => making,
        Err(error) => {
            tell(Event::Failed(Failure::of(&error, Vec::new(), Vec::new())));
            return Ok(());
        }
    };
    let (outcome, lease, threads) = hand_over(making, &places, &mut input, &interrupts)?;
    let vmm = match outcome {
        Ok(vmm) => vmm,
        Err(error) => {
            let console = finish_console(threads, lease.dir());
            let report = teardown::teardown(&places, lease, Extent::Everything, actor);
            let mut failure = Failure::of(&error, console, report.leftovers());
            failure.machine_ended = matches!(error, AcquireError::Ready(ReadyError::Ended));
            tell(Event::Failed(failure));
            return Ok(());
        }
    };
    let dir = lease.dir().clone();
    lease.release();
    tell(Event::Watching);
    drop((input, output));
    let end = observe(&places, &dir, &vmm, &interrupts);
    conclude(&places, &id, end, threads, actor)
}

/// The VMM of a lease that has been handed over, or why there is none.
type Outcome = Result<ProcessHandle, AcquireError>;

/// Makes the lease and hands it to the command line; whatever happens, the lease comes back with its lock held.
fn hand_over(
    mut making: Making<'_>,
    places: &Places,
    input: &mut BufReader<File>,
    interrupts: &Interrupts,
) -> Result<(Outcome, OwnedLease, Threads), SuperviseError> {
    let supervisor = own_identity()?;
    let gone = || interrupts.caught().is_some() || is_readable(input.get_ref());
    let made = making.make(places, &supervisor, &gone);
    let outcome = made.and_then(|mut acquired| {
        making.tell(Event::Ready(acquired.ready.clone()));
        if !says_claimed(input) {
            return Err(AcquireError::Abandoned);
        }
        making.claimed(&mut acquired)?;
        Ok(acquired.vmm.into_handle())
    });
    let (lease, threads) = making.into_parts();
    Ok((outcome, lease, threads))
}

/// Waits for the command line's word; its end without the word is a command line that died or gave up.
fn says_claimed(input: &mut BufReader<File>) -> bool {
    let mut line = String::new();
    input.read_line(&mut line).is_ok() && line.trim() == CLAIMED
}

fn own_identity() -> Result<crabbox_core::journal::Process, SuperviseError> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    Ok(teardown::recorded(
        &process::identify(own)?.ok_or(SuperviseError::NoSelf)?,
    ))
}

/// Watches a lease whose supervisor has died.
pub fn watch(places: &Places, id: &LeaseId) -> Result<(), SuperviseError> {
    let interrupts = Interrupts::install()?;
    let supervisor = own_identity()?;
    let dir = LeaseDir::at(places.lease(id));
    let guard = locks::lease(places, id.as_str(), LOCK_LIMIT)?;
    let Some(mut journal) = journal::JournalFile::open(&dir.journal())? else {
        if !dir.path().exists() {
            // Taken back while we waited; the lock file that we made for it goes again.
            guard.remove_while_held()?;
        }
        return Ok(());
    };
    if let Some(standing) = journal.state().process("supervisor")
        && teardown::identity(standing).is_alive()
    {
        return Ok(());
    }
    let actor = Actor {
        who: Who::Supervisor,
        failpoint: "",
    };
    if journal.state().note(teardown::ENDING).is_some() || !journal.state().is_claimed() {
        drop((journal, guard));
        return conclude(places, id, (End::Unfinished, None), Threads::default(), actor);
    }
    let Some(vmm) = journal.state().process("vmm").map(teardown::identity) else {
        return Ok(());
    };
    let pending = journal.begin(crabbox_core::journal::Step::Supervisor {})?;
    journal.done(pending, Some(supervisor))?;
    let trims = leases::read(&dir)
        .ok()
        .and_then(|stored| trim::resume(&stored.record, journal.state()));
    drop((journal, guard));
    // A console or a forwarder that cannot be taken up again is no reason to leave the lease unwatched.
    let recorder = console::open_pipe(&dir.path().join("console.pipe"))
        .and_then(|pipe| Recorder::start(pipe, &dir.console()));
    let threads = Threads {
        recorder: recorder.ok(),
        names: network::serve_names(&dir.netns()).ok(),
        trims,
    };
    let end = match vmm.open()? {
        Some(handle) => observe(places, &dir, &handle, &interrupts),
        None => (End::MachineGone, None),
    };
    conclude(places, id, end, threads, actor)
}

/// Waits for something that ends the lease.
///
/// The lock of an expired lease comes along: the decision was made under it, so no heartbeat can come in between.
fn observe(
    places: &Places,
    dir: &LeaseDir,
    vmm: &ProcessHandle,
    interrupts: &Interrupts,
) -> (End, Option<FileLock>) {
    let mut look = Instant::now() + LOOK_EVERY;
    loop {
        let left = look.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let mut fds = [
            PollFd::new(vmm, PollFlags::IN),
            PollFd::new(interrupts, PollFlags::IN),
        ];
        if poll(&mut fds, Some(&wait)).is_ok_and(|count| count > 0) {
            let end = if fds[0].revents().is_empty() {
                End::Asked
            } else {
                End::MachineGone
            };
            return (end, None);
        }
        if Instant::now() < look {
            continue;
        }
        look = Instant::now() + LOOK_EVERY;
        match leases::read(dir) {
            Ok(stored) => {
                if let Some(reason) = expired(places, &stored)
                    && let Ok(Some(guard)) = locks::try_lease(places, &stored.record.lease_id)
                    && leases::read(dir).is_ok_and(|stored| expired_now(&stored))
                {
                    return (End::Expired(reason), Some(guard));
                }
            }
            Err(leases::RecordError::Missing { .. }) if !dir.path().exists() => {
                return (End::LeaseGone, None);
            }
            // An unreadable record is left for `cleanup` to report; the machine goes on.
            Err(_) => {}
        }
    }
}

/// Refreshes a lease that is in use; answers why one has expired. In use or not, its time to live is the end.
fn expired(places: &Places, stored: &StoredLease) -> Option<String> {
    // What cannot be looked at is taken for in use: better a lease that lives to its time to live than work that is ended.
    let in_use = match journal::read(&stored.dir.journal()) {
        Ok(Some(journal)) => Watchpoint::of(&stored.record, &journal)
            .is_some_and(|watchpoint| watchpoint.in_use().unwrap_or(true)),
        Ok(None) | Err(_) => true,
    };
    let labels = if in_use {
        activity::renew(places, &stored.dir, &stored.record.lease_id);
        leases::read(&stored.dir).ok()?.record.labels
    } else {
        stored.record.labels.clone()
    };
    match activity::expiry(&labels, clock::unix_seconds()) {
        Verdict::Remove(reason) => Some(reason),
        Verdict::Skip(_) => None,
    }
}

fn expired_now(stored: &StoredLease) -> bool {
    matches!(
        activity::expiry(&stored.record.labels, clock::unix_seconds()),
        Verdict::Remove(_)
    )
}

/// Takes the lease back, unless somebody else is at it or has done it.
fn conclude(
    places: &Places,
    id: &LeaseId,
    (end, guard): (End, Option<FileLock>),
    threads: Threads,
    actor: Actor<'_>,
) -> Result<(), SuperviseError> {
    finish(threads);
    if end == End::LeaseGone {
        return Ok(());
    }
    let guard = match guard {
        Some(guard) => guard,
        None => locks::lease(places, id.as_str(), LOCK_LIMIT)?,
    };
    let lease = OwnedLease::prove(places, id, guard)?;
    let Ok(stored) = leases::read(lease.dir()) else {
        if lease.dir().path().exists() {
            lease.release();
        } else {
            lease.forget()?;
        }
        return Ok(());
    };
    if labels::state(&stored.record.labels) == "released" {
        lease.release();
        return Ok(());
    }
    let extent = if stored.record.delete_on_release {
        Extent::Everything
    } else {
        Extent::KeepDirectory
    };
    // What is left over stays in the journal, where `cleanup` finds and reports it.
    drop(teardown::teardown(places, lease, extent, actor));
    Ok(())
}

/// Ends the lease's threads: names before the namespace goes, trims before the disk does, the console with all that is in its pipe.
fn finish(threads: Threads) {
    drop((threads.names, threads.trims));
    if let Some(recorder) = threads.recorder {
        recorder.finish();
    }
}

/// The last words of a machine that did not come up: its console's, or the VMM's own where it never said any.
fn finish_console(threads: Threads, dir: &LeaseDir) -> Vec<String> {
    finish(threads);
    let console = console::tail(&dir.console(), CONSOLE_LINES);
    if !console.is_empty() {
        return console;
    }
    let log = leases::read(dir)
        .map(|stored| stored.record.log_path)
        .unwrap_or_default();
    console::tail(Path::new(&log), CONSOLE_LINES)
}

/// Whether something can be read, the end of the stream included.
fn is_readable(input: &impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::journal::{Entry, VERSION};
    use crabbox_core::record::LeaseRecord;

    /// A lease that was not touched for longer than its idle limit, with the journal `text`.
    fn idle(home: &std::path::Path, text: &str) -> (Places, StoredLease) {
        let places = Places {
            config: home.join("config"),
            state: home.join("state"),
            cache: home.join("cache"),
        };
        let id = "cbx_0123456789ab";
        let dir = LeaseDir::at(places.leases().join(id));
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.journal(), text).unwrap();
        let now = clock::unix_seconds();
        let labels = [
            ("state", "ready".to_owned()),
            ("created_at", (now - 100).to_string()),
            ("last_touched_at", (now - 100).to_string()),
            ("idle_timeout_secs", "20".to_owned()),
            ("ttl_secs", "3600".to_owned()),
            ("expires_at", (now - 80).to_string()),
        ];
        let record = LeaseRecord {
            lease_id: id.to_owned(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            ..LeaseRecord::default()
        };
        let mut stored = StoredLease::new(dir, record);
        stored.save().unwrap();
        (places, stored)
    }

    #[test]
    fn a_lease_that_cannot_be_looked_at_is_taken_for_in_use() {
        let home = tempfile::tempdir().unwrap();
        let open = Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        let whole = serde_json::to_string(&open).unwrap() + "\n";
        let (places, stored) = idle(home.path(), &whole);
        assert!(expired(&places, &stored).is_some(), "nobody uses it");
        let (places, stored) = idle(home.path(), "garbage\ngarbage\n");
        assert_eq!(expired(&places, &stored), None);
    }
}
