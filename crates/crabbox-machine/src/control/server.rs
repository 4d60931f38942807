//! The server of a supervisor's control socket: a thread that serves one request after the other, each within
//! one deadline.
//!
//! It accepts only processes of the same user. The thread must never touch the lease: it changes the log
//! level, reports what the supervisor is doing, and passes requests to end or to take the lease to the thread
//! that decides.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crabbox_core::fault;
use crabbox_host::clock;
use crabbox_host::files::remove_if_there;
use crabbox_host::private_dir::{PrivateDir, PrivateDirError};
use crabbox_host::unix::{self, DeadlineStream, SocketError};
use crabbox_store::places::LeaseDir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{LIMIT, Phase, Pong, Reply, Verb};
use crate::lifecycle::supervisor_log::SupervisorLog;
use crate::log_filter::LogFilter;

/// Pause after a failed accept, for example when there is no file descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a supervisor has no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Other users can access the lease's directory.
    #[error(transparent)]
    Directory(#[from] PrivateDirError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The socket cannot be renamed to its final path.
    #[error("cannot create the control socket")]
    Place(#[source] io::Error),
    /// The thread cannot be started.
    #[error("cannot serve the control socket")]
    Thread(#[source] io::Error),
}

/// State shared between the supervisor and its control thread.
#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    log: SupervisorLog,
    seat: Mutex<Handover>,
    pool_used: AtomicBool,
    gave_way: AtomicBool,
}

/// The place of the client that takes a pool member. It holds at most one.
#[derive(Debug, Default)]
enum Handover {
    /// The lease cannot be taken.
    #[default]
    Closed,
    /// The lease is being made for a pool and has not been taken.
    Ahead,
    /// The lease can be taken by the first client that asks for this pool.
    Open(String),
    /// This client has it.
    Taken(UnixStream),
}

impl Shared {
    fn seat(&self) -> MutexGuard<'_, Handover> {
        // A thread that panicked while it held the lock has still left a complete value.
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the seat to `stream` if it is open for `pool`; otherwise returns the stream.
    fn take_seat(&self, pool: &str, stream: UnixStream) -> Result<(), UnixStream> {
        let mut seat = self.seat();
        if matches!(&*seat, Handover::Open(key) if key == pool) {
            *seat = Handover::Taken(stream);
            return Ok(());
        }
        Err(stream)
    }

    /// Closes the seat, unless a client has it or is about to get it.
    fn give_way(&self) -> bool {
        let mut seat = self.seat();
        let is_nobodys = matches!(&*seat, Handover::Ahead | Handover::Open(_));
        if is_nobodys {
            *seat = Handover::Closed;
            self.gave_way.store(true, Ordering::Release);
        }
        is_nobodys
    }
}

/// The requests to this supervisor, as seen by the deciding thread. Readable in poll(2) after a request to
/// end, and stays readable.
#[derive(Debug)]
pub(crate) struct Control {
    shared: Arc<Shared>,
    asked: PipeReader,
    /// The control thread's end of the pipe. It keeps the pipe open, and therefore silent, when there is no
    /// control thread.
    wish: PipeWriter,
    taken: PipeReader,
    /// The control thread's end of the second pipe, likewise.
    bell: PipeWriter,
    service: Option<Service>,
}

/// The thread and its socket; both end when this is dropped.
#[derive(Debug)]
struct Service {
    path: PathBuf,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // The file may be gone with its lease.
        std::fs::remove_file(&self.path).ok();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too, which is all that we want.
            thread.join().ok();
        }
    }
}

impl Control {
    /// No client can connect yet.
    pub(crate) fn new(log: &SupervisorLog) -> io::Result<Self> {
        let (asked, wish) = io::pipe()?;
        let (taken, bell) = io::pipe()?;
        Ok(Self {
            shared: Arc::new(Shared {
                phase: AtomicU8::new(Phase::Making as u8),
                log: log.clone(),
                seat: Mutex::default(),
                pool_used: AtomicBool::new(false),
                gave_way: AtomicBool::new(false),
            }),
            asked,
            wish,
            taken,
            bell,
            service: None,
        })
    }

