//! Runs one command on the remote side: its streams, its status, and stopping it when we want.
//!
//! The remote login shell gets a constant line; the script itself, with the values of the environment, is
//! sent over standard input once the line has printed its mark, so that no argument vector on either side
//! shows them and no length limit applies. A status is only reported if it arrived: it must never be guessed
//! from the exit code of `ssh`.
//!
//! ```text
//!   caller --script, stdin--> pipe --\                           /--> login shell -> sh (reads the script, waits)
//!   sinks <-- threads <-- two pipes ---- ssh master == network ==                      \--> the command
//! ```

use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crabbox_core::fault::Connectivity;
use rustix::event::PollFlags;

use crate::beginning::{NotStarted, QUIET, ShellFailure, StartOutcome, WaitLimits};
use crate::doubt::await_mark_in_doubt;
use crate::group;
use crate::master::{self, ConnectError};
use crate::mux::{MuxError, Session, SessionEvent};
use crate::remote_line::{RemoteLine, Start, UNREAD};
use crate::shared::Shared;
use crate::streams::{self, Flow};
use crate::target::Target;
use crabbox_host::wait::{Ready, wait};

/// How long a cancelled command may take to end and its last output to arrive, as in the Go program.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Where the bytes for a command's standard input come from.
pub enum Stdin<'a> {
    /// `/dev/null`.
    Null,
    /// These bytes, then the end.
    Bytes(&'a [u8]),
    /// Everything from here, then the end.
    ///
    /// A read must end by itself: [`run`] returns only after it. For a source that may stay silent for longer
    /// than the command lives, use [`Self::Pipe`].
    Reader(Box<dyn Read + Send + 'a>),
    /// Everything written to this pipe, until its end or the end of the command, whichever comes first.
    Pipe(PipeReader),
}

impl fmt::Debug for Stdin<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("Null"),
            Self::Bytes(bytes) => write!(out, "Bytes({})", bytes.len()),
            Self::Reader(_) => out.write_str("Reader"),
            Self::Pipe(_) => out.write_str("Pipe"),
        }
    }
}

/// Where a stream of a command goes, unbuffered.
pub enum Sink<'a> {
    /// Nowhere.
    Discard,
    /// To this descriptor, for example our own standard output.
    Fd(BorrowedFd<'a>),
    /// To this writer, which is flushed after each chunk.
    Writer(&'a mut (dyn Write + Send)),
}

impl fmt::Debug for Sink<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Discard => "Discard",
            Self::Fd(_) => "Fd",
            Self::Writer(_) => "Writer",
        })
    }
}

/// A command and its surroundings. The script may hold secrets, so it is not for logs.
pub struct Exec<'a> {
    /// A POSIX shell script; see [`crate::command`] for a user's.
    pub script: String,
    /// Its standard input.
    pub stdin: Stdin<'a>,
    /// Its standard output.
    pub stdout: Sink<'a>,
    /// Its standard error.
    pub stderr: Sink<'a>,
    /// Becomes readable when the command is to be stopped, as `crabbox_host::signals::Interrupts` does.
    pub cancel: Option<BorrowedFd<'a>>,
    /// Limit for opening the connection (if there is none yet) and running the command together; a command
    /// that runs longer is stopped.
    pub limit: Option<Duration>,
}

impl fmt::Debug for Exec<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Exec")
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteStatus {
    /// It exited by itself with this code; a signal N counts as 128+N, as in every shell. 255 here is the
    /// command's own.
    Exited(u8),
    /// The shell around it was killed, with the connection intact: `kill -9 0`, or the machine's
    /// out-of-memory killer.
    Killed,
    /// The connection broke before a status arrived; the command may or may not still run.
    ConnectionLost,
    /// We stopped it, because `cancel` became readable.
    Cancelled {
        /// Whether the remote process group is known to be gone.
        stopped: bool,
    },
    /// We stopped it, because it ran into its limit.
    TimedOut {
        /// Whether the remote process group is known to be gone.
        stopped: bool,
    },
}

/// Why there is no status of a command.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no connection; the remote side has seen nothing of the command.
    #[error("the remote command was not started")]
    Connect {
        /// Why not.
        #[source]
        source: ConnectError,
    },
    /// The connection is open but gave no session; the remote side has seen nothing of the command.
    #[error("the remote command was not started on {destination}")]
    Session {
        /// `user@host`.
        destination: String,
        /// Why not.
        #[source]
        source: MuxError,
    },
    /// The server gives no session, even on a private connection; the remote side has seen nothing of the
    /// command.
    #[error(
        "{destination} accepts the login but refuses a session ({reason}): raise MaxSessions in its sshd_config"
    )]
    NoSession {
        /// `user@host`.
        destination: String,
        /// What ssh said.
        reason: String,
    },
    /// Something else ran in place of our line, or kept it from running; the remote side has seen nothing of
    /// the command.
    #[error("the remote command was not started on {destination}")]
    NotStarted {
        /// `user@host`.
        destination: String,
        /// What ran instead.
        #[source]
        source: NotStarted,
    },
    /// The command ran with an input that was cut short, because the rest could not be read.
    #[error("cannot read the input for a remote command")]
    Input {
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// The command ran and part of its output could not be written on our side.
    #[error("cannot write the output of a remote command")]
    Output {
        /// What the sink said.
        #[source]
        source: io::Error,
    },
    /// This machine could not provide pipes, random numbers or a temporary directory.
    #[error("cannot prepare the streams of a remote command")]
    Local {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ExecError {
    /// What the error says about the connection; `None` if there is one.
    pub fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::Connect { source } => source.connectivity(),
            _ => None,
        }
    }
}

