//! Waiting until a lease can run commands: port, login, ready command.
//!
//! One handshake opens the shared connection, and the ready command runs over it, so no work of the wait is
//! wasted. It must never go on with a wrong host key, nor print anything: progress goes to the caller, at
//! most one line every ten seconds.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crabbox_host::clock;

use crate::capture::capture_check;
use crate::exec::{ExecError, RemoteStatus};
use crate::master;
use crate::port::{Next, PortFailure, wait_port};
use crate::target::Target;

mod error;
mod progress;

pub use error::{NotReady, ReadyError};
use progress::{FIRST_LINE, NEXT_LINE};
pub use progress::{Progress, Stage};

/// The ready command for an existing host: checks that it has what a sync needs besides the agent.
pub const READY_STATIC: &str = "git --version >/dev/null";

/// Limit for one handshake; generous, because an emulated machine needs seconds for its cryptography.
const HANDSHAKE_LIMIT: Duration = Duration::from_mins(1);

/// Limit for one run of the ready command on an existing host.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// The same on a machine that boots: its command may ask several times before it says what is missing, and a
/// login there may wait for services that are not up yet.
const BOOTING_LIMIT: Duration = Duration::from_mins(1);

/// How long an existing host may keep closing sessions after a login: its sshd may be about to restart.
const CUT_OFF_LIMIT: Duration = Duration::from_secs(8);

/// First and longest pause between attempts that failed after the port was open.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What to wait for, and for how long.
pub struct Wait<'a> {
    /// The machine. Without a control path, each attempt opens its own connection.
    pub target: &'a Target,
    /// What the wait is for, in the words of the messages: `bootstrap`, `before sync`, `before command`, …
    pub phase: &'a str,
    /// A script that succeeds when the machine is ready; `None` if a login is enough.
    pub ready_command: Option<&'a str>,
    /// The machine is not booting but exists already, so a failed ready command is final.
    pub settled: bool,
    /// When to give up.
    pub deadline: Instant,
    /// Probe the port first. Not needed if the guest has reported by other means that its sshd listens: each
    /// probe costs the guest a process.
    pub probe_port: bool,
    /// Becomes readable when the wait is cancelled, as `crabbox_host::signals::Interrupts` does; this ends
    /// every wait within this one.
    pub cancel: Option<BorrowedFd<'a>>,
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Wait")
            .field("target", &self.target)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// When each step was done, counted from the start of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadyTimings {
    /// The port accepted a connection; zero if it was not probed.
    pub tcp: Duration,
    /// The server had sent its greeting; zero if the port was not probed.
    pub banner: Duration,
    /// The login was done.
    pub auth: Duration,
    /// The ready command had succeeded.
    pub ready: Duration,
}

