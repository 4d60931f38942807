//! The agent on the other side: one process, over one session, for all that is asked of a lease.
//!
//! What comes back was written by a machine that runs foreign code: it is bounded and checked, and waited for no longer than its caller wants. A
//! conversation that broke off must never be taken up again, because nobody knows where it stands.
//!
//! ```text
//!   caller --requests--> pipe --\                          /--> login shell -> sh -> the agent
//!   caller <--replies--- pipe ----- ssh master == network ==
//! ```

pub mod agent;
mod run;
mod stream;
mod way;

use std::fmt;
use std::io::BufReader;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{
    Frame, FrameError, Frames, HELLO, PAYLOAD_LIMIT, PIECE, Reply, Request, Stream, put_bytes,
};

pub use self::run::{Ran, Streams};
use self::stream::{Input, Output, Stop};
use self::way::Way;
use crate::exec::{ExecError, RemoteStatus};
use crate::master::ConnectError;
use crate::remote_line::START_LIMIT;
use crate::target::Target;

/// How much is read ahead, in bytes.
const AHEAD: usize = 64 * 1024;

/// How much may wait to be written, in bytes.
const WAITING: usize = 256 * 1024;

/// A list longer than this many bytes is none.
const LIST_LIMIT: usize = 64 << 20;

/// How much of a text of the other side is kept, in characters.
const TEXT: usize = 1000;

/// How many problems of a list are kept.
const PROBLEMS: usize = 1000;

/// How long an agent that was told to go may take: a command that still runs is ended first.
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// And one that nobody asks.
const LINGER: Duration = Duration::from_millis(500);

/// How long bringing the agent may take.
const PLACE_LIMIT: Duration = Duration::from_mins(5);

/// Why the other side did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FarError {
    /// It was not reached, or did not begin.
    #[error(transparent)]
    Exec(ExecError),
    /// The conversation broke off before this was asked.
    #[error("the conversation with the lease has broken off")]
    Over,
    /// There is no agent for its machine.
    #[error(
        "the machine of the lease is {machine}, and this crabbox has an agent for {} only",
        agent::machines()
    )]
    Machine {
        /// What it says of itself.
        machine: String,
    },
    /// The agent could not be put there.
    #[error("cannot put crabbox's agent into ~/.cache/crabbox of the lease: {said}")]
    Unplaced {
        /// What the lease said.
        said: String,
    },
    /// No answer in time.
    #[error("timed out after {}s", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The caller does not want it any more.
    #[error("interrupted")]
    Cancelled,
    /// The connection failed.
    #[error("the connection to the lease failed: {said}")]
    Connection {
        /// The end of what ssh said.
        said: String,
    },
    /// The agent ended.
    #[error("the agent in the lease ended ({end}): {said}")]
    Broke {
        /// How.
        end: End,
        /// Whether it had begun to speak.
        greeted: bool,
        /// The last line that it said.
        said: String,
    },
    /// The answer is not an answer.
    #[error("the agent in the lease answered {text:?}")]
    Nonsense {
        /// The beginning of the answer.
        text: String,
    },
    /// The agent could not do it.
    #[error("{why}")]
    Failed {
        /// The path and the reason.
        why: String,
    },
}

impl From<ExecError> for FarError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Connect {
                source: ConnectError::Cancelled { .. },
            } => Self::Cancelled,
            error => Self::Exec(error),
        }
    }
}

impl FarError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unplaced { .. } => Some(
                "a small program has to be there, which is put once into ~/.cache/crabbox: the user of the lease needs a home directory with \
                 room for 2 MiB, from which programs may run",
            ),
            Self::Broke { end, greeted, said } => end.hint(*greeted, said),
            _ => None,
        }
    }
}

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(u8),
    /// By a signal.
    Killed,
    /// Not at all, though it says nothing more.
    Lingers,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(out, "exit code {code}"),
            Self::Killed => out.write_str("killed"),
            Self::Lingers => out.write_str("it does not end"),
        }
    }
}