/// Opens the shared connection of `target` unless it is open already, without running anything. Gives up when
/// `cancel` becomes readable, and then returns `false`.
pub fn connect(target: &Target, cancel: BorrowedFd<'_>) -> Result<bool, ExecError> {
    match Shared::open(target, None, Some(cancel)) {
        Err(ExecError::Connect {
            source: ConnectError::Cancelled { .. },
        }) => Ok(false),
        opened => opened.map(|_| true),
    }
}

/// Runs `exec` on `target` and waits for its end. Opens the connection when it is not open.
#[expect(clippy::too_many_lines, reason = "its threads share one scope")]
pub fn run(target: &Target, exec: Exec<'_>) -> Result<RemoteStatus, ExecError> {
    let local = |source| ExecError::Local { source };
    let deadline = exec.limit.map(|limit| Instant::now() + limit);
    let mut shared = match Shared::open(target, exec.limit, exec.cancel) {
        Err(ExecError::Connect {
            source: ConnectError::Cancelled { .. },
        }) => return Ok(RemoteStatus::Cancelled { stopped: true }),
        shared => shared?,
    };
    let line = RemoteLine::new().map_err(local)?;
    let (remote_in, mut our_in) = io::pipe().map_err(local)?;
    let (mut our_out, remote_out) = io::pipe().map_err(local)?;
    let (our_err, remote_err) = io::pipe().map_err(local)?;
    let (stop_in, end_in) = io::pipe().map_err(local)?;
    let (stop_out, end_out) = io::pipe().map_err(local)?;
    let fds = [remote_in.as_fd(), remote_out.as_fd(), remote_err.as_fd()];
    let mut session = match shared.session(target, &line.text(), fds, deadline, exec.cancel) {
        Err(ExecError::Connect {
            source: ConnectError::Cancelled { .. },
        }) => return Ok(RemoteStatus::Cancelled { stopped: true }),
        session => session?,
    };
    drop((remote_in, remote_out, remote_err));

    let Exec {
        script,
        stdin,
        mut stdout,
        mut stderr,
        cancel,
        limit: _,
    } = exec;
    // Without input the command gets `/dev/null` itself, not a pipe at its end.
    let script = if matches!(stdin, Stdin::Null) {
        format!("exec </dev/null\n{script}")
    } else {
        script
    };
    let preamble = line.preamble(&script);
    let flow = &Flow::until(stop_out);
    std::thread::scope(|scope| {
        let start = line.start_of_errors();
        let (marked, mark) = io::pipe().map_err(local)?;
        let sink = &mut stderr;
        let errors = scope.spawn(move || streams::drain_behind(our_err, start, mark, sink, flow));
        let ends = WaitLimits {
            over: Some(session.as_fd()),
            cancel,
            deadline,
            marked: Some(&marked),
        };
        let pipes = (&mut our_in, &mut our_out);
        let begun = await_mark_in_doubt(shared.control(), &line, pipes, ends);
        let (mut input, mut output, mut never) = (None, None, None);
        match begun.map_err(local)? {
            StartOutcome::Begun { behind, .. } => {
                input = Some(scope.spawn(|| streams::feed(our_in, &preamble, stdin, &stop_in)));
                let sink = &mut stdout;
                output = Some(scope.spawn(move || streams::drain(our_out, &behind, sink, flow)));
            }
            // Closing our ends lets it end, if it has not ended already.
            StartOutcome::Ended(start) => {
                drop((our_in, our_out));
                never = Some(start);
            }
            StartOutcome::Instead(failure, start) => {
                drop((session, end_out));
                let (stderr, _) = join(errors);
                return Err(not_begun(target, failure, &start, &stderr));
            }
            // The script was not sent, so there is nothing to stop; whatever reads in its place would also
            // read the stop request.
            StartOutcome::Cancelled => {
                drop((session, end_out));
                drop(join(errors));
                return Ok(RemoteStatus::Cancelled { stopped: true });
            }
        }
        let watched = Watch {
            target,
            control: shared.control(),
            line: &line,
            flow,
        }
        .end_of(&mut session, cancel, deadline);
        drop(end_in);
        if !watched.as_ref().is_ok_and(|(_, closed)| *closed) {
            drop(end_out);
        }
        drop(session);
        let (output, input) = (output.map_or(Ok(()), join), input.map_or(Ok(()), join));
        let (stderr, errors) = join(errors);
        let (status, _) = watched.map_err(local)?;
        if let Some(start) = never
            && let Some(failure) = shell_failure(&start, &stderr, status)
        {
            return Err(not_begun(target, failure, &start, &stderr));
        }
        match output.and(errors) {
            // The reader of our output has gone, and the command got a broken pipe of its own.
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                return Err(ExecError::Output { source });
            }
            _ => {}
        }
        input.map_err(|source| ExecError::Input { source })?;
        Ok(status)
    })
}

