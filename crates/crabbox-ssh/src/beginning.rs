//! Waits for the mark of a remote line, whatever the start-up files of the login shell do before it.
//!
//! Until then it sends only lines that our own shell ignores, and it must never wait without a limit.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::remote_line::{RemoteLine, START_LIMIT, Start};
use crabbox_host::wait;

/// After this time on an open connection, we assume that something else reads our input: a start-up file that
/// asks for a line, or another shell that it started.
pub(crate) const RESCUE_AFTER: Duration = Duration::from_millis(500);

/// How long to keep reading the streams of an ended session while they are silent. A process left running by
/// a start-up file can keep them open forever; what was written before the end arrives within this time
/// except on a very slow line.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// Why a remote line did not run.
#[derive(Debug, thiserror::Error)]
#[error(
    "its login shell {instead}; look there for a start-up file (.bashrc, .cshrc, .zshenv, config.fish) that reads standard input or \
     starts another shell, and for a ForceCommand; {}", quoted(.printed)
)]
pub struct NotStarted {
    /// What happened instead.
    pub instead: ShellFailure,
    /// The end of what was printed.
    pub printed: String,
}

/// What a login shell did instead of running our line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellFailure {
    /// It ran something else, which exited with this code.
    Exited(i32),
    /// It was ended by a signal.
    Killed,
    /// It printed more than is skipped.
    Flooded,
    /// Nothing within this time.
    Waited(Duration),
    /// It ran our line with another standard input than ours.
    NoInput,
}

impl fmt::Display for ShellFailure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => {
                write!(
                    out,
                    "ran something else in place of our commands, which exited with {code}"
                )
            }
            Self::Killed => out.write_str("was ended by a signal before it began with our commands"),
            Self::NoInput => out.write_str("has taken standard input away from our commands"),
            Self::Flooded => out.write_str("printed over a mebibyte before our commands"),
            Self::Waited(time) => {
                write!(out, "did not begin with our commands in {} s", time.as_secs())
            }
        }
    }
}

fn quoted(printed: &str) -> String {
    if printed.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("it printed {printed:?}")
    }
}

/// The outcome of a wait for the mark.
#[derive(Debug)]
pub enum StartOutcome {
    /// The mark came; the script may be sent.
    Begun {
        /// Output after the mark that has arrived already.
        behind: Vec<u8>,
        /// Whether the start-up files printed something or took long: then a program that speaks its own
        /// protocol with the remote side (rsync) may fail.
        noisy: bool,
    },
    /// Standard output ended, or carried too much, before the mark came.
    Ended(Start),
    /// The mark did not come in time.
    Late(Start),
    /// The caller cancelled it.
    Cancelled,
}

/// What ends a wait for the mark besides the mark itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitLimits<'a> {
    /// Becomes readable when the session is over: a process that still holds its output open will not print
    /// the mark.
    pub over: Option<BorrowedFd<'a>>,
    /// Becomes readable when the wait is cancelled.
    pub cancel: Option<BorrowedFd<'a>>,
    /// A deadline, if earlier than [`START_LIMIT`].
    pub deadline: Option<Instant>,
}

/// Reads `output` until the mark of `line`, for at most [`START_LIMIT`], or until one of `ends`. If the mark
/// has not come after `patience`, sends the rescue lines to `input`, which lead another reader to our line.
pub fn await_mark(
    line: &RemoteLine,
    input: &mut impl Write,
    output: &mut (impl Read + AsFd),
    patience: Duration,
    ends: WaitLimits<'_>,
) -> io::Result<StartOutcome> {
    let mut start = line.start();
    let now = Instant::now();
    let mut until = now + START_LIMIT;
    until = ends.deadline.map_or(until, |deadline| deadline.min(until));
    let mut rescue = Some(now + patience);
    let mut over = ends.over;
    let mut chunk = [0; 4096];
    loop {
        let next = rescue.map_or(until, |rescue| rescue.min(until));
        let readable = |fd| Some((fd, PollFlags::IN));
        let fds = [
            ends.cancel.and_then(readable),
            readable(output.as_fd()),
            over.and_then(readable),
        ];
        match wait::any(fds, Some(next))? {
            Some(0) => return Ok(StartOutcome::Cancelled),
            Some(2) => {
                over = None;
                rescue = None;
                until = Instant::now() + QUIET;
            }
            None if Instant::now() >= until && over.is_none() && ends.over.is_some() => {
                return Ok(StartOutcome::Ended(start));
            }
            None if Instant::now() >= until => return Ok(StartOutcome::Late(start)),
            None => {
                // A write error is ignored: the output ends then, too.
                if rescue.take().is_some() {
                    input.write_all(&line.rescue()).and_then(|()| input.flush()).ok();
                }
            }
            Some(_) => match output.read(&mut chunk) {
                Ok(0) => return Ok(StartOutcome::Ended(start)),
                Ok(count) => {
                    let behind = start.take(&chunk[..count]).to_vec();
                    if start.has_begun() {
                        let noisy = start.was_noisy() || rescue.is_none();
                        return Ok(StartOutcome::Begun { behind, noisy });
                    }
                    if start.is_flooded() {
                        return Ok(StartOutcome::Ended(start));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
        }
    }
}
