//! The process of a scheduler's job: waits for the one request that is meant for it, and then becomes the
//! supervisor of that lease.
//!
//! It stays in the foreground, so that the job lasts exactly as long as the lease. It must never make a lease
//! for a request that is not bound to this job, this lease and this submission, nor more than one lease.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::files::{self, FileError};
use crabbox_host::signals::Interrupts;
use crabbox_host::unix::{self, DeadlineStream, SocketError};
use crabbox_host::wait::{Ready, wait};
use crabbox_store::places::Places;
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use crate::control::client::ReplyError;
use crate::control::{self, LIMIT, Reply};
use crate::lifecycle::supervise::{self, SuperviseError, logged};
use crate::lifecycle::supervisor_log::SupervisorLog;
use crate::protocol::{self, Event, Failure, RequestError};
use crate::request::{AcquireRequest, Job};

/// The hidden command that runs this program as the process of a job.
pub const HOLD: &str = "__hold";

/// The longest time that a job waits for its request. A job that the scheduler started a second time on
/// another host ends after that.
pub const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Pause between two attempts to reach the process of a job.
const AGAIN: Duration = Duration::from_millis(50);

/// What a client must know about a job to prove that its request is meant for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCredentials {
    /// The number of the job.
    pub job: u32,
    /// The lease that the job was submitted for.
    pub lease: LeaseId,
    /// The owner of the lease.
    pub owner: String,
    /// Random, drawn at submission: the scheduler may reuse job numbers after losing its state.
    pub nonce: String,
}

/// The parameters of a job's process.
#[derive(Debug, Clone)]
pub struct Held {
    /// What a request must name.
    pub credentials: JobCredentials,
    /// The scheduler's name of this host.
    pub node: String,
    /// How long it waits, [`LONGEST_WAIT`] at most.
    pub wait: Duration,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It had a lease, which has ended.
    Ended,
    /// Its lease was not made, or its client gave it up.
    NotMade,
}

/// Why a job has no lease.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// No request came in time.
    #[error("job {job} received no request for lease {lease} within {} s", waited.as_secs())]
    NoRequest {
        /// The job.
        job: u32,
        /// Its lease.
        lease: LeaseId,
        /// How long it waited.
        waited: Duration,
    },
    /// The directory for its socket cannot be prepared.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Waiting for the request failed.
    #[error("cannot wait for the request of a lease")]
    Wait(#[source] io::Error),
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The lease cannot be made or watched.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
}

impl Fault for HoldError {
    fn kind(&self) -> Kind {
        match self {
            Self::Supervise(error) => error.kind(),
            _ => Kind::Unavailable,
        }
    }
}

/// Waits for the request of a job, makes its lease and watches it to its end. Takes over this process
/// including its log.
pub fn run(places: &Places, held: &Held) -> Result<Outcome, HoldError> {
    // The gateway starts a job without `CRABBOX_LOG`, so the default filter applies.
    let log = SupervisorLog::install(None);
    logged(hold(places, held, &log))
}

fn hold(places: &Places, held: &Held, log: &SupervisorLog) -> Result<Outcome, HoldError> {
    let (stream, request) = admit(places, held)?;
    let output = File::from(OwnedFd::from(stream.try_clone().map_err(HoldError::Wait)?));
    let input = BufReader::new(File::from(OwnedFd::from(stream)));
    if !is_bound(&request, held) {
        let refused = Failure::of(&WrongLease, Vec::new(), Vec::new());
        let line = protocol::line(&Event::Failed(refused)).unwrap_or_default();
        // If the client has gone away, it does not need the reason.
        (&output).write_all(&line).ok();
        return Ok(Outcome::NotMade);
    }
    let was_theirs = supervise::make_requested(&request, input, output, log)?;
    Ok(if was_theirs {
        Outcome::Ended
    } else {
        Outcome::NotMade
    })
}

/// A request whose client proved that it knows this job, but which describes another lease.
#[derive(Debug, thiserror::Error)]
#[error("the request is not for the lease of this job")]
struct WrongLease;

