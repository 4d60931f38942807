//! Both directions of a conversation, as streams with deadlines and cancellation.
//!
//! A wait must never exceed its deadline, whether it is for input or for room to write.

use std::io::{self, Cursor, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crabbox_agent_protocol::Request;
use rustix::event::PollFlags;

use crate::beginning::QUIET;
use crabbox_host::wait::{self, Ready, wait};

/// How often we send a ping, as often as the Go program renews its lock. An agent that has heard nothing for
/// 45 s gives way to another client.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How long at most to keep reading the output of an ended session, even if something still writes there.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a wait ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// It took too long.
    Late,
    /// It was cancelled.
    Cancelled,
    /// Waiting failed.
    Failed(io::Error),
}

/// The stream to the agent; closed on drop.
#[derive(Debug)]
pub(super) struct Input {
    pipe: Arc<Mutex<PipeWriter>>,
    /// Open while the ping thread runs.
    pings: Option<Sender<()>>,
}

impl Input {
    /// Takes a pipe that nothing else writes to.
    pub(super) fn new(pipe: PipeWriter) -> io::Result<Self> {
        // Non-blocking, so that a write to a full pipe can be given up.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self {
            pipe: Arc::new(Mutex::new(pipe)),
            pings: None,
        })
    }

    /// Sends pings from now on, whatever else this process does. A stopped process sends none, and none
    /// arrive if the network is gone.
    pub(super) fn keep_alive(&mut self) {
        self.ping_every(PING_EVERY);
    }

    fn ping_every(&mut self, every: Duration) {
        if self.pings.is_some() {
            return;
        }
        let (stop, stopped) = channel();
        let pipe = Arc::downgrade(&self.pipe);
        let mut ping = Vec::new();
        Request::Ping {}.frame(&mut ping);
        // Without a thread we go on anyway: the agent only gives up when another client wants its tree.
        let started = std::thread::Builder::new()
            .name("pings".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    let Some(pipe) = pipe.upgrade() else { return };
                    match pipe.try_lock() {
                        // A ping is written whole or not at all, being far shorter than PIPE_BUF; if the pipe
                        // is full, the agent has enough to read.
                        Ok(mut pipe) => drop(pipe.write(&ping)),
                        // The main thread is writing, which the agent hears anyway.
                        Err(TryLockError::WouldBlock) => {}
                        Err(TryLockError::Poisoned(_)) => return,
                    }
                }
            });
        if started.is_ok() {
            self.pings = Some(stop);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PipeWriter> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes whole messages, until they are written or the agent stops reading.
    pub(super) fn write(
        &mut self,
        mut bytes: &[u8],
        cancel: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<(), Stop> {
        let mut pipe = self.lock();
        while !bytes.is_empty() {
            match pipe.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match wait(pipe.as_fd(), PollFlags::OUT, cancel, until).map_err(Stop::Failed)? {
                        Ready::First => {}
                        Ready::Second => return Err(Stop::Cancelled),
                        Ready::Neither => return Err(Stop::Late),
                    }
                }
                // The agent does not read any more; the reply says why.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The stream from the agent.
#[derive(Debug)]
pub(super) struct Output {
    /// What was read together with the mark.
    behind: Cursor<Vec<u8>>,
    pipe: Option<PipeReader>,
    cancel: Option<OwnedFd>,
    /// Becomes readable when the agent has ended: the stream may stay open longer, held by a process that a
    /// start-up file left running.
    over: Option<OwnedFd>,
    /// Once the agent has ended: when to stop if nothing arrives, and when to stop in any case.
    closes: Option<(Instant, Instant)>,
    until: Option<Instant>,
    stopped: Option<Stop>,
}

/// The result of a wait for the stream.
enum Found {
    /// Something to read, or the end of the stream.
    Something,
    /// Nothing, and nothing will come.
    End,
    /// Nothing in time.
    Nothing,
}

impl Output {
    pub(super) fn new(
        behind: Vec<u8>,
        pipe: PipeReader,
        over: Option<BorrowedFd<'_>>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let owned = |fd: Option<BorrowedFd<'_>>| fd.map(|fd| fd.try_clone_to_owned()).transpose();
        Ok(Self {
            behind: Cursor::new(behind),
            pipe: Some(pipe),
            cancel: owned(cancel)?,
            over: owned(over)?,
            closes: None,
            until: None,
            stopped: None,
        })
    }

    fn find(&mut self, until: Option<Instant>) -> Result<Found, Stop> {
        let Some(pipe) = &self.pipe else {
            return Ok(Found::Something);
        };
        loop {
            let closes = self.closes.map(|(quiet, last)| quiet.min(last));
            let next = [until, closes].into_iter().flatten().min();
            let cancel = self.cancel.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN));
            let over = self.over.as_ref().filter(|_| closes.is_none());
            let over = over.map(|fd| (fd.as_fd(), PollFlags::IN));
            let fds = [cancel, Some((pipe.as_fd(), PollFlags::IN)), over];
            match wait::any(fds, next).map_err(Stop::Failed)? {
                Some(0) => return Err(Stop::Cancelled),
                Some(1) => {
                    let quiet = Instant::now() + QUIET;
                    self.closes = self.closes.map(|(_, last)| (quiet, last));
                    return Ok(Found::Something);
                }
                Some(_) => {
                    let now = Instant::now();
                    self.closes = Some((now + QUIET, now + LAST_WORDS));
                }
                None if closes.is_some_and(|closes| closes <= Instant::now()) => return Ok(Found::End),
                None => return Ok(Found::Nothing),
            }
        }
    }

    /// Sets the deadline for reading.
    pub(super) fn until(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// Becomes readable when the conversation is cancelled.
    pub(super) fn cancel(&self) -> Option<BorrowedFd<'_>> {
        self.cancel.as_ref().map(OwnedFd::as_fd)
    }

    /// Replaces the cancel descriptor.
    pub(super) fn cancelled_by(&mut self, cancel: Option<OwnedFd>) -> Option<OwnedFd> {
        std::mem::replace(&mut self.cancel, cancel)
    }

    /// Takes the reason why reading ended.
    pub(super) fn stopped(&mut self) -> Option<Stop> {
        self.stopped.take()
    }

    /// Whether data or the end of the stream can be read before `until`.
    pub(super) fn wait(&mut self, until: Instant) -> Result<bool, Stop> {
        if self.has_behind() {
            return Ok(true);
        }
        Ok(!matches!(self.find(Some(until))?, Found::Nothing))
    }

    fn has_behind(&self) -> bool {
        self.behind.position() < self.behind.get_ref().len() as u64
    }

    /// Stops reading: a process that still writes gets a broken pipe.
    pub(super) fn close(&mut self) {
        self.pipe = None;
    }
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.behind.read(buffer)?;
        if count > 0 {
            return Ok(count);
        }
        let stop = match self.find(self.until) {
            Ok(Found::Something) => return self.pipe.as_ref().map_or(Ok(0), |mut pipe| pipe.read(buffer)),
            Ok(Found::End) => return Ok(0),
            Ok(Found::Nothing) => Stop::Late,
            Err(stop) => stop,
        };
        self.stopped = Some(stop);
        Err(io::ErrorKind::TimedOut.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_sent_whole_until_the_stream_is_closed() {
        let mut ping = Vec::new();
        Request::Ping {}.frame(&mut ping);
        let (mut reader, writer) = io::pipe().unwrap();
        let mut input = Input::new(writer).unwrap();
        input.ping_every(Duration::from_millis(10));
        let mut two = vec![0; 2 * ping.len()];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(two, [ping.clone(), ping.clone()].concat());
        drop(input);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len() % ping.len(), 0);
    }
}
