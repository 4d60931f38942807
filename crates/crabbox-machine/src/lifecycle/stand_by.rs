//! A pool member in its supervisor: it waits until a client takes it, and is then handed over to that client.
//!
//! ```text
//!                            asked for ───> request read ──> locks ──> labels, promises ──> ready ──> claimed ──> watching
//!  (ready) ──> on offer ──────┘   ^             │ gone         │ ending, busy     │ gone: everything goes
//!                 │               └─────────────┴──────────────┘                  v
//!                 │ machine gone, asked to end, too old                       taken back
//!                 └────────────────────────────────────────────────────────────> ^
//! ```
//! No lock is held while it waits. It must never be given to two clients, or return to the pool after a
//! client has been sent the data to enter it.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crabbox_core::fault::{self, Fault};
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::lock::FileLock;
use crabbox_host::process::ProcessHandle;
use crabbox_host::signals::Interrupts;
use crabbox_host::unix::DeadlineStream;
use crabbox_store::journal::JournalFile;
use crabbox_store::leases::{self, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::server::Control;
use crate::failpoint::{self, Phase, Who};
use crate::lease::allocate;
use crate::lease::ownership::OwnedLease;
use crate::lifecycle::acquire::error::AcquireError;
use crate::lifecycle::handover::{Promised, says_claimed};
use crate::lifecycle::teardown::ENDING;
use crate::lifecycle::watch::{End, LOOK_EVERY};
use crate::protocol::{self, Event, Failure, Ready};
use crate::request::{AcquireRequest, Pool};

/// How long a client that takes the member may need to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How long another process may hold the lease while it is being taken.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// A finished lease, from here to its end.
pub(super) struct Life<'a> {
    /// The state directory and other places.
    pub(super) places: &'a Places,
    /// The lease.
    pub(super) id: &'a LeaseId,
    /// Its directory.
    pub(super) dir: &'a LeaseDir,
    /// Its VMM.
    pub(super) vmm: &'a ProcessHandle,
    /// The signals of this process.
    pub(super) interrupts: &'a Interrupts,
    /// Requests from the control socket.
    pub(super) control: &'a Control,
}

/// A lease that waits.
pub(super) struct Waiting<'a> {
    life: &'a Life<'a>,
    /// The request from which it was made.
    pub(super) made_of: &'a AcquireRequest,
    pool: &'a Pool,
    ready: &'a Ready,
}

/// The outcome of waiting.
pub(super) enum PoolOutcome {
    /// It is claimed, with this request.
    Taken(Box<AcquireRequest>),
    /// It ends.
    Ends(End),
    /// Its client has gone away after learning how to enter it, so no other client may have it.
    FailedHandover(Box<FailedHandover>),
}

/// A lease that was being handed over and is torn down instead. The client is informed only afterwards,
/// because until then the lease occupies the room that the client will request next.
pub(super) struct FailedHandover {
    /// The lease's lock, under which this was decided.
    pub(super) lock: FileLock,
    /// The message for the client.
    pub(super) word: FinalReply,
}

/// The final message to the client that was to get a lease.
pub(super) struct FinalReply {
    output: File,
    failure: Failure,
}

impl FinalReply {
    /// Sends the reason for the refusal, and what could not be removed.
    pub(super) fn tell(mut self, leftovers: Vec<String>) {
        self.failure.leftovers = leftovers;
        tell(&self.output, &Event::Failed(self.failure));
    }
}

/// The outcome of a client's request for it.
enum HandoverOutcome {
    /// The client has it.
    Done(Box<AcquireRequest>),
    /// It is unchanged.
    Spared,
    /// It is torn down.
    FailedHandover(Box<FailedHandover>),
}

impl<'a> Waiting<'a> {
    /// The lease that was made from `made_of` for `pool`. `ready` says how it is entered, except for the
    /// shared connection.
    pub(super) fn new(
        life: &'a Life<'a>,
        made_of: &'a AcquireRequest,
        pool: &'a Pool,
        ready: &'a Ready,
    ) -> Self {
        Self {
            life,
            made_of,
            pool,
            ready,
        }
    }

