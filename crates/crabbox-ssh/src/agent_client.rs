//! The agent on the remote side: one process over one session for everything that is asked of a lease.
//!
//! Replies come from a machine that runs foreign code: they are bounded and checked, and waited for no longer
//! than the caller wants. A conversation that broke off must never be resumed, because its state is unknown.
//!
//! ```text
//!   caller --requests--> pipe --\                          /--> login shell -> sh -> the agent
//!   caller <--replies--- pipe ----- ssh master == network ==
//! ```

pub mod agent;
mod error;
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

pub use self::error::{AgentError, End};
pub use self::run::{Ran, Streams};
use self::stream::{Input, Output, Stop};
use self::way::AgentProcess;
use crate::exec::{ExecError, RemoteStatus};
use crate::remote_line::START_LIMIT;
use crate::target::Target;

/// The size of the read buffer, in bytes.
const AHEAD: usize = 64 * 1024;

/// How much output is buffered before it is written, in bytes.
const WAITING: usize = 256 * 1024;

/// The longest list that is accepted, in bytes.
const LIST_LIMIT: usize = 64 << 20;

/// How much of a remote text is kept, in characters.
const TEXT: usize = 1000;

/// How many problems of a list are kept.
const PROBLEMS: usize = 1000;

/// How long to wait for the agent to end after a close: a command that still runs is ended first.
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// How long to wait for the agent when `AgentClient` is dropped.
const LINGER: Duration = Duration::from_millis(500);

/// How long uploading the agent may take.
const PLACE_LIMIT: Duration = Duration::from_mins(5);

/// The result of uploading the agent, and what was printed.
type Placed = Result<(RemoteStatus, String), AgentError>;

/// A message from the agent.
#[derive(Debug)]
pub enum AgentMessage {
    /// Bytes of a stream.
    Bytes(Stream),
    /// A reply.
    Reply(Reply),
}

/// A conversation with the agent.
#[derive(Debug)]
pub struct AgentClient {
    way: AgentProcess,
    input: Option<Input>,
    frames: Frames<BufReader<Output>>,
    /// Output that was not written yet.
    waiting: Vec<u8>,
    /// How long a reply may take.
    limit: Option<Duration>,
    is_noisy: bool,
    has_greeted: bool,
    has_rsync: bool,
    /// Set when the conversation has broken off.
    is_over: bool,
}

impl AgentClient {
    /// Starts the agent of `target`, uploading it first if it is not there. `cancel` ends every wait of the
    /// conversation when it becomes readable.
    pub fn open(target: &Target, cancel: Option<BorrowedFd<'_>>) -> Result<Self, AgentError> {
        Self::open_asking(target, &[], cancel)
    }

    /// Like [`Self::open`], but sends the first requests before the agent has greeted, which saves a round
    /// trip. They must hold no secret, because something else in place of the agent would read them.
    pub fn open_asking(
        target: &Target,
        first: &[Request],
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Self, AgentError> {
        Self::greeted(
            first,
            &mut |script| AgentProcess::ssh(target, script, cancel),
            &mut |script, program| way::place(target, script, program, PLACE_LIMIT, cancel),
        )
    }

    /// Starts the agent on this machine, as a login shell would.
    pub fn local() -> Result<Self, AgentError> {
        Self::local_in(None)
    }

    /// The same, with this home directory.
    pub(crate) fn local_in(home: Option<&Path>) -> Result<Self, AgentError> {
        Self::greeted(
            &[],
            &mut |script| AgentProcess::local(script, home),
            &mut |script, program| way::place_here(script, program, home),
        )
    }

    fn greeted(
        first: &[Request],
        open: &mut dyn FnMut(&str) -> Result<way::Opened, AgentError>,
        place: &mut dyn FnMut(&str, &[u8]) -> Placed,
    ) -> Result<Self, AgentError> {
        let mut far = Self::begin(&agent::start(), first, open)?;
        let wanted = match far.greet() {
            Ok(()) => return Ok(far),
            Err(error) => far.wanted(error)?,
        };
        drop(far);
        let program = wanted.program().map_err(|source| ExecError::Local { source })?;
        let (status, stderr) = place(&agent::place(wanted), &program)?;
        match status {
            RemoteStatus::Exited(0) => {}
            RemoteStatus::Cancelled { .. } => return Err(AgentError::Cancelled),
            RemoteStatus::ConnectionLost => return Err(AgentError::Connection { said: stderr }),
            _ => {
                return Err(AgentError::Unplaced {
                    said: last_line(&stderr),
                });
            }
        }
        // Start again: an absent agent has read nothing, and whatever was in its place has not understood the
        // requests.
        let mut far = Self::begin(&agent::start_placed(), first, open)?;
        far.greet()?;
        Ok(far)
    }

    /// The agent that has to be uploaded, if the error shows that it is missing or that its file is damaged
    /// (a full disk, a power cut). Otherwise returns the error.
    fn wanted(&self, error: AgentError) -> Result<&'static agent::Agent, AgentError> {
        let code = self.way.code();
        if let Some(agent) = code.and_then(agent::wanted) {
            return Ok(agent);
        }
        let is_absent = code == Some(agent::ABSENT);
        // An agent that was killed may have run out of memory or may have a damaged file; upload it either
        // way, and if it was memory, the next start reports that.
        let is_damaged = match &error {
            AgentError::Broke { end, .. } => *end != End::Lingers,
            AgentError::Nonsense { .. } | AgentError::Mixed { .. } => true,
            _ => false,
        };
        if !is_absent && !is_damaged {
            return Err(error);
        }
        // It need not be the last line: a process left running by a start-up file may have printed more
        // since.
        match self.way.line(agent::MACHINE) {
            Some(machine) => agent::of_machine(&machine).ok_or(AgentError::Machine { machine }),
            None => Err(error),
        }
    }