    /// Starts to listen in the lease's directory, whose lock the caller holds. Replaces a socket that a
    /// killed supervisor left. A failure does not affect the lease.
    pub(crate) fn listen(&mut self, dir: &LeaseDir) {
        if let Err(error) = self.serve(dir) {
            tracing::warn!("cannot serve the control socket: {}", fault::chain(&error));
        }
    }

    fn serve(&mut self, dir: &LeaseDir) -> Result<(), ControlError> {
        let path = dir.supervisor_socket();
        let listener = bind(&path)?;
        listener.set_nonblocking(true).map_err(ControlError::Thread)?;
        let (stopped, stop) = io::pipe().map_err(ControlError::Thread)?;
        let ears = ControlHandles {
            shared: Arc::clone(&self.shared),
            wish: self.wish.try_clone().map_err(ControlError::Thread)?,
            bell: self.bell.try_clone().map_err(ControlError::Thread)?,
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, stopped.as_fd(), &ears))
            .map_err(ControlError::Thread)?;
        self.service = Some(Service {
            path,
            stop: Some(stop),
            thread: Some(thread),
        });
        Ok(())
    }

    /// Sets the activity that the supervisor reports.
    pub(crate) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Release);
    }

    /// Marks the lease as one that is being made for a pool: until it is finished, it gives way to any
    /// request for its room.
    pub(crate) fn reserve(&self) {
        *self.shared.seat() = Handover::Ahead;
    }

    /// Whether it was asked to end to make room for another lease.
    pub(crate) fn gave_way(&self) -> bool {
        self.shared.gave_way.load(Ordering::Acquire)
    }

    /// Offers the lease to the first client that asks for `pool`.
    pub(crate) fn offer(&self, pool: &str) {
        *self.shared.seat() = Handover::Open(pool.to_owned());
        self.enter(Phase::Pooled);
    }

    /// Withdraws the offer; returns the client that has taken the lease, if there is one.
    pub(crate) fn taker(&self) -> Option<UnixStream> {
        let seat = std::mem::take(&mut *self.shared.seat());
        self.enter(Phase::Making);
        match seat {
            Handover::Taken(stream) => {
                // Its bell has rung, or is about to, and must not ring for the next one.
                (&self.taken).read_exact(&mut [0]).ok();
                Some(stream)
            }
            Handover::Open(_) | Handover::Ahead | Handover::Closed => None,
        }
    }

    /// Readable in poll(2) once a client has taken the offered lease.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.taken.as_fd()
    }

    /// Whether a lease of the pool was taken since this one joined it.
    pub(crate) fn is_pool_used(&self) -> bool {
        self.shared.pool_used.load(Ordering::Acquire)
    }

    /// Whether an end was requested.
    pub(crate) fn is_asked(&self) -> bool {
        is_readable(self.asked.as_fd(), Some(Duration::ZERO))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}

/// A listener at `path` that only this user can connect to. The socket gets its mode before its final name.
fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let dir = path.parent().unwrap_or(path);
    PrivateDir::open(dir)?;
    let making = path.with_extension("new");
    remove_if_there(&making).map_err(ControlError::Place)?;
    let listener = unix::bind(&making)?;
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o600)).map_err(ControlError::Place)?;
    std::fs::rename(&making, path).map_err(ControlError::Place)?;
    Ok(listener)
}

/// What the control thread passes to the deciding thread.
struct ControlHandles {
    shared: Arc<Shared>,
    wish: PipeWriter,
    bell: PipeWriter,
}

fn accept(listener: &UnixListener, stopped: BorrowedFd<'_>, ears: &ControlHandles) {
    let stop = || is_readable(stopped, Some(Duration::ZERO));
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::from_borrowed_fd(stopped, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        match listener.accept() {
            Ok((stream, _)) => converse(stream, &stop, ears),
            // The client has disconnected already, or no descriptor is free: temporary, but do not retry at
            // once.
            Err(_) => clock::nap(PAUSE),
        }
    }
}