    /// Waits until it is taken or ends.
    pub(super) fn stand_by(&self) -> PoolOutcome {
        let too_old = Instant::now() + self.pool.max_age;
        tracing::info!(pool = self.pool.key, "waiting in the pool");
        loop {
            self.life.control.offer(&self.pool.key);
            if let Some(end) = self.wait(too_old) {
                return PoolOutcome::Ends(end);
            }
            // From here on nobody but this client can get it.
            if let Some(stream) = self.life.control.taker() {
                match self.hand_over(stream) {
                    HandoverOutcome::Done(request) => return PoolOutcome::Taken(request),
                    HandoverOutcome::Spared => continue,
                    HandoverOutcome::FailedHandover(spoilt) => return PoolOutcome::FailedHandover(spoilt),
                }
            }
            if Instant::now() >= too_old {
                return PoolOutcome::Ends(End::Expired("too long in the pool".to_owned()));
            }
        }
    }

    /// Waits for a client or the end of its time; returns the reason if it ends at once.
    fn wait(&self, too_old: Instant) -> Option<End> {
        let left = too_old.saturating_duration_since(Instant::now()).min(LOOK_EVERY);
        let wait = Timespec::try_from(left).ok();
        let mut fds = [
            PollFd::new(self.life.vmm, PollFlags::IN),
            PollFd::new(self.life.interrupts, PollFlags::IN),
            PollFd::new(self.life.control, PollFlags::IN),
            PollFd::from_borrowed_fd(self.life.control.bell(), PollFlags::IN),
        ];
        // Treat an interrupted poll as one in which nothing happened.
        poll(&mut fds, wait.as_ref()).ok();
        if !fds[0].revents().is_empty() {
            return Some(End::MachineGone);
        }
        if self.life.interrupts.caught().is_some() || self.life.control.is_asked() {
            return Some(End::Asked);
        }
        self.life.dir.is_gone().then_some(End::LeaseGone)
    }

    fn hand_over(&self, stream: UnixStream) -> HandoverOutcome {
        let mut input = BufReader::new(DeadlineStream::new(stream));
        input.get_ref().set_limit(REQUEST_LIMIT);
        let request = match protocol::read_request(&mut input) {
            Ok(request) => request,
            Err(error) => {
                tracing::info!(
                    "invalid request of the client that claimed the lease: {}",
                    fault::chain(&error)
                );
                // Without a reply the client would take us for dead and tear the lease down.
                if let Ok(stream) = input.into_inner().into_inner() {
                    tell(&stream, &failed(&error));
                }
                return HandoverOutcome::Spared;
            }
        };
        let Ok((input, output)) = input.into_inner().into_inner().and_then(both_ways) else {
            return HandoverOutcome::Spared;
        };
        let mut input = BufReader::new(input);
        let hit = |phase| failpoint::hit(&request.failpoint, Who::Supervisor, "take", phase);
        hit(Phase::Begun);
        let mut taken = match self.take(&request) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::info!("cannot hand over the lease: {}", fault::chain(&error));
                tell(&output, &failed(&error));
                return HandoverOutcome::Spared;
            }
        };
        hit(Phase::Made);
        let given = taken.give(self, &request, &output, &mut input, &hit);
        if let Err(error) = given {
            tracing::error!("handover failed: {}", fault::chain(&error));
            return HandoverOutcome::FailedHandover(Box::new(FailedHandover {
                lock: taken.lease.into_lock(),
                word: FinalReply {
                    failure: Failure::of(&error, Vec::new(), Vec::new()),
                    output,
                },
            }));
        }
        taken.lease.release();
        tell(&output, &Event::Watching);
        HandoverOutcome::Done(Box::new(request))
    }

    /// Locks the lease and reads its record again.
    fn take(&self, request: &AcquireRequest) -> Result<Taken, AcquireError> {
        if request.lease_id != self.life.id.as_str() {
            return Err(AcquireError::OtherLease {
                id: self.life.id.to_string(),
            });
        }
        let (places, id) = (self.life.places, self.life.id.as_str());
        // Slugs are handed out under the allocation lock.
        let (allocation, guard) = if request.slug.is_some() {
            let (allocation, guard) = locks::allocation_and_lease(places, id, LOCK_LIMIT)?;
            (Some(allocation), guard)
        } else {
            (None, locks::lease(places, id, LOCK_LIMIT)?)
        };
        let lease = OwnedLease::prove(self.life.places, self.life.id, guard)?;
        let journal = JournalFile::open(&lease.dir().journal())?.ok_or(AcquireError::Ending)?;
        if journal.state().note(ENDING).is_some() {
            return Err(AcquireError::Ending);
        }
        let stored = leases::read(lease.dir())?;
        Ok(Taken {
            lease,
            journal,
            stored,
            allocation,
        })
    }
}

