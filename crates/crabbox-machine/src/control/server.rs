//! The supervisor's side: a thread that serves one request after the other, each within one deadline.
//!
//! Only processes of this user are listened to. The thread must never touch the lease: it turns the log up or down, says what
//! the supervisor is at, and passes a wish to end on to the thread that decides.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crabbox_core::fault;
use crabbox_host::clock;
use crabbox_host::private_dir::{PrivateDir, PrivateDirError};
use crabbox_host::unix::{self, DeadlineStream, SocketError};
use crabbox_store::places::LeaseDir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{LIMIT, Phase, Pong, Reply, Verb};
use crate::lifecycle::supervisor_log::SupervisorLog;
use crate::log_filter::LogFilter;

/// How long the service rests when it cannot accept, as when there is no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a supervisor cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The lease's directory is open to others.
    #[error(transparent)]
    Directory(#[from] PrivateDirError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The socket cannot be put in its place.
    #[error("cannot put the control socket in its place")]
    Place(#[source] io::Error),
    /// The thread cannot be started.
    #[error("cannot serve the control socket")]
    Thread(#[source] io::Error),
}

/// What the supervisor and its service share.
#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    log: SupervisorLog,
}

/// What others may ask of this supervisor. Readable in poll once it was asked to end, and it stays so.
#[derive(Debug)]
pub(crate) struct Control {
    shared: Arc<Shared>,
    asked: PipeReader,
    /// The thread's end; without a service the pipe stays silent because this is open.
    wish: Option<PipeWriter>,
    service: Option<Service>,
}

/// The thread and its socket, which end when this is dropped.
#[derive(Debug)]
struct Service {
    path: PathBuf,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be gone with its lease.
        std::fs::remove_file(&self.path).ok();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended, which is what we want.
            thread.join().ok();
        }
    }
}

impl Control {
    /// Nobody can ask yet.
    pub(crate) fn new(log: &SupervisorLog) -> io::Result<Self> {
        let (asked, wish) = io::pipe()?;
        Ok(Self {
            shared: Arc::new(Shared {
                phase: AtomicU8::new(Phase::Making as u8),
                log: log.clone(),
            }),
            asked,
            wish: Some(wish),
            service: None,
        })
    }

    /// Listens in the lease's directory from here on, whose lock the caller holds: a socket that a killed supervisor left is replaced.
    /// A lease is whole without it.
    pub(crate) fn listen(&mut self, dir: &LeaseDir) {
        if let Err(error) = self.serve(dir) {
            tracing::warn!("nobody can ask this supervisor: {}", fault::chain(&error));
        }
    }

    fn serve(&mut self, dir: &LeaseDir) -> Result<(), ControlError> {
        let path = dir.supervisor_socket();
        let listener = bind(&path)?;
        listener.set_nonblocking(true).map_err(ControlError::Thread)?;
        let (stopped, stop) = io::pipe().map_err(ControlError::Thread)?;
        let shared = Arc::clone(&self.shared);
        let wish = match &self.wish {
            Some(wish) => wish.try_clone().map_err(ControlError::Thread)?,
            None => return Ok(()),
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, stopped.as_fd(), &shared, &wish))
            .map_err(ControlError::Thread)?;
        self.service = Some(Service {
            path,
            stop: Some(stop),
            thread: Some(thread),
        });
        Ok(())
    }

    /// Says what the supervisor is at from here on.
    pub(crate) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Release);
    }

    /// Whether somebody has asked for the end.
    pub(crate) fn is_asked(&self) -> bool {
        is_readable(self.asked.as_fd(), Some(Duration::ZERO))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}

/// A listener at `path` that only this user can connect to. It gets its name when it has its mode.
fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let dir = path.parent().unwrap_or(path);
    PrivateDir::open(dir)?;
    let making = path.with_extension("new");
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ControlError::Place(error)),
        _ => {}
    }
    let listener = unix::bind(&making)?;
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o600)).map_err(ControlError::Place)?;
    std::fs::rename(&making, path).map_err(ControlError::Place)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, stopped: BorrowedFd<'_>, shared: &Shared, wish: &PipeWriter) {
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
            Ok((stream, _)) => converse(stream, &stop, shared, wish),
            // Somebody who came and went, or no descriptor left: it passes, but not at once.
            Err(_) => clock::nap(PAUSE),
        }
    }
}

/// Serves one peer: one request, one reply, and then what was asked.
fn converse(stream: UnixStream, stop: &dyn Fn() -> bool, shared: &Shared, wish: &PipeWriter) {
    match unix::is_own_peer(&stream) {
        Ok(true) => {}
        Ok(false) => return tracing::warn!("a process of another user is not listened to"),
        Err(error) => return tracing::warn!("whose process asks cannot be seen: {error}"),
    }
    // An accepted socket does not take this over from its listener, but on some kernels it did.
    stream.set_nonblocking(false).ok();
    let mut stream = DeadlineStream::new(stream).stopped_by(stop);
    stream.set_limit(LIMIT);
    let (reply, ends) = match super::read::<Verb>(&mut stream) {
        Ok(verb) => {
            tracing::debug!(?verb, "asked");
            (reply(&verb, shared), verb == Verb::End)
        }
        Err(error) => {
            let why = fault::chain(&error);
            tracing::debug!("a request is refused: {why}");
            (Reply::Refused { why }, false)
        }
    };
    // A peer that went away without its reply has asked all the same.
    if let Ok(line) = super::line(reply) {
        stream.write_all(&line).ok();
    }
    if ends {
        tracing::info!("asked to end");
        let mut wish = wish;
        wish.write_all(b"e").ok();
    }
}

fn reply(verb: &Verb, shared: &Shared) -> Reply {
    match verb {
        Verb::Ping => Reply::Pong(Pong {
            pid: std::process::id(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            phase: match shared.phase.load(Ordering::Acquire) {
                phase if phase == Phase::Making as u8 => Phase::Making,
                phase if phase == Phase::Watching as u8 => Phase::Watching,
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
        Verb::End => Reply::Done,
    }
}

/// Whether `fd` has something within `limit`, its end included.
fn is_readable(fd: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, limit.as_ref()).is_ok_and(|count| count > 0)
}
