//! The conversation with the client, over this process's standard streams.
//!
//! A client that has gone ends it wherever it stands; nothing else does. Nothing but frames may be written to standard output.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use crabbox_agent_protocol::{Frame, FrameError, Frames, PIECE, Reply, Request, Stream, put_bytes};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PIPE_BUF;

use crate::failure::{At as _, Failure};
use crate::names::Names;

/// How much is read ahead, in bytes.
const AHEAD: usize = 256 * 1024;

/// What the client said.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
pub(crate) enum Heard {
    Request(Request),
    /// A piece of something; it is in [`Talk::piece`].
    Piece,
}

/// Both ends of the conversation.
#[derive(Debug)]
pub(crate) struct Talk {
    frames: Frames<BufReader<File>>,
    /// The same, for waits.
    input: File,
    out: File,
    /// What is about to be written.
    waiting: Vec<u8>,
}

impl Talk {
    /// Over standard input and output.
    pub(crate) fn new() -> Result<Self, Failure> {
        let twice = |fd: BorrowedFd<'_>| {
            let twin = fd.try_clone_to_owned().map(File::from);
            twin.trying("use the standard streams")
        };
        let from = twice(io::stdin().as_fd())?;
        Ok(Self {
            input: twice(from.as_fd())?,
            frames: Frames::new(BufReader::with_capacity(AHEAD, from)),
            out: twice(io::stdout().as_fd())?,
            waiting: Vec::new(),
        })
    }

    /// Where the client's words arrive, for a wait.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Whether words have arrived that a wait for the descriptor would not see.
    pub(crate) fn has_ahead(&mut self) -> bool {
        !self.frames.source().buffer().is_empty()
    }

    /// The next words.
    pub(crate) fn hear(&mut self) -> Result<Heard, Failure> {
        match self.frames.frame() {
            Ok(Some(Frame::Message(tag, payload))) => Request::take(tag, payload)
                .map(Heard::Request)
                // Whoever says such a thing is no client of this agent.
                .map_err(|error| Failure::Refused(error.to_string())),
            Ok(Some(Frame::Bytes(..))) => Ok(Heard::Piece),
            Ok(None) | Err(FrameError::Read(_) | FrameError::Cut) => Err(Failure::Gone),
            Err(error) => Err(Failure::Refused(error.to_string())),
        }
    }

    /// The piece that was heard last.
    pub(crate) fn piece(&self) -> &[u8] {
        self.frames.payload()
    }

    /// A list, to its end.
    pub(crate) fn list(&mut self) -> Result<Vec<u8>, Failure> {
        let mut list = Vec::new();
        self.pieces(|piece| {
            list.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(list)
    }

    /// A list of names.
    pub(crate) fn names(&mut self) -> Result<Names, Failure> {
        Names::of(self.list()?)
    }

    /// Gives each piece of a list to `take`.
    pub(crate) fn pieces(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            match self.hear()? {
                Heard::Piece => take(self.frames.payload())?,
                Heard::Request(Request::End {}) => return Ok(()),
                Heard::Request(other) => return Err(out_of_order(&other)),
            }
        }
    }

    /// Answers.
    pub(crate) fn say(&mut self, reply: &Reply) -> Result<(), Failure> {
        reply.frame(&mut self.waiting);
        self.flush()
    }

    /// Sends bytes of a stream at once.
    pub(crate) fn send(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        put_bytes(&mut self.waiting, stream, bytes);
        self.flush()
    }

    /// Sends a list whole.
    pub(crate) fn send_list(&mut self, list: &[u8]) -> Result<(), Failure> {
        for piece in list.chunks(PIECE) {
            self.send(Stream::Data, piece)?;
        }
        self.say(&Reply::End {})
    }

    /// Lets bytes of a stream wait for [`Self::push`].
    pub(crate) fn queue(&mut self, stream: Stream, bytes: &[u8]) {
        put_bytes(&mut self.waiting, stream, bytes);
    }

    /// Whether something waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Where the client listens, for a wait.
    pub(crate) fn output(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Writes as much of what waits as is taken at once, where a wait has said that something is: a client that does not listen must not keep
    /// us from hearing it.
    pub(crate) fn push(&mut self) -> Result<(), Failure> {
        let mut written = 0;
        while written < self.waiting.len() && (written == 0 || is_writable(&self.out)) {
            let piece = &self.waiting[written..];
            // As much as a pipe takes that says it takes some.
            let piece = &piece[..piece.len().min(PIPE_BUF)];
            match self.out.write(piece) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Failure::Gone),
            }
        }
        self.waiting.drain(..written);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let written = self.out.write_all(&self.waiting);
        self.waiting.clear();
        written.map_err(|_| Failure::Gone)
    }
}

fn is_writable(out: &File) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The client said something that has no place here.
pub(crate) fn out_of_order(request: &Request) -> Failure {
    let mut text = format!("{request:?}");
    text.truncate(text.floor_char_boundary(100));
    Failure::Refused(format!("the client spoke out of order: {text}"))
}
