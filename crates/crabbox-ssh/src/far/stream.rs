//! Both ends of a conversation, as streams that can be given up.
//!
//! A wait must never last longer than it may, whether it is for a word of the other side or for room for ours.

use std::io::{self, Cursor, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use crabbox_host::wait::{Ready, wait};

/// Why a wait was given up.
#[derive(Debug)]
pub(super) enum Stop {
    /// It took too long.
    Late,
    /// Nobody wants it any more.
    Cancelled,
    /// It could not be waited for.
    Failed(io::Error),
}

/// The way to the agent.
#[derive(Debug)]
pub(super) struct Input(PipeWriter);

impl Input {
    /// A pipe that nobody else writes to.
    pub(super) fn new(pipe: PipeWriter) -> io::Result<Self> {
        // Else a write that finds no room could not be given up.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self(pipe))
    }

    /// Writes all, or as much as is read there.
    pub(super) fn write(
        &mut self,
        mut bytes: &[u8],
        cancel: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<(), Stop> {
        while !bytes.is_empty() {
            match self.0.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match wait(self.0.as_fd(), PollFlags::OUT, cancel, until).map_err(Stop::Failed)? {
                        Ready::First => {}
                        Ready::Second => return Err(Stop::Cancelled),
                        Ready::Neither => return Err(Stop::Late),
                    }
                }
                // Nobody reads any more, and the answer says why.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The way from the agent.
#[derive(Debug)]
pub(super) struct Output {
    /// What came behind the mark.
    behind: Cursor<Vec<u8>>,
    pipe: Option<PipeReader>,
    cancel: Option<OwnedFd>,
    until: Option<Instant>,
    stopped: Option<Stop>,
}

impl Output {
    pub(super) fn new(behind: Vec<u8>, pipe: PipeReader, cancel: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        Ok(Self {
            behind: Cursor::new(behind),
            pipe: Some(pipe),
            cancel: cancel.map(|fd| fd.try_clone_to_owned()).transpose()?,
            until: None,
            stopped: None,
        })
    }

    /// How long reading may go on.
    pub(super) fn until(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// Readable when nobody wants the conversation any more.
    pub(super) fn cancel(&self) -> Option<BorrowedFd<'_>> {
        self.cancel.as_ref().map(OwnedFd::as_fd)
    }

    /// Puts another one in its place.
    pub(super) fn cancelled_by(&mut self, cancel: Option<OwnedFd>) -> Option<OwnedFd> {
        std::mem::replace(&mut self.cancel, cancel)
    }

    /// Why reading was given up, told once.
    pub(super) fn stopped(&mut self) -> Option<Stop> {
        self.stopped.take()
    }

    /// Whether something can be read until then.
    pub(super) fn wait(&self, until: Instant) -> Result<bool, Stop> {
        if self.has_behind() {
            return Ok(true);
        }
        let Some(pipe) = &self.pipe else {
            return Ok(true);
        };
        match wait(pipe.as_fd(), PollFlags::IN, self.cancel(), Some(until)) {
            Ok(Ready::First) => Ok(true),
            Ok(Ready::Neither) => Ok(false),
            Ok(Ready::Second) => Err(Stop::Cancelled),
            Err(error) => Err(Stop::Failed(error)),
        }
    }

    fn has_behind(&self) -> bool {
        self.behind.position() < self.behind.get_ref().len() as u64
    }

    /// Whether something can be read.
    pub(super) fn is_ready(&self) -> bool {
        let now = Some(Instant::now());
        let ready =
            |pipe: &PipeReader| matches!(wait(pipe.as_fd(), PollFlags::IN, None, now), Ok(Ready::First));
        self.has_behind() || self.pipe.as_ref().is_none_or(ready)
    }

    /// Reads nothing more: whoever still writes gets a broken pipe.
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
        let Some(mut pipe) = self.pipe.as_ref() else {
            return Ok(0);
        };
        let stop = match wait(pipe.as_fd(), PollFlags::IN, self.cancel(), self.until) {
            Ok(Ready::First) => return pipe.read(buffer),
            Ok(Ready::Second) => Stop::Cancelled,
            Ok(Ready::Neither) => Stop::Late,
            Err(error) => Stop::Failed(error),
        };
        self.stopped = Some(stop);
        Err(io::ErrorKind::TimedOut.into())
    }
}