/// Waits until `wait.target` is ready, and leaves its shared connection open.
pub fn wait_ssh(wait: &Wait<'_>, progress: &mut dyn FnMut(&Progress)) -> Result<ReadyTimings, ReadyError> {
    let mut clock = Clock {
        wait,
        began: Instant::now(),
        next_line: Instant::now() + FIRST_LINE,
        stage: Stage::Port,
        progress,
    };
    let mut timings = ReadyTimings::default();
    if wait.probe_port && wait.target.proxy_command.is_none() {
        let address = resolve(wait.target)?;
        let mut stopped = None;
        let seen = wait_port(address, |failure| {
            clock.stage = if matches!(failure, PortFailure::NoBanner { .. }) {
                Stage::Auth
            } else {
                Stage::Port
            };
            stopped = clock.look();
            if stopped.is_some() {
                Next::Stop
            } else {
                Next::Again
            }
        });
        match seen {
            Ok(seen) => (timings.tcp, timings.banner) = (seen.tcp, seen.banner),
            Err(failure) => return Err(clock.give_up(stopped.as_ref(), failure.into())),
        }
    }
    clock.stage = Stage::Auth;
    let mut pause = PAUSES.0;
    let (mut cut_off, mut answer) = (None, None);
    loop {
        let failure = match attempt(&mut clock, &mut timings) {
            Ok(()) => return Ok(timings),
            Err(failure) => answered(failure, &mut answer),
        };
        if clock.is_cancelled(Duration::ZERO) {
            return Err(clock.give_up(Some(&Stop::Cancelled), failure));
        }
        if let NotReady::Connect(error) | NotReady::Exec(ExecError::Connect { source: error }) = &failure
            && !error.is_passing()
        {
            let host = wait.target.host.clone();
            return Err(ReadyError::Hopeless {
                host,
                source: Box::new(failure),
            });
        }
        if wait.settled && is_final(&failure, &mut cut_off) {
            let host = wait.target.host.clone();
            return Err(ReadyError::Unfit {
                host,
                source: Box::new(failure),
            });
        }
        let until = Instant::now() + pause;
        loop {
            let stop = clock.look();
            if stop.is_some() {
                return Err(clock.give_up(stop.as_ref(), failure));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            clock.is_cancelled(left);
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Why an attempt failed. The last answer of the ready command says more than that the next run of it was cut
/// short, be it by the deadline.
fn answered(failure: NotReady, answer: &mut Option<(RemoteStatus, String)>) -> NotReady {
    match (failure, answer) {
        (
            NotReady::Check {
                status: RemoteStatus::TimedOut { .. },
                ..
            },
            Some((status, said)),
        ) => NotReady::Check {
            status: *status,
            said: said.clone(),
        },
        (failure, answer) => {
            if let NotReady::Check { status, said } = &failure {
                *answer = Some((*status, said.clone()));
            }
            failure
        }
    }
}

/// Whether retrying an existing host is pointless. `cut_off` is when it first accepted a login and then
/// closed the session.
fn is_final(failure: &NotReady, cut_off: &mut Option<Instant>) -> bool {
    match failure {
        NotReady::Check {
            status: RemoteStatus::ConnectionLost,
            ..
        } => cut_off.get_or_insert_with(Instant::now).elapsed() >= CUT_OFF_LIMIT,
        NotReady::Check { .. }
        | NotReady::Exec(ExecError::NotStarted { .. } | ExecError::NoSession { .. }) => true,
        _ => false,
    }
}

/// One login, unless the connection is open, and one run of the ready command.
fn attempt(clock: &mut Clock<'_, '_>, timings: &mut ReadyTimings) -> Result<(), NotReady> {
    let target = clock.wait.target;
    if let Some(control) = &target.control {
        let limit = clock.remaining().clamp(Duration::from_secs(1), HANDSHAKE_LIMIT);
        master::open(target, control, limit, clock.wait.cancel)?;
        if timings.auth.is_zero() {
            timings.auth = clock.began.elapsed();
        }
        clock.stage = Stage::ReadyCheck;
    }
    let command = clock.wait.ready_command.unwrap_or("exit 0");
    if clock.wait.ready_command.is_some() || target.control.is_none() {
        let most = if clock.wait.settled {
            CHECK_LIMIT
        } else {
            BOOTING_LIMIT
        };
        let limit = clock.remaining().clamp(Duration::from_secs(1), most);
        let seen = match capture_check(target, command, limit, clock.wait.cancel) {
            Err(error @ ExecError::NotStarted { .. }) => {
                clock.stage = Stage::ReadyCheck;
                return Err(error.into());
            }
            seen => seen?,
        };
        if !seen.success() {
            clock.stage = Stage::ReadyCheck;
            let (status, said) = (seen.status, last_line(&seen.stderr, &seen.stdout));
            return Err(NotReady::Check { status, said });
        }
    }
    timings.ready = clock.began.elapsed();
    if timings.auth.is_zero() {
        timings.auth = timings.ready;
    }
    Ok(())
}

/// The last non-empty line of the first stream that has one.
fn last_line(stderr: &[u8], stdout: &[u8]) -> String {
    [stderr, stdout]
        .iter()
        .find_map(|stream| {
            let text = String::from_utf8_lossy(stream);
            let mut lines = text.lines().rev().map(str::trim);
            lines.find(|line| !line.is_empty()).map(str::to_owned)
        })
        .unwrap_or_else(|| "it printed no reason".to_owned())
}

fn resolve(target: &Target) -> Result<SocketAddr, ReadyError> {
    let failed = |source| ReadyError::Resolve {
        host: target.host.clone(),
        source,
    };
    let mut found = (target.host.as_str(), target.port)
        .to_socket_addrs()
        .map_err(failed)?;
    found
        .next()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
}

/// Why a wait stops before it is done.
enum Stop {
    Cancelled,
    Deadline,
}

struct Clock<'a, 'b> {
    wait: &'a Wait<'a>,
    began: Instant,
    next_line: Instant,
    stage: Stage,
    progress: &'b mut dyn FnMut(&Progress),
}

impl Clock<'_, '_> {
    fn remaining(&self) -> Duration {
        self.wait.deadline.saturating_duration_since(Instant::now())
    }

    /// Sleeps for `pause`; returns early with true if the wait is cancelled.
    fn is_cancelled(&self, pause: Duration) -> bool {
        if let Some(cancel) = self.wait.cancel {
            return clock::is_readable(cancel, pause);
        }
        clock::nap(pause);
        false
    }

    /// Sends a progress line when one is due, and says whether to stop.
    fn look(&mut self) -> Option<Stop> {
        if self.is_cancelled(Duration::ZERO) {
            return Some(Stop::Cancelled);
        }
        let remaining = self.remaining();
        if remaining.is_zero() {
            return Some(Stop::Deadline);
        }
        if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + NEXT_LINE;
            (self.progress)(&Progress {
                host: self.wait.target.host.clone(),
                port: self.wait.target.port,
                phase: self.wait.phase.to_owned(),
                stage: self.stage,
                elapsed: self.began.elapsed(),
                remaining,
            });
        }
        None
    }

    fn give_up(&self, stop: Option<&Stop>, last: NotReady) -> ReadyError {
        let host = self.wait.target.host.clone();
        match stop {
            Some(Stop::Cancelled) => ReadyError::Cancelled { host },
            Some(Stop::Deadline) | None => ReadyError::TimedOut {
                host,
                port: self.wait.target.port,
                phase: self.wait.phase.to_owned(),
                stage: self.stage,
                last: Box::new(last),
            },
        }
    }
}
