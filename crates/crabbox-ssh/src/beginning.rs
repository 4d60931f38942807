//! Waiting for the mark of a remote line, whatever the start-up files of the login shell do before it.
//!
//! It sends nothing but what every shell passes over, and it must never wait without a limit.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::remote_line::{RemoteLine, START_LIMIT, Start};
use crabbox_host::wait::{Ready, wait};

/// When somebody else is taken to read our input, over a connection that is open: a start-up file that asks for a line, or another
/// shell that it started.
pub(crate) const RESCUE_AFTER: Duration = Duration::from_millis(500);

/// Why a remote line did not run.
#[derive(Debug, thiserror::Error)]
#[error(
    "its login shell {instead}; look there for a start-up file (.bashrc, .cshrc, .zshenv, config.fish) that reads standard input or \
     starts another shell, and for a ForceCommand; {}", quoted(.printed)
)]
pub struct NotBegun {
    /// What happened in its place.
    pub instead: Instead,
    /// The end of what was printed.
    pub printed: String,
}

/// What a login shell did in place of a remote line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// It ran something else, which exited with this code.
    Exited(i32),
    /// It printed more than anybody wants to pass over.
    Flooded,
    /// Nothing, in this time.
    Waited(Duration),
}

impl fmt::Display for Instead {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => {
                write!(
                    out,
                    "ran something else in place of our commands, which exited with {code}"
                )
            }
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

/// What a wait for the mark ended with.
#[derive(Debug)]
pub enum Beginning {
    /// The mark came; the script may be sent.
    Begun {
        /// What came behind it already.
        behind: Vec<u8>,
        /// Whether the start-up files printed something or took their time: then a program that speaks a protocol of its own
        /// with the other side may not be understood.
        noisy: bool,
    },
    /// Standard output ended, or carried too much, before the mark came.
    Ended(Start),
    /// The mark did not come in time.
    Late(Start),
    /// The caller does not want it any more.
    Cancelled,
}

/// Reads `output` until the mark of `line`, at most [`START_LIMIT`] or until `deadline`, or until `cancel` is readable. When it
/// has not come after `patience`, `input` gets the lines that bring another reader to ours.
pub fn await_mark(
    line: &RemoteLine,
    input: &mut impl Write,
    output: &mut (impl Read + AsFd),
    patience: Duration,
    cancel: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Beginning> {
    let mut start = line.start();
    let now = Instant::now();
    let until = deadline.map_or(now + START_LIMIT, |deadline| deadline.min(now + START_LIMIT));
    let mut rescue = Some(now + patience);
    let mut chunk = [0; 4096];
    loop {
        let next = rescue.map_or(until, |rescue| rescue.min(until));
        match wait(output.as_fd(), PollFlags::IN, cancel, Some(next))? {
            Ready::Second => return Ok(Beginning::Cancelled),
            Ready::Neither if Instant::now() >= until => return Ok(Beginning::Late(start)),
            Ready::Neither => {
                // Who has closed it already ends the output too.
                if rescue.take().is_some() {
                    input.write_all(&line.rescue()).and_then(|()| input.flush()).ok();
                }
            }
            Ready::First => match output.read(&mut chunk) {
                Ok(0) => return Ok(Beginning::Ended(start)),
                Ok(count) => {
                    let behind = start.take(&chunk[..count]).to_vec();
                    if start.has_begun() {
                        let noisy = start.was_noisy() || rescue.is_none();
                        return Ok(Beginning::Begun { behind, noisy });
                    }
                    if start.is_flooded() {
                        return Ok(Beginning::Ended(start));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
        }
    }
}
