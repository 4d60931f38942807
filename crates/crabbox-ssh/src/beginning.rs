//! Waits for the mark of a remote line, whatever the start-up files of the login shell do before it.
//!
//! Until then it sends only lines that our own shell ignores, and it must never wait without a limit. A slow
//! login must never be taken for one that does not come: time alone proves nothing.

use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::ioctl_fionread;

use crate::remote_line::{RemoteLine, START_LIMIT, Start};
use crabbox_host::wait::{self, Ready};

/// After this time on an open connection, we assume that something else reads our input: a start-up file that
/// asks for a line, or another shell that it started.
pub(crate) const RESCUE_AFTER: Duration = Duration::from_millis(500);

/// How long to keep reading the streams of an ended session while they are silent. A process left running by
/// a start-up file can keep them open forever; what was written before the end arrives within this time
/// except on a very slow line.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// The mark on standard error and the one on standard output are two words of one shell. How long the second
/// one may take after the first, or after other output; and a session's end after that of its output.
const TAKEN_AFTER: Duration = Duration::from_secs(5);

/// Why a remote line did not run.
#[derive(Debug, thiserror::Error)]
#[error(
    "its login shell {instead}; look there for a start-up file (.bashrc, .cshrc, .zshenv, config.fish) that reads standard input, \
     redirects output or starts another shell, and for a ForceCommand; {}", quoted(.printed)
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
    /// It ran our line with another standard output than ours.
    NoOutput,
    /// It read our input in place of our line, and would have read all of it.
    Reading,
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
            Self::NoOutput => out.write_str("has taken standard output away from our commands"),
            Self::Reading => out.write_str("reads all of standard input before it begins with our commands"),
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
    /// The mark does not come, or did not in time, which is a failure of this kind.
    Instead(ShellFailure, Start),
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
    /// Gets one byte when the mark on standard error has come; closed without it when it will not come.
    pub marked: Option<&'a PipeReader>,
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
    let start = (line.start(), Instant::now());
    resume(start, line, (input, output), Some(patience), ends)
}

/// Goes on with a wait that began at the second part of `start`.
pub(crate) fn resume(
    (mut start, began): (Start, Instant),
    line: &RemoteLine,
    (input, output): (&mut impl Write, &mut (impl Read + AsFd)),
    patience: Option<Duration>,
    ends: WaitLimits<'_>,
) -> io::Result<StartOutcome> {
    let mut until = began + START_LIMIT;
    until = ends.deadline.map_or(until, |deadline| deadline.min(until));
    let mut rescue = patience.map(|patience| began + patience);
    let (mut over, mut marked, mut taken) = (ends.over, ends.marked, None);
    let mut chunk = [0; 4096];
    loop {
        let next = [rescue, taken].into_iter().flatten().fold(until, Instant::min);
        let readable = |fd| Some((fd, PollFlags::IN));
        let fds = [
            ends.cancel.and_then(readable),
            readable(output.as_fd()),
            over.and_then(readable),
            marked.map(AsFd::as_fd).and_then(readable),
        ];
        match wait::any(fds, Some(next))? {
            Some(0) => return Ok(StartOutcome::Cancelled),
            Some(2) => {
                over = None;
                rescue = None;
                until = Instant::now() + QUIET;
            }
            Some(3) => {
                // Left in the pipe, for a wait that goes on with this one.
                let has_come = marked
                    .take()
                    .is_some_and(|pipe| ioctl_fionread(pipe).is_ok_and(|count| count > 0));
                taken = has_come.then(|| Instant::now() + TAKEN_AFTER);
            }
            None if taken.is_some_and(|taken| Instant::now() >= taken) => {
                return Ok(StartOutcome::Instead(ShellFailure::NoOutput, start));
            }
            None if Instant::now() >= until && over.is_none() && ends.over.is_some() => {
                return Ok(StartOutcome::Ended(start));
            }
            None if Instant::now() >= until => {
                let waited = ShellFailure::Waited(began.elapsed());
                return Ok(StartOutcome::Instead(waited, start));
            }
            None => {
                // A write error is ignored: the output ends then, too.
                if rescue.take().is_some() {
                    input.write_all(&line.rescue()).and_then(|()| input.flush()).ok();
                }
            }
            Some(_) => match output.read(&mut chunk) {
                Ok(0) => return without_output(start, over, ends.cancel),
                Ok(count) => {
                    taken = taken.map(|_| Instant::now() + TAKEN_AFTER);
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

/// The outcome after the end of standard output: a session that lives on has another one.
fn without_output(
    start: Start,
    over: Option<BorrowedFd<'_>>,
    cancel: Option<BorrowedFd<'_>>,
) -> io::Result<StartOutcome> {
    let Some(over) = over else {
        return Ok(StartOutcome::Ended(start));
    };
    let soon = Some(Instant::now() + TAKEN_AFTER);
    Ok(match wait::wait(over, PollFlags::IN, cancel, soon)? {
        Ready::First => StartOutcome::Ended(start),
        Ready::Second => StartOutcome::Cancelled,
        Ready::Neither => StartOutcome::Instead(ShellFailure::NoOutput, start),
    })
}