impl End {
    /// What most often makes an agent end so. Shells have their own words and codes for a program that the system does not run.
    fn hint(self, greeted: bool, said: &str) -> Option<&'static str> {
        let is_said = |words: &[&str]| words.iter().any(|word| said.contains(word));
        match self {
            // 128 and the number of a signal.
            Self::Killed | Self::Exited(129..=192) => Some(
                "a signal ended it: the kernel does that when memory runs out (dmesg there tells); take a lease with more of it \
                 (--firecracker-memory-mib), or lift what limits the user there (ulimit -a, the control group)",
            ),
            Self::Exited(2 | 126 | 127)
                if !greeted
                    && is_said(&[
                        "xec format error",
                        "cannot execute binary",
                        "yntax error",
                        "not found",
                    ]) =>
            {
                Some(
                    "the kernel and the programs of the lease are for different machines (a 32-bit system on a 64-bit kernel?): take a host or an image that is of one kind throughout",
                )
            }
            Self::Exited(126 | 127) if !greeted => Some(
                "the system there does not let it run: the home directory must not be mounted with noexec, nor a security policy (SELinux, \
                 AppArmor, fapolicyd) forbid programs in ~/.cache/crabbox",
            ),
            _ => None,
        }
    }
}

/// How putting the agent in its place ended, and what was said there.
type Placed = Result<(RemoteStatus, String), FarError>;

/// What the agent said.
#[derive(Debug)]
pub enum Heard {
    /// Bytes of a stream.
    Bytes(Stream),
    /// An answer.
    Reply(Reply),
}

/// A conversation with the agent.
#[derive(Debug)]
pub struct Far {
    way: Way,
    input: Option<Input>,
    frames: Frames<BufReader<Output>>,
    /// What is about to be written.
    waiting: Vec<u8>,
    /// How long an answer may take.
    limit: Option<Duration>,
    is_noisy: bool,
    has_greeted: bool,
    has_rsync: bool,
    /// Nothing more is said or believed.
    is_over: bool,
}

impl Far {
    /// Starts the agent of `target`, and puts it there first where it is not. `cancel` ends every wait of the conversation when it becomes
    /// readable.
    pub fn open(target: &Target, cancel: Option<BorrowedFd<'_>>) -> Result<Self, FarError> {
        Self::open_asking(target, &[], cancel)
    }

