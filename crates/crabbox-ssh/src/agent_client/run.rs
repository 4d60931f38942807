//! Runs a command in the lease over the agent's conversation.
//!
//! A status is only reported if it arrived. A cancelled command is stopped on the remote side.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use crabbox_agent_protocol::{Command, Reply, Request, Stream};
use rustix::event::PollFlags;

use super::stream::Input;
use super::{AgentClient, AgentError, AgentMessage};
use crate::exec::{DRAIN_LIMIT, RemoteStatus};
use crabbox_host::wait::{Ready, wait};

/// Where the output of a command goes, unbuffered.
pub struct Streams<'a> {
    /// Standard output.
    pub out: &'a mut (dyn Write + Send),
    /// Standard error.
    pub err: &'a mut (dyn Write + Send),
}

impl std::fmt::Debug for Streams<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Streams")
    }
}

/// How a command ended.
#[derive(Debug)]
pub enum Ran {
    /// It ran.
    Ended {
        /// How it ended.
        status: RemoteStatus,
        /// Whether it has signalled that its start-up files were read.
        told: bool,
    },
    /// It was not started.
    Unstarted {
        /// What the system said.
        why: String,
        /// Whether there is no such program.
        absent: bool,
    },
}

/// The result of the listening thread.
struct Listened {
    end: Result<Reply, AgentError>,
    /// Whether the output could be written.
    sink: io::Result<()>,
}

impl AgentClient {
    /// Runs `command` to its end, with `input` as its standard input if it takes one. It is stopped when
    /// `cancel` becomes readable, or when its output cannot be written.
    pub fn run(
        &mut self,
        command: Command,
        input: Option<&[u8]>,
        mut streams: Streams<'_>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Ran, AgentError> {
        self.ask(&Request::Run { command })?;
        if let Some(input) = input {
            self.send_list(input)?;
        }
        self.flush()?;
        let local = |source| AgentError::Exec(crate::exec::ExecError::Local { source });
        let (mut told, telling) = io::pipe().map_err(local)?;
        let (stop, stopping) = io::pipe().map_err(local)?;
        // An interrupt stops the command first, and ends the conversation only if that takes too long.
        let source = self.frames.source().get_mut();
        let before = source.cancelled_by(Some(stop.into()));
        let mut way = self.input.take();
        let (listened, gave_up) = std::thread::scope(|scope| {
            let listening = scope.spawn(|| self.listen(&mut streams, telling));
            let gave_up = !comes_to_its_end(&mut told, way.as_mut(), cancel);
            if gave_up {
                // Closing its input makes the agent end the command.
                way = None;
            }
            drop(stopping);
            let listened = listening
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (listened, gave_up)
        });
        self.frames.source().get_mut().cancelled_by(before);
        if gave_up {
            self.give_up();
            return Ok(Ran::Ended {
                status: RemoteStatus::Cancelled { stopped: false },
                told: true,
            });
        }
        let ended = self.judge(listened.end)?;
        // Only now is it certain that no further message is on its way.
        if !self.is_over {
            self.input = way;
        }
        match listened.sink {
            // A broken pipe only means that the reader of our output has gone.
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(AgentError::Exec(crate::exec::ExecError::Output { source }))
            }
            _ => Ok(ended),
        }
    }

    fn judge(&mut self, end: Result<Reply, AgentError>) -> Result<Ran, AgentError> {
        let ended = |status, told| Ok(Ran::Ended { status, told });
        match end {
            Ok(Reply::Exited { code, told }) => {
                ended(RemoteStatus::Exited(u8::try_from(code).unwrap_or(255)), told)
            }
            Ok(Reply::Stopped { gone }) => ended(RemoteStatus::Cancelled { stopped: gone }, true),
            Ok(Reply::Unstarted { why, absent }) => Ok(Ran::Unstarted { why, absent }),
            Ok(other) => Err(self.out_of_order(&other)),
            Err(AgentError::Connection { .. }) => ended(RemoteStatus::ConnectionLost, true),
            Err(AgentError::Broke { .. }) => ended(RemoteStatus::Killed, true),
            Err(error) => Err(error),
        }
    }

    /// Forwards output until the end of the command is reported. A byte in `telling` reports that output
    /// could not be written; it closes when this returns.
    fn listen(&mut self, streams: &mut Streams<'_>, mut telling: PipeWriter) -> Listened {
        let mut sink = Ok(());
        let end = loop {
            match self.hear() {
                Ok(AgentMessage::Bytes(stream)) => {
                    let to = match stream {
                        Stream::Err => &mut *streams.err,
                        Stream::Out | Stream::Data => &mut *streams.out,
                    };
                    // Output is still read after a write error, so that the end of the command is seen; the
                    // error is reported afterwards.
                    if sink.is_ok() {
                        sink = to.write_all(self.bytes()).and_then(|()| to.flush());
                        if sink.is_err() {
                            // The reader stops the command when it gets this byte.
                            telling.write_all(b"!").ok();
                        }
                    }
                }
                Ok(AgentMessage::Reply(reply)) => break Ok(reply),
                Err(error) => break Err(error),
            }
        };
        Listened { end, sink }
    }
}

/// Waits for the end of a command, and stops it when `cancel` is readable or its output cannot be written;
/// returns whether the end came.
fn comes_to_its_end(
    told: &mut PipeReader,
    mut way: Option<&mut Input>,
    cancel: Option<BorrowedFd<'_>>,
) -> bool {
    let is_wanted = match wait(told.as_fd(), PollFlags::IN, cancel, None) {
        // A byte means that the command should be stopped, the end of the pipe that it has ended.
        Ok(Ready::First) => matches!(told.read(&mut [0]), Ok(0)),
        _ => false,
    };
    if is_wanted {
        return true;
    }
    let until = Instant::now() + DRAIN_LIMIT;
    let mut asked = Vec::new();
    Request::Stop {}.frame(&mut asked);
    if let Some(way) = &mut way {
        // If this fails, the conversation is ended when this returns.
        way.write(&asked, None, Some(until)).ok();
    }
    loop {
        match wait(told.as_fd(), PollFlags::IN, None, Some(until)) {
            Ok(Ready::First) if matches!(told.read(&mut [0]), Ok(0)) => return true,
            Ok(Ready::First) => {}
            _ => return false,
        }
    }
}
