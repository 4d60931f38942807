//! The conversation with the client, over this process's standard streams.
//!
//! A client that has gone ends it wherever it stands; nothing else does. Nothing but frames may be written to standard output.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use crabbox_agent_protocol::{Frame, Frames, PIECE, Reply, Request, Stream, put_bytes};

use crate::failure::Failure;

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
    out: File,
    /// What is about to be written.
    waiting: Vec<u8>,
}

impl Talk {
    /// Over standard input and output.
    pub(crate) fn new() -> Result<Self, Failure> {
        let from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self {
            frames: Frames::new(BufReader::with_capacity(AHEAD, from)),
            out: File::from(io::stdout().as_fd().try_clone_to_owned()?),
            waiting: Vec::new(),
        })
    }

    /// Where the client's words arrive, for a wait.
    pub(crate) fn input(&mut self) -> BorrowedFd<'_> {
        self.frames.source().get_ref().as_fd()
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
            Ok(None) | Err(_) => Err(Failure::Gone),
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

    fn flush(&mut self) -> Result<(), Failure> {
        let written = self.out.write_all(&self.waiting);
        self.waiting.clear();
        written.map_err(|_| Failure::Gone)
    }
}

/// The client said something that has no place here.
pub(crate) fn out_of_order(request: &Request) -> Failure {
    let mut text = format!("{request:?}");
    text.truncate(text.floor_char_boundary(100));
    Failure::Refused(format!("the client spoke out of order: {text}"))
}