/// Serves one client: one request, one reply, and then carries out the request.
fn converse(stream: UnixStream, stop: &dyn Fn() -> bool, ears: &ControlHandles) {
    match unix::is_own_peer(&stream) {
        Ok(true) => {}
        Ok(false) => return tracing::warn!("rejected a control connection of another user"),
        Err(error) => return tracing::warn!("cannot determine the peer of a control connection: {error}"),
    }
    // An accepted socket should not inherit the listener's non-blocking mode, but on some kernels it did.
    stream.set_nonblocking(false).ok();
    let mut stream = DeadlineStream::new(stream).stopped_by(stop);
    stream.set_limit(LIMIT);
    let (reply, ends) = match super::read::<Verb>(&mut stream) {
        Ok(Verb::Claim { pool }) => return give_away(stream, &pool, ears),
        Ok(verb) => {
            tracing::debug!(?verb, "control request");
            let reply = reply(&verb, &ears.shared);
            let ends = reply == Reply::Done && matches!(verb, Verb::End | Verb::GiveWay);
            (reply, ends)
        }
        Err(error) => {
            let why = fault::chain(&error);
            tracing::debug!("refused a control request: {why}");
            (Reply::Refused { why }, false)
        }
    };
    // The request counts even if the client left without reading its reply.
    if let Ok(line) = super::line(reply) {
        stream.write_all(&line).ok();
    }
    if ends {
        tracing::info!("end requested");
        (&ears.wish).write_all(b"e").ok();
    }
}

/// Seats the client that asks for the lease, and replies only afterwards, so that no second client gets the
/// same reply.
fn give_away(stream: DeadlineStream<'_>, pool: &str, ears: &ControlHandles) {
    let answer = |stream: &mut dyn io::Write, reply| {
        super::line(reply)
            .map_err(io::Error::from)
            .and_then(|line| stream.write_all(&line))
    };
    let Ok(mut stream) = stream.into_inner() else {
        return;
    };
    let Ok(seated) = stream.try_clone() else { return };
    if ears.shared.take_seat(pool, seated).is_err() {
        let why = "it is not available in this pool".to_owned();
        // The line is short enough for the socket's buffer, so a client that does not read it cannot block
        // us.
        answer(&mut stream, Reply::Refused { why }).ok();
        return;
    }
    tracing::info!("taken from the pool");
    // If the client left without reading the reply, the deciding thread sees that its connection has ended.
    answer(&mut stream, Reply::Yours).ok();
    (&ears.bell).write_all(b"t").ok();
}

fn reply(verb: &Verb, shared: &Shared) -> Reply {
    match verb {
        Verb::Ping => Reply::Pong(Pong {
            pid: std::process::id(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            phase: match shared.phase.load(Ordering::Acquire) {
                phase if phase == Phase::Making as u8 => Phase::Making,
                phase if phase == Phase::Watching as u8 => Phase::Watching,
                phase if phase == Phase::Pooled as u8 => Phase::Pooled,
                _ => Phase::Ending,
            },
            log: shared.log.filter(),
        }),
        Verb::LogLevel { filter } => match filter.parse::<LogFilter>() {
            Ok(filter) => {
                shared.log.set_filter(filter);
                Reply::Done
            }
            Err(error) => Reply::Refused {
                why: error.to_string(),
            },
        },
        Verb::PoolUsed => {
            shared.pool_used.store(true, Ordering::Release);
            Reply::Done
        }
        Verb::End => Reply::Done,
        Verb::GiveWay => {
            if shared.give_way() {
                Reply::Done
            } else {
                Reply::Refused {
                    why: "it is in use or being handed over".to_owned(),
                }
            }
        }
        // `converse` handles this request itself, because it needs the connection.
        Verb::Claim { .. } => Reply::Refused {
            why: "it is not available".to_owned(),
        },
    }
}

/// Whether `fd` becomes readable within `limit`; end of file counts.
fn is_readable(fd: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, limit.as_ref()).is_ok_and(|count| count > 0)
}