    fn begin(
        script: &str,
        first: &[Request],
        open: &mut dyn FnMut(&str) -> Result<way::Opened, AgentError>,
    ) -> Result<Self, AgentError> {
        let opened = open(script)?;
        let mut far = Self {
            way: opened.way,
            input: Some(opened.input),
            frames: Frames::shared(BufReader::with_capacity(AHEAD, opened.output)),
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

    fn greet(&mut self) -> Result<(), AgentError> {
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

    /// Whether rsync can be used: the lease has it, and no start-up file prints anything that would disturb
    /// its protocol.
    pub fn can_rsync(&self) -> bool {
        self.has_rsync && !self.is_noisy && self.frames.foreign().is_none()
    }

    /// Whether the conversation has broken off.
    pub fn is_broken(&self) -> bool {
        self.is_over
    }

    /// Sets how long a reply may take from now on.
    pub fn limit(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// Sends a request, which may stay in a buffer until a reply is waited for.
    pub fn ask(&mut self, request: &Request) -> Result<(), AgentError> {
        // The owner of a tree has to send pings, or the agent takes the client for gone.
        if let (Request::Own { .. }, Some(input)) = (request, &mut self.input) {
            input.keep_alive();
        }
        let before = self.waiting.len();
        request.frame(&mut self.waiting);
        if self.waiting.len() - before > PAYLOAD_LIMIT {
            self.waiting.truncate(before);
            return Err(AgentError::Failed {
                why: "the request is too large for one message".to_owned(),
            });
        }
        self.flush_some()
    }

    /// Sends a chunk of bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        put_bytes(&mut self.waiting, Stream::Data, bytes);
        self.flush_some()
    }

    /// Sends a whole list.
    pub fn send_list(&mut self, list: &[u8]) -> Result<(), AgentError> {
        for piece in list.chunks(PIECE) {
            self.send(piece)?;
        }
        self.ask(&Request::End {})
    }

    fn flush_some(&mut self) -> Result<(), AgentError> {
        if self.waiting.len() >= WAITING {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the buffered output. A broken pipe is no error here: the missing reply will be, and says why.
    pub fn flush(&mut self) -> Result<(), AgentError> {
        if self.is_over {
            self.waiting.clear();
            return Err(AgentError::Over);
        }
        let Some(input) = &mut self.input else {
            // A command is running, and its end is waited for.
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

    /// Waits at most this long for a reply; returns whether one has come.
    pub fn answers_within(&mut self, limit: Duration) -> Result<bool, AgentError> {
        self.flush()?;
        let begun = self.begins(Instant::now() + limit);
        begun.map_err(|stop| self.stopped(stop))
    }

    /// Whether a reply, or the reason why there will be none, can be read already.
    pub fn has_answer(&mut self) -> bool {
        self.begins(Instant::now()).unwrap_or(true)
    }

    /// Whether a reply begins before `until`; foreign output does not count.
    fn begins(&mut self, until: Instant) -> Result<bool, Stop> {
        loop {
            let source = self.frames.source();
            if source.buffer().is_empty() && !source.get_mut().wait(until)? {
                return Ok(false);
            }
            if self.frames.begins() {
                return Ok(true);
            }
        }
    }

    /// The next message of the agent; its bytes, if any, are in [`Self::bytes`] until the next call.
    pub fn hear(&mut self) -> Result<AgentMessage, AgentError> {
        self.flush()?;
        let until = self.limit.map(|limit| Instant::now() + limit);
        self.frames.source().get_mut().until(until);
        let mut is_mixed = false;
        let heard = match self.frames.frame() {
            Ok(Some(Frame::Bytes(stream, _))) => Ok(AgentMessage::Bytes(stream)),
            Ok(Some(Frame::Message(tag, payload))) => Reply::take(tag, payload)
                .map(AgentMessage::Reply)
                .map_err(|error| Some(error.to_string())),
            Ok(None) | Err(FrameError::Cut | FrameError::Read(_)) => Err(None),
            Err(error) => {
                is_mixed = matches!(error, FrameError::Mixed);
                Err(Some(error.to_string()))
            }
        };
        heard.map_err(
            |nonsense| match (self.frames.source().get_mut().stopped(), nonsense) {
                (Some(stop), _) => self.stopped(stop),
                (None, Some(text)) => {
                    self.input = None;
                    self.nonsense(text, is_mixed)
                }
                (None, None) => self.verdict(),
            },
        )
    }

    /// Blames foreign output for an unreadable reply, if there was any.
    fn nonsense(&self, text: String, is_mixed: bool) -> AgentError {
        match self.frames.foreign() {
            Some(printed) => AgentError::Mixed { printed },
            None if is_mixed => AgentError::Mixed {
                printed: String::new(),
            },
            None => AgentError::Nonsense { text },
        }
    }

    /// The bytes that were received last.
    pub fn bytes(&self) -> &[u8] {
        self.frames.payload()
    }

    /// The next reply. [`Reply::Failed`] is returned as an error.
    pub fn reply(&mut self) -> Result<Reply, AgentError> {
        match self.hear()? {
            AgentMessage::Reply(Reply::Failed { why }) => Err(AgentError::Failed { why }),
            AgentMessage::Reply(reply) => Ok(reply),
            AgentMessage::Bytes(_) => {
                self.give_up();
                Err(AgentError::Nonsense {
                    text: "bytes of nothing".to_owned(),
                })
            }
        }
    }

    /// Receives a whole list, and the problems reported in it.
    pub fn list(&mut self) -> Result<(Vec<u8>, Vec<String>), AgentError> {
        let (mut list, mut problems, mut surplus) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.hear()? {
                AgentMessage::Bytes(Stream::Data) if list.len() < LIST_LIMIT => {
                    list.extend_from_slice(self.bytes());
                }
                // Skip the rest of a list that is too long, so that the conversation can go on; a list that
                // never ends is an error.
                AgentMessage::Bytes(Stream::Data) if surplus < LIST_LIMIT => {
                    surplus += self.bytes().len() + 1;
                }
                // More problems than this would not be read by anyone.
                AgentMessage::Reply(Reply::Problem { text, .. }) if problems.len() < PROBLEMS => {
                    problems.push(short(text));
                }
                AgentMessage::Reply(Reply::Problem { .. }) if surplus < LIST_LIMIT => surplus += 1,
                AgentMessage::Reply(Reply::End {}) if surplus > 0 && list.len() >= LIST_LIMIT => {
                    return Err(AgentError::Failed {
                        why: format!("the list from the lease is longer than {} MiB", LIST_LIMIT >> 20),
                    });
                }
                AgentMessage::Reply(Reply::End {}) => return Ok((list, problems)),
                AgentMessage::Reply(Reply::Failed { why }) => return Err(AgentError::Failed { why }),
                other => return Err(self.out_of_order(&other)),
            }
        }
    }

    /// Ends the conversation because of an unexpected message of the agent.
    pub fn out_of_order(&mut self, said: &dyn fmt::Debug) -> AgentError {
        self.give_up();
        nonsense(said)
    }

    fn stopped(&mut self, stop: Stop) -> AgentError {
        self.give_up();
        match (stop, self.limit) {
            (Stop::Late, Some(limit)) => AgentError::TimedOut { limit },
            (Stop::Late | Stop::Cancelled, _) => AgentError::Cancelled,
            (Stop::Failed(source), _) => AgentError::Exec(ExecError::Local { source }),
        }
    }

    /// Finds out why there is no reply any more.
    fn verdict(&mut self) -> AgentError {
        self.give_up();
        let (ended, said) = self.way.verdict();
        let printed = self.frames.foreign().unwrap_or_default();
        let said = last_line(if said_nothing(&said) { &printed } else { &said });
        match ended {
            RemoteStatus::ConnectionLost => AgentError::Connection { said },
            ended => AgentError::Broke {
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

    /// Ends the conversation.
    pub fn give_up(&mut self) {
        self.is_over = true;
        self.input = None;
        // An agent that still writes gets a broken pipe instead of waiting for a reader.
        self.frames.source().get_mut().close();
    }

    /// Drops the conversation without waiting for the agent to end.
    pub fn leave(mut self) {
        self.way.leave();
    }

    /// Closes the conversation, upon which the agent ends; returns whether it did.
    pub fn close(mut self) -> bool {
        self.give_up();
        self.way.is_over(CLOSE_LIMIT)
    }
}

impl Drop for AgentClient {
    /// The agent ends when its input does; wait a moment for it.
    fn drop(&mut self) {
        self.give_up();
        self.way.is_over(LINGER);
    }
}

/// Shortens a remote text for display.
pub fn short(text: String) -> String {
    match text.char_indices().nth(TEXT) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn nonsense(said: &dyn fmt::Debug) -> AgentError {
    AgentError::Nonsense {
        text: format!("{said:?}").chars().take(200).collect(),
    }
}

/// The lines of standard error, without the line that our own script prints.
fn lines_of(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with(agent::MACHINE))
}

fn said_nothing(text: &str) -> bool {
    lines_of(text).next().is_none()
}

fn last_line(text: &str) -> String {
    lines_of(text).next_back().unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_is_not_what_our_own_script_says() {
        let machine = format!("{}x86_64\n", agent::MACHINE);
        assert_eq!(last_line(&format!("first\n  last \n{machine}\n")), "last");
        assert_eq!(last_line(&machine), "no message");
    }
}
