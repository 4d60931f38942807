//! A command in the lease, over the conversation that all the rest goes over.
//!
//! A status is only reported when it arrived, and the end of a command that nobody wants any more is asked for where it runs.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use crabbox_agent_protocol::{Command, Reply, Request, Stream};
use rustix::event::PollFlags;

use super::stream::Input;
use super::{Far, FarError, Heard};
use crate::exec::{DRAIN_LIMIT, RemoteStatus};
use crabbox_host::wait::{Ready, wait};

/// Where the streams of a command go, unbuffered.
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
        /// Whether it has told that its start-up files are behind it.
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

/// What the thread that listens comes back with.
struct Listened {
    end: Result<Reply, FarError>,
    /// Why what came could not be handed on.
    sink: io::Result<()>,
}

impl Far {
    /// Runs `command` to its end, with `input` as its standard input where it wants one; it is ended when `cancel` becomes readable, or when what it
    /// says cannot be handed on.
    pub fn run(
        &mut self,
        command: Command,
        input: Option<&[u8]>,
        mut streams: Streams<'_>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Ran, FarError> {
        self.ask(&Request::Run { command })?;
        if let Some(input) = input {
            self.send_list(input)?;
        }
        self.flush()?;
        let local = |source| FarError::Exec(crate::exec::ExecError::Local { source });
        let (mut told, telling) = io::pipe().map_err(local)?;
        let (stop, stopping) = io::pipe().map_err(local)?;
        // An interrupt ends the command first, and the conversation only when that takes too long.
        let source = self.frames.source().get_mut();
        let before = source.cancelled_by(Some(stop.into()));
        let mut way = self.input.take();
        let (listened, gave_up) = std::thread::scope(|scope| {
            let listening = scope.spawn(|| self.listen(&mut streams, telling));
            let gave_up = !comes_to_its_end(&mut told, way.as_mut(), cancel);
            if gave_up {
                // The agent ends the command when nobody speaks to it any more.
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
        // Only now is it clear that nothing else is on its way.
        if !self.is_over {
            self.input = way;
        }
        match listened.sink {
            // Whoever reads our output has gone.
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(FarError::Exec(crate::exec::ExecError::Output { source }))
            }
            _ => Ok(ended),
        }
    }

    fn judge(&mut self, end: Result<Reply, FarError>) -> Result<Ran, FarError> {
        let ended = |status, told| Ok(Ran::Ended { status, told });
        match end {
            Ok(Reply::Exited { code, told }) => {
                ended(RemoteStatus::Exited(u8::try_from(code).unwrap_or(255)), told)
            }
            Ok(Reply::Stopped { gone }) => ended(RemoteStatus::Cancelled { stopped: gone }, true),
            Ok(Reply::Unstarted { why, absent }) => Ok(Ran::Unstarted { why, absent }),
            Ok(other) => Err(self.out_of_order(&other)),
            Err(FarError::Connection { .. }) => ended(RemoteStatus::ConnectionLost, true),
            Err(FarError::Broke { .. }) => ended(RemoteStatus::Killed, true),
            Err(error) => Err(error),
        }
    }

    /// Hands on what comes until the command's end is told. `telling` says when something could not be handed on, and ends with this.
    fn listen(&mut self, streams: &mut Streams<'_>, mut telling: PipeWriter) -> Listened {
        let mut sink = Ok(());
        let end = loop {
            match self.hear() {
                Ok(Heard::Bytes(stream)) => {
                    let to = match stream {
                        Stream::Err => &mut *streams.err,
                        Stream::Out | Stream::Data => &mut *streams.out,
                    };
                    // What cannot be handed on is still taken, so that the command's end is seen; it is told afterwards.
                    if sink.is_ok() {
                        sink = to.write_all(self.bytes()).and_then(|()| to.flush());
                        if sink.is_err() {
                            // Its reader waits for nothing else.
                            telling.write_all(b"!").ok();
                        }
                    }
                }
                Ok(Heard::Reply(reply)) => break Ok(reply),
                Err(error) => break Err(error),
            }
        };
        Listened { end, sink }
    }
}

/// Waits for a command's end, and asks for it when `cancel` is readable or nobody takes what it says; whether it came.
fn comes_to_its_end(
    told: &mut PipeReader,
    mut way: Option<&mut Input>,
    cancel: Option<BorrowedFd<'_>>,
) -> bool {
    let is_wanted = match wait(told.as_fd(), PollFlags::IN, cancel, None) {
        // A byte says that it should end, the end of the pipe that it has.
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
        // One that cannot be asked is left when this returns.
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