/// What a login shell did that ended with `status` instead of running the script; `None` if the connection
/// ended.
fn shell_failure(start: &Start, errors: &Start, status: RemoteStatus) -> Option<ShellFailure> {
    match status {
        // Its mark on standard output went elsewhere.
        RemoteStatus::Exited(UNREAD) if errors.has_begun() => Some(ShellFailure::NoOutput),
        _ if start.is_flooded() => Some(ShellFailure::Flooded),
        RemoteStatus::Exited(code) => Some(ShellFailure::Exited(code.into())),
        RemoteStatus::Killed => Some(ShellFailure::Killed),
        _ => None,
    }
}

fn not_begun(target: &Target, instead: ShellFailure, output: &Start, errors: &Start) -> ExecError {
    let printed = [errors.printed(), output.printed()];
    let printed = printed.into_iter().filter(|text| !text.is_empty());
    ExecError::NotStarted {
        destination: target.destination(),
        source: NotStarted {
            instead,
            printed: printed.collect::<Vec<_>>().join("; "),
        },
    }
}

/// Watches for the end of a session.
struct Watch<'a> {
    target: &'a Target,
    control: &'a Path,
    line: &'a RemoteLine,
    flow: &'a Flow,
}

impl Watch<'_> {
    /// Waits for the end of the session; also returns whether all of its output has reached our pipes. A
    /// command that has ended may have left its streams to another process, such as one that a start-up file
    /// put into the background: we keep reading until the streams fall silent.
    fn end_of(
        &self,
        session: &mut Session,
        cancel: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<(RemoteStatus, bool)> {
        let (mut code, mut seen) = (None, None);
        loop {
            let quiet = code.map(|_| Instant::now() + QUIET);
            let until = [deadline, quiet].into_iter().flatten().min();
            let ready = wait(session.as_fd(), PollFlags::IN, cancel, until)?;
            let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if let (Ready::Neither, Some(code)) = (ready, code) {
                let now = self.flow.at_rest();
                if is_late() || (now.is_some() && now == seen) {
                    return Ok((RemoteStatus::Exited(code), false));
                }
                seen = now;
                continue;
            }
            if ready != Ready::First {
                return self.stop(session, ready);
            }
            match (session.next_event(), code) {
                (SessionEvent::Exited(arrived), _) => (code, seen) = (Some(arrived), self.flow.at_rest()),
                (SessionEvent::Other, _) => {}
                (SessionEvent::Closed, Some(code)) => return Ok((RemoteStatus::Exited(code), true)),
                // A master that loses its connection removes its socket before it closes anything else, so
                // here the connection is intact.
                (SessionEvent::Closed, None) if master::check(self.control).is_some() => {
                    return Ok((RemoteStatus::Killed, true));
                }
                (SessionEvent::Closed, None) => return Ok((RemoteStatus::ConnectionLost, true)),
            }
        }
    }

    /// Stops the command, because the caller cancelled it or it ran into its limit.
    fn stop(&self, session: &mut Session, ready: Ready) -> io::Result<(RemoteStatus, bool)> {
        let until = Instant::now() + DRAIN_LIMIT;
        // The command may hold the only session of its connection; then a private connection is opened for
        // this request only.
        let mut way = Shared::at(self.control);
        let gone = group::stop(self.line, until, |line, fds| {
            way.session(self.target, &line.text(), fds, Some(until), None)
                .ok()
        })?;
        let closed = closes(session, until)?;
        let stopped = gone && closed;
        let status = match ready {
            Ready::Second => RemoteStatus::Cancelled { stopped },
            _ => RemoteStatus::TimedOut { stopped },
        };
        Ok((status, closed))
    }
}

/// Whether the session closes before `until`.
fn closes(session: &mut Session, until: Instant) -> io::Result<bool> {
    while wait(session.as_fd(), PollFlags::IN, None, Some(until))? == Ready::First {
        if session.next_event() == SessionEvent::Closed {
            return Ok(true);
        }
    }
    Ok(false)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