/// Sends an event to the client; if the client has gone away, its end of input shows it.
fn tell(mut output: impl std::io::Write, event: &Event) {
    output.write_all(&protocol::line(event).unwrap_or_default()).ok();
}

fn failed(error: &dyn Fault) -> Event {
    Event::Failed(Failure::of(error, Vec::new(), Vec::new()))
}

fn both_ways(stream: UnixStream) -> std::io::Result<(File, File)> {
    let other = stream.try_clone()?;
    Ok((
        File::from(OwnedFd::from(stream)),
        File::from(OwnedFd::from(other)),
    ))
}

/// A lease that is being handed to a client.
struct Taken {
    lease: OwnedLease,
    journal: JournalFile,
    stored: StoredLease,
    allocation: Option<FileLock>,
}

impl Taken {
    /// Sets its record, tells the client how to enter it, and waits for the claim.
    fn give(
        &mut self,
        waiting: &Waiting<'_>,
        request: &AcquireRequest,
        output: &File,
        input: &mut BufReader<File>,
        hit: &dyn Fn(Phase),
    ) -> Result<(), AcquireError> {
        self.relabel(waiting, request)?;
        drop(self.allocation.take());
        hit(Phase::Done);
        let promised = Promised::make(
            &mut self.journal,
            &self.stored.record,
            waiting.life.places,
            request,
        )?;
        let record = &self.stored.record;
        let allocated = Event::Allocated {
            slug: record.slug.clone(),
            name: record.name.clone(),
        };
        tell(output, &allocated);
        let ready = Event::Ready(Ready {
            control: promised.control.clone(),
            // The client did not wait for these stages.
            guest_stages: Vec::new(),
            ..waiting.ready.clone()
        });
        tell(output, &ready);
        let Life {
            control,
            interrupts,
            vmm,
            ..
        } = waiting.life;
        if !says_claimed(input, control, interrupts, vmm) {
            return Err(AcquireError::Abandoned);
        }
        promised.keep(&mut self.journal, &mut self.stored, request)
    }

    /// Sets the record to what it would be if the lease were made for `request` now. What its machine was
    /// made with stays.
    fn relabel(&mut self, waiting: &Waiting<'_>, request: &AcquireRequest) -> Result<(), AcquireError> {
        let made_of = waiting.made_of;
        let now = AcquireRequest {
            ssh_user: made_of.ssh_user.clone(),
            ssh_port: made_of.ssh_port,
            work_root: made_of.work_root.clone(),
            network: made_of.network.clone(),
            ..request.clone()
        };
        let record = &mut self.stored.record;
        if request.slug.is_some() {
            let taken = allocate::slugs(waiting.life.places)?;
            let is_taken = |slug: &str| slug != record.slug && taken.contains(slug);
            record.slug = allocate::choose_slug(request, waiting.life.id, is_taken)?.to_string();
        }
        let (seconds, nanoseconds) = clock::unix_now();
        let mut labels = allocate::first_labels(&now, waiting.life.id, &record.slug, &record.name, seconds);
        labels::set_state(&mut labels, &LeaseState::Running);
        if let Some(method) = record.labels.get("disk_method") {
            labels.insert("disk_method".to_owned(), method.clone());
        }
        record.labels = labels;
        record.delete_on_release = request.delete_on_release;
        record.updated_at = timestamp::rfc3339_nano(seconds, nanoseconds);
        Ok(self.stored.save()?)
    }
}
