//! The connection that one execution uses: the target's shared one, or a private one that ends with it.
//!
//! There is always a master, so there is only one way to run a command. If a server limits the sessions per
//! connection (`MaxSessions` of sshd_config(5)), the next session goes over a private connection. A private
//! connection must never outlive its owner.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_host::clock;

use crate::exec::ExecError;
use crate::master::{self, ConnectError};
use crate::mux::{Client, MuxError, Session};
use crate::target::Target;

/// Limit for opening a connection that should have been open; long because a handshake on an emulated machine
/// is slow.
const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// How long a session may take to start; sshd forks a process for it.
const SESSION_LIMIT: Duration = Duration::from_secs(30);

/// How long the shared connection may take to start a session before a private one is tried: it may be dead
/// because the network has changed, which ssh notices only when its keepalives (`ServerAliveInterval`) fail.
const SHARED_LIMIT: Duration = Duration::from_secs(15);

/// Time between two attempts to get a session from a server that has none free.
const PAUSE: Duration = Duration::from_millis(200);

/// An open connection.
#[derive(Debug)]
pub(crate) struct Shared {
    control: PathBuf,
    /// The directory of a private connection's socket.
    private: Option<tempfile::TempDir>,
}

impl Shared {
    /// The connection of `target`, opened if it is not open, within `limit` and unless `cancel` becomes
    /// readable.
    pub(crate) fn open(
        target: &Target,
        limit: Option<Duration>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Self, ExecError> {
        let limit = limit.map_or(OPEN_LIMIT, |limit| limit.min(OPEN_LIMIT));
        match &target.control {
            Some(control) => {
                let connect = |source| ExecError::Connect { source };
                master::open(target, control, limit, cancel).map_err(connect)?;
                Ok(Self::at(control))
            }
            None => Self::private(target, limit, cancel),
        }
    }

    /// The connection at `control`, whether it is open or not.
    pub(crate) fn at(control: &Path) -> Self {
        Self {
            control: control.to_owned(),
            private: None,
        }
    }

    fn private(target: &Target, limit: Duration, cancel: Option<BorrowedFd<'_>>) -> Result<Self, ExecError> {
        let dir = private_dir().map_err(|source| ExecError::Local { source })?;
        let control = dir.path().join("s");
        // Created before the attempt, so that a failed one is cleaned up too.
        let shared = Self {
            control,
            private: Some(dir),
        };
        master::open(target, &shared.control, limit, cancel)
            .map_err(|source| ExecError::Connect { source })?;
        Ok(shared)
    }

    /// Starts `command` with three of our descriptors as its standard streams, by `until` at the latest. A
    /// master whose connection has just died may still have its socket, so the connection is reopened once.
    /// If a connection has no session left or does not answer, a private one is used; the shared one stays
    /// open for others. Retrying is safe, because nothing was started: at worst, a line that waits for a
    /// script reaches the remote side later.
    pub(crate) fn session(
        &mut self,
        target: &Target,
        command: &str,
        streams: [BorrowedFd<'_>; 3],
        until: Option<Instant>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Session, ExecError> {
        let within = |limit: Duration| {
            let usual = Instant::now() + limit;
            until.map_or(usual, |until| until.min(usual))
        };
        let mut until = within(SESSION_LIMIT);
        let mut is_reopened = false;
        loop {
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            let patience = if self.private.is_some() {
                left
            } else {
                left.min(SHARED_LIMIT)
            };
            let attempt = Client::connect(&self.control)
                .and_then(|client| client.session(command, streams, patience, cancel));
            let (reason, wait) = match attempt {
                Ok(session) => return Ok(session),
                Err(MuxError::Cancelled { .. }) => {
                    let destination = target.destination();
                    let source = ConnectError::Cancelled { destination };
                    return Err(ExecError::Connect { source });
                }
                Err(MuxError::Late { .. }) if self.private.is_none() && Instant::now() < until => {
                    let left = within(OPEN_LIMIT).saturating_duration_since(Instant::now());
                    *self = Self::private(target, left, cancel)?;
                    until = within(SESSION_LIMIT);
                    continue;
                }
                Err(MuxError::Absent | MuxError::Io { .. }) if !is_reopened => {
                    is_reopened = true;
                    self.reopen(target, cancel)?;
                    continue;
                }
                Err(MuxError::Refused { reason, .. }) if self.private.is_some() => (reason, None),
                Err(MuxError::Refused { reason, .. }) => match Self::private(target, left, cancel) {
                    Ok(private) => {
                        *self = private;
                        continue;
                    }
                    // Servers limit connections too (`MaxStartups`); another session may end meanwhile.
                    Err(ExecError::Connect { source }) if source.is_passing() => (reason, Some(PAUSE)),
                    Err(error) => return Err(error),
                },
                Err(source) => {
                    return Err(ExecError::Session {
                        destination: target.destination(),
                        source,
                    });
                }
            };
            match wait {
                Some(pause) if Instant::now() + pause < until => clock::nap(pause),
                _ => {
                    return Err(ExecError::NoSession {
                        destination: target.destination(),
                        reason,
                    });
                }
            }
        }
    }

    /// Reopens the connection after it was found dead.
    fn reopen(&self, target: &Target, cancel: Option<BorrowedFd<'_>>) -> Result<(), ExecError> {
        master::open(target, &self.control, OPEN_LIMIT, cancel)
            .map_err(|source| ExecError::Connect { source })
    }

    /// Its socket.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.private.is_some() {
            // An error cannot be reported here; a leftover master loses its socket and ends with its
            // connection.
            master::exit(&self.control).ok();
        }
    }
}

/// Directly below `/tmp`, because a socket's path must be short; `mkdtemp` creates a fresh name with mode 0700.
pub(crate) fn private_dir() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("crabbox-ssh-").tempdir_in("/tmp")
}