    /// The same, and asks the first questions before the agent has greeted, so that they cost no way of their own. They must hold no secret: what is
    /// in the place of an agent would hear them.
    pub fn open_asking(
        target: &Target,
        first: &[Request],
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Self, FarError> {
        Self::greeted(
            first,
            &mut |script| Way::ssh(target, script, cancel),
            &mut |script, program| way::place(target, script, program, PLACE_LIMIT, cancel),
        )
    }

    /// Starts the agent on this machine, as a login shell of it would.
    pub fn local() -> Result<Self, FarError> {
        Self::local_in(None)
    }

    /// The same for a user with this home directory.
    pub(crate) fn local_in(home: Option<&Path>) -> Result<Self, FarError> {
        Self::greeted(
            &[],
            &mut |script| Way::local(script, home),
            &mut |script, program| way::place_here(script, program, home),
        )
    }

    fn greeted(
        first: &[Request],
        open: &mut dyn FnMut(&str) -> Result<way::Opened, FarError>,
        place: &mut dyn FnMut(&str, &[u8]) -> Placed,
    ) -> Result<Self, FarError> {
        let mut far = Self::begin(first, open)?;
        match far.greet() {
            Err(FarError::Broke { said, .. }) if far.way.code() == Some(agent::ABSENT) => {
                let Some(wanted) = agent::of_machine(&said) else {
                    return Err(FarError::Machine { machine: said });
                };
                drop(far);
                let program = wanted.program().map_err(|source| ExecError::Local { source })?;
                let (status, said) = place(&agent::place(wanted), &program)?;
                match status {
                    RemoteStatus::Exited(0) => {}
                    RemoteStatus::Cancelled { .. } => return Err(FarError::Cancelled),
                    RemoteStatus::ConnectionLost => return Err(FarError::Connection { said }),
                    _ => {
                        return Err(FarError::Unplaced {
                            said: last_line(&said),
                        });
                    }
                }
                // Whoever was not there has heard nothing.
                far = Self::begin(first, open)?;
                far.greet()?;
            }
            greeted => greeted?,
        }
        Ok(far)
    }

    fn begin(
        first: &[Request],
        open: &mut dyn FnMut(&str) -> Result<way::Opened, FarError>,
    ) -> Result<Self, FarError> {
        let opened = open(&agent::start())?;
        let mut far = Self {
            way: opened.way,
            input: Some(opened.input),
            frames: Frames::new(BufReader::with_capacity(AHEAD, opened.output)),
            waiting: Vec::new(),
            limit: None,
            is_noisy: opened.is_noisy,
            has_greeted: false,
            has_rsync: false,
            is_over: false,
        };
        for request in first {
            far.ask(request)?;
        }
        Ok(far)
    }

    fn greet(&mut self) -> Result<(), FarError> {
        self.limit = Some(START_LIMIT);
        let greeted = match self.reply()? {
            Reply::Hello { word: HELLO, rsync } => {
                (self.has_rsync, self.has_greeted) = (rsync, true);
                Ok(())
            }
            other => Err(nonsense(&other)),
        };
        self.limit = None;
        greeted
    }

    /// Whether rsync there can be spoken to: it is there, and no start-up file prints something that it would take for its own protocol.
    pub fn can_rsync(&self) -> bool {
        self.has_rsync && !self.is_noisy
    }

    /// Whether the conversation has broken off.
    pub fn is_broken(&self) -> bool {
        self.is_over
    }

    /// How long an answer may take from now on.
    pub fn limit(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// Asks, which may wait in a buffer until an answer is wanted.
    pub fn ask(&mut self, request: &Request) -> Result<(), FarError> {
        let before = self.waiting.len();
        request.frame(&mut self.waiting);
        if self.waiting.len() - before > PAYLOAD_LIMIT {
            self.waiting.truncate(before);
            return Err(FarError::Failed {
                why: "it is more than can be asked at once".to_owned(),
            });
        }
        self.flush_some()
    }

    /// Sends a piece of something.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), FarError> {
        put_bytes(&mut self.waiting, Stream::Data, bytes);
        self.flush_some()
    }

    /// Sends a list whole.
    pub fn send_list(&mut self, list: &[u8]) -> Result<(), FarError> {
        for piece in list.chunks(PIECE) {
            self.send(piece)?;
        }
        self.ask(&Request::End {})
    }

    fn flush_some(&mut self) -> Result<(), FarError> {
        if self.waiting.len() >= WAITING {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what waits. A pipe that breaks is no error here: the missing answer is, and says why.
    pub fn flush(&mut self) -> Result<(), FarError> {
        if self.is_over {
            self.waiting.clear();
            return Err(FarError::Over);
        }
        let Some(input) = &mut self.input else {
            // A command runs, and its end is waited for.
            return Ok(());
        };
        let until = self.limit.map(|limit| Instant::now() + limit);
        let stop = self.frames.source().get_ref().cancel();
        let sent = input.write(&self.waiting, stop, until);
        self.waiting.clear();
        match sent {
            Ok(()) => Ok(()),
            Err(stop) => Err(self.stopped(stop)),
        }
    }

    /// Waits at most this long for an answer; whether one has come.
    pub fn answers_within(&mut self, limit: Duration) -> Result<bool, FarError> {
        self.flush()?;
        let source = self.frames.source();
        if !source.buffer().is_empty() {
            return Ok(true);
        }
        match source.get_ref().wait(Instant::now() + limit) {
            Ok(ready) => Ok(ready),
            Err(stop) => Err(self.stopped(stop)),
        }
    }

    /// Whether an answer has come already.
    pub fn has_answer(&mut self) -> bool {
        let source = self.frames.source();
        !source.buffer().is_empty() || source.get_ref().is_ready()
    }

    /// What the agent says next; of bytes, they are in [`Self::bytes`] until something else is heard.
    pub fn hear(&mut self) -> Result<Heard, FarError> {
        self.flush()?;
        let until = self.limit.map(|limit| Instant::now() + limit);
        self.frames.source().get_mut().until(until);
        let heard = match self.frames.frame() {
            Ok(Some(Frame::Bytes(stream, _))) => Ok(Heard::Bytes(stream)),
            Ok(Some(Frame::Message(tag, payload))) => Reply::take(tag, payload)
                .map(Heard::Reply)
                .map_err(|error| Some(error.to_string())),
            Ok(None) | Err(FrameError::Cut | FrameError::Read(_)) => Err(None),
            Err(error) => Err(Some(error.to_string())),
        };
        heard.map_err(
            |nonsense| match (self.frames.source().get_mut().stopped(), nonsense) {
                (Some(stop), _) => self.stopped(stop),
                (None, Some(text)) => {
                    self.input = None;
                    FarError::Nonsense { text }
                }
                (None, None) => self.verdict(),
            },
        )
    }

    /// The bytes that were heard last.
    pub fn bytes(&self) -> &[u8] {
        self.frames.payload()
    }

    /// The answer. What could not be done is an error.
    pub fn reply(&mut self) -> Result<Reply, FarError> {
        match self.hear()? {
            Heard::Reply(Reply::Failed { why }) => Err(FarError::Failed { why }),
            Heard::Reply(reply) => Ok(reply),
            Heard::Bytes(_) => {
                self.give_up();
                Err(FarError::Nonsense {
                    text: "bytes of nothing".to_owned(),
                })
            }
        }
    }

    /// A list, to its end, with what could not be looked at.
    pub fn list(&mut self) -> Result<(Vec<u8>, Vec<String>), FarError> {
        let (mut list, mut problems, mut surplus) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.hear()? {
                Heard::Bytes(Stream::Data) if list.len() < LIST_LIMIT => list.extend_from_slice(self.bytes()),
                // The rest of one that is too long, so that the conversation can go on; one without an end is none.
                Heard::Bytes(Stream::Data) if surplus < LIST_LIMIT => surplus += self.bytes().len() + 1,
                // Nobody reads more of them than a screen holds.
                Heard::Reply(Reply::Problem { text, .. }) if problems.len() < PROBLEMS => {
                    problems.push(short(text));
                }
                Heard::Reply(Reply::Problem { .. }) if surplus < LIST_LIMIT => surplus += 1,
                Heard::Reply(Reply::End {}) if surplus > 0 && list.len() >= LIST_LIMIT => {
                    return Err(FarError::Failed {
                        why: "there are too many".to_owned(),
                    });
                }
                Heard::Reply(Reply::End {}) => return Ok((list, problems)),
                Heard::Reply(Reply::Failed { why }) => return Err(FarError::Failed { why }),
                other => return Err(self.out_of_order(&other)),
            }
        }
    }

    /// The agent said something that has no place here: nothing more is believed.
    pub fn out_of_order(&mut self, said: &dyn fmt::Debug) -> FarError {
        self.give_up();
        nonsense(said)
    }

    fn stopped(&mut self, stop: Stop) -> FarError {
        self.give_up();
        match (stop, self.limit) {
            (Stop::Late, Some(limit)) => FarError::TimedOut { limit },
            (Stop::Late | Stop::Cancelled, _) => FarError::Cancelled,
            (Stop::Failed(source), _) => FarError::Exec(ExecError::Local { source }),
        }
    }

    /// Why there is no answer any more.
    fn verdict(&mut self) -> FarError {
        self.give_up();
        let (ended, said) = self.way.verdict();
        let said = last_line(&said);
        match ended {
            RemoteStatus::ConnectionLost => FarError::Connection { said },
            ended => FarError::Broke {
                end: match ended {
                    RemoteStatus::Exited(code) => End::Exited(code),
                    RemoteStatus::Killed => End::Killed,
                    _ => End::Lingers,
                },
                greeted: self.has_greeted,
                said,
            },
        }
    }

    /// Wants nothing more of the conversation.
    pub fn give_up(&mut self) {
        self.is_over = true;
        self.input = None;
        // An agent that still writes must not wait for a reader.
        self.frames.source().get_mut().close();
    }

    /// Goes without waiting for the agent's end, for which nothing is left to do.
    pub fn leave(mut self) {
        self.way.leave();
    }

    /// Says goodbye: the agent ends when its input does. Whether it did.
    pub fn close(mut self) -> bool {
        self.give_up();
        self.way.is_over(CLOSE_LIMIT)
    }
}

impl Drop for Far {
    /// The agent ends when its input does; ours is not left to linger.
    fn drop(&mut self) {
        self.give_up();
        self.way.is_over(LINGER);
    }
}

/// As much of a text from the other side as anybody reads.
pub fn short(text: String) -> String {
    match text.char_indices().nth(TEXT) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn nonsense(said: &dyn fmt::Debug) -> FarError {
    FarError::Nonsense {
        text: format!("{said:?}").chars().take(200).collect(),
    }
}

fn last_line(text: &str) -> String {
    let mut lines = text.lines().rev().map(str::trim);
    let last = lines.find(|line| !line.is_empty());
    last.unwrap_or("no message").to_owned()
}