impl Fault for WrongLease {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

fn is_bound(request: &AcquireRequest, held: &Held) -> bool {
    let job = Job {
        id: held.credentials.job,
        node: held.node.clone(),
    };
    request.lease_id == held.credentials.lease.as_str()
        && request.job == Some(job)
        && request.owner.as_ref().map(|owner| &owner.name) == Some(&held.credentials.owner)
        && request.start.is_boot()
        && request.pool.is_none()
}

/// Waits for the one request that is meant for this job; returns its connection and the request. Afterwards
/// the socket is gone, so no other client finds it.
fn admit(places: &Places, held: &Held) -> Result<(UnixStream, AcquireRequest), HoldError> {
    let job = held.credentials.job;
    files::create_private_dir(&places.jobs())?;
    let path = places.job_socket(job);
    // Remove the socket of an earlier job with this number: the scheduler runs only one at a time.
    files::remove_tree(&path)?;
    let listener = unix::bind(&path)?;
    let waited = held.wait.min(LONGEST_WAIT);
    let admitted = first_bound(&listener, held, Instant::now() + waited);
    files::remove_tree(&path)?;
    admitted?.ok_or(HoldError::NoRequest {
        job,
        lease: held.credentials.lease.clone(),
        waited,
    })
}

/// Answers each client until one knows this job. A wrong client must not cost the right one its lease, and a
/// client that falls silent must not hold the job.
fn first_bound(
    listener: &UnixListener,
    held: &Held,
    until: Instant,
) -> Result<Option<(UnixStream, AcquireRequest)>, HoldError> {
    while wait(listener.as_fd(), PollFlags::IN, None, Some(until)).map_err(HoldError::Wait)? == Ready::First {
        let (stream, _) = listener.accept().map_err(HoldError::Wait)?;
        if !unix::is_own_peer(&stream).map_err(HoldError::Wait)? {
            continue;
        }
        let mut stream = DeadlineStream::new(stream);
        stream.set_limit(LIMIT);
        let is_right = control::read::<JobCredentials>(&mut stream)
            .is_ok_and(|credentials| credentials == held.credentials);
        let reply = if is_right {
            Reply::Yours
        } else {
            Reply::Refused {
                why: "it waits for another request".to_owned(),
            }
        };
        let line = control::line(reply).map_err(io::Error::from);
        let sent = stream.write_all(&line.map_err(HoldError::Wait)?);
        if !is_right || sent.is_err() {
            continue;
        }
        stream.set_limit(LIMIT);
        // The reader may read ahead, but the client sends nothing after its request until it has received an
        // event, so nothing is lost.
        match protocol::read_request(&mut BufReader::new(&mut stream)) {
            Ok(request) => {
                let stream = stream.into_inner().map_err(HoldError::Wait)?;
                return Ok(Some((stream, request)));
            }
            Err(RequestError::Read(_) | RequestError::Cut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Connects to the process of the job that `credentials` names. The process may not have started yet, so this waits
/// until `until`, or until an interrupt. From then on the connection carries the acquisition protocol.
pub(super) fn knock(
    places: &Places,
    credentials: &JobCredentials,
    until: Instant,
    interrupts: &Interrupts,
) -> Result<UnixStream, ReplyError> {
    loop {
        let absent = match reach(places, credentials) {
            Err(error @ ReplyError::NoJob(_)) => error,
            reached => return reached,
        };
        // The job accepts one request, and from then on the lease's directory exists.
        if places.lease(&credentials.lease).exists() {
            return Err(ReplyError::JobTaken);
        }
        let now = Instant::now();
        if now >= until || interrupts.caught().is_some() {
            return Err(absent);
        }
        let next = Some(until.min(now + AGAIN));
        wait(interrupts.as_fd(), PollFlags::IN, None, next).map_err(ReplyError::Send)?;
    }
}

fn reach(places: &Places, credentials: &JobCredentials) -> Result<UnixStream, ReplyError> {
    let path = places.job_socket(credentials.job);
    let stream = unix::connect_to_own(&path).map_err(|error| {
        if error.is_absent() {
            ReplyError::NoJob(path.clone())
        } else {
            ReplyError::Socket(error)
        }
    })?;
    let mut stream = DeadlineStream::new(stream);
    stream.set_limit(LIMIT);
    let line = control::line(credentials).map_err(|error| ReplyError::Send(error.into()))?;
    stream.write_all(&line).map_err(ReplyError::Send)?;
    match control::read(&mut stream).map_err(ReplyError::Reply)? {
        Reply::Yours => stream.into_inner().map_err(ReplyError::Send),
        Reply::Refused { why } => Err(ReplyError::Refused { why }),
        reply => Err(ReplyError::Refused {
            why: format!("it said {reply:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            credentials: JobCredentials {
                job: 7,
                lease: LeaseId::parse("cbx_0123456789ab").unwrap(),
                owner: "alice".to_owned(),
                nonce: "right".to_owned(),
            },
            node: "h1".to_owned(),
            wait: Duration::from_secs(20),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Sends the request that a client sends once it has been let in.
    fn ask(stream: &mut UnixStream) {
        let request = crate::protocol::tests::request();
        stream.write_all(&protocol::opening(&request).unwrap()).unwrap();
    }

    #[test]
    fn only_who_knows_the_job_gets_in_and_only_once() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let held = held();
        let interrupts = Interrupts::install().unwrap();
        std::thread::scope(|scope| {
            let admitted = scope.spawn(|| admit(&places, &held));
            let reach = |wanted: &JobCredentials| knock(&places, wanted, soon(), &interrupts);
            let wrong = [
                JobCredentials {
                    nonce: "wrong".to_owned(),
                    ..held.credentials.clone()
                },
                JobCredentials {
                    owner: "bob".to_owned(),
                    ..held.credentials.clone()
                },
                JobCredentials {
                    lease: LeaseId::parse("cbx_0123456789ac").unwrap(),
                    ..held.credentials.clone()
                },
            ];
            for wrong in &wrong {
                assert!(
                    matches!(reach(wrong), Err(ReplyError::Refused { .. })),
                    "{wrong:?}"
                );
            }
            // Neither a client that disconnects nor one that stays silent keeps others out.
            drop(reach(&held.credentials).unwrap());
            let silent = reach(&held.credentials).unwrap();
            // Keep trying: while the silent client has its turn, `reach` fails at the limit of the control
            // socket.
            let turn =
                crabbox_host::clock::poll_until(Duration::from_secs(20), || match reach(&held.credentials) {
                    Err(ReplyError::Reply(_)) => None,
                    reached => Some(reached),
                });
            ask(&mut turn.unwrap().unwrap());
            assert!(admitted.join().unwrap().is_ok());
            drop(silent);
            let again = knock(&places, &held.credentials, Instant::now(), &interrupts);
            assert!(matches!(again, Err(ReplyError::NoJob(_))), "{again:?}");
            // Once the lease directory exists, a late client is refused without waiting.
            std::fs::create_dir_all(places.lease(&held.credentials.lease)).unwrap();
            let again = reach(&held.credentials);
            assert!(matches!(again, Err(ReplyError::JobTaken)), "{again:?}");
        });
        assert!(!places.job_socket(7).exists());
    }

    #[test]
    fn a_job_whose_process_is_on_its_way_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let held = held();
        let interrupts = Interrupts::install().unwrap();
        std::thread::scope(|scope| {
            let (places, held) = (&places, &held);
            let late = scope.spawn(move || {
                crabbox_host::clock::nap(Duration::from_millis(300));
                admit(places, held)
            });
            ask(&mut knock(places, &held.credentials, soon(), &interrupts).unwrap());
            assert!(late.join().unwrap().is_ok());
        });
        // After an interrupt, `knock` does not wait for the job.
        interrupts.asker().unwrap().ask();
        let given_up = knock(&places, &held.credentials, soon(), &interrupts);
        assert!(matches!(given_up, Err(ReplyError::NoJob(_))), "{given_up:?}");
    }

    #[test]
    fn a_job_that_nobody_asks_is_over_and_leaves_no_socket() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let held = Held {
            wait: Duration::ZERO,
            ..held()
        };
        let error = admit(&places, &held).unwrap_err();
        assert!(matches!(error, HoldError::NoRequest { job: 7, .. }) && error.kind() == Kind::Unavailable);
        assert!(!places.job_socket(7).exists());
    }

    #[test]
    fn a_request_for_another_lease_owner_job_or_host_is_not_bound() {
        let held = held();
        let mut right = crate::protocol::tests::request();
        right.lease_id = held.credentials.lease.to_string();
        right.job = Some(Job {
            id: 7,
            node: "h1".to_owned(),
        });
        right.owner = Some(crate::request::Owner {
            name: "alice".to_owned(),
            public_key: String::new(),
            quota: crabbox_core::admission::Quota {
                max_leases: 0,
                max_memory_mib: 0,
            },
        });
        right.pool = None;
        right.start = crate::request::Start::Boot;
        assert!(is_bound(&right, &held));
        let but = |change: fn(&mut AcquireRequest)| {
            let mut request = right.clone();
            change(&mut request);
            is_bound(&request, &held)
        };
        assert!(!but(|request| request.lease_id = "cbx_0123456789ac".to_owned()));
        assert!(!but(|request| request.job = None));
        assert!(!but(|request| request.owner = None));
        assert!(!but(|request| {
            if let Some(owner) = &mut request.owner {
                owner.name = "bob".to_owned();
            }
        }));
        assert!(!but(|request| {
            request.start = crate::request::Start::Freeze {
                dir: "/t".into(),
                token: String::new(),
            };
        }));
        assert!(!but(|request| {
            request.job = Some(Job {
                id: 7,
                node: "h2".to_owned(),
            });
        }));
        assert!(!but(|request| {
            request.job = Some(Job {
                id: 8,
                node: "h1".to_owned(),
            });
        }));
    }
}
