//! The conversation with the client, over this process's standard streams.
//!
//! The conversation ends wherever it is when the client goes, and for no other reason. Nothing but frames may
//! be written to standard output.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crabbox_agent_protocol::{Frame, FrameError, Frames, PIECE, Reply, Request, Stream, put_bytes};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PIPE_BUF;

use crate::failure::{At as _, Failure};
use crate::names::Names;

/// The size of the read buffer, in bytes.
const AHEAD: usize = 256 * 1024;

/// A message from the client.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
pub(crate) enum ClientMessage {
    Request(Request),
    /// A chunk of bytes; it is in [`Conversation::piece`].
    Piece,
}

/// The client's stream, with a count of the bytes read.
#[derive(Debug)]
struct Counted {
    from: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

/// Counts the bytes that have arrived from the client, independently of who reads them.
#[derive(Debug)]
pub(crate) struct Arrivals {
    input: File,
    read: Arc<AtomicU64>,
}

impl Arrivals {
    /// Counts for this descriptor, of which `read` bytes were read.
    pub(crate) fn of(input: File, read: Arc<AtomicU64>) -> Self {
        Self { input, read }
    }

    /// How many bytes have arrived in total, and how many of them are still unread.
    pub(crate) fn count(&self) -> (u64, u64) {
        // In this order: bytes read between the two calls count twice, which is a sign of life anyway.
        let unread = rustix::io::ioctl_fionread(&self.input).unwrap_or(0);
        (self.read.load(Ordering::SeqCst).wrapping_add(unread), unread)
    }
}

/// Whether all output has been stopped.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Stops all output: a thread that would write blocks until the process ends.
pub(crate) fn fall_silent() {
    IS_SILENT.store(true, Ordering::SeqCst);
}

fn hold() {
    while IS_SILENT.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Both ends of the conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    frames: Frames<BufReader<Counted>>,
    read: Arc<AtomicU64>,
    /// A duplicate of the input descriptor, to poll.
    input: File,
    out: File,
    /// Frames that were not written yet.
    waiting: Vec<u8>,
}

impl Conversation {
    /// Talks over standard input and output.
    pub(crate) fn new() -> Result<Self, Failure> {
        let twice = |fd: BorrowedFd<'_>| {
            let twin = fd.try_clone_to_owned().map(File::from);
            twin.trying("use the standard streams")
        };
        let (from, read) = (twice(io::stdin().as_fd())?, Arc::default());
        let input = twice(from.as_fd())?;
        let counted = Counted {
            from,
            read: Arc::clone(&read),
        };
        Ok(Self {
            input,
            read,
            frames: Frames::new(BufReader::with_capacity(AHEAD, counted)),
            out: twice(io::stdout().as_fd())?,
            waiting: Vec::new(),
        })
    }

    /// The descriptor to poll for input.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// A counter of arriving bytes, for the watch on a silent client.
    pub(crate) fn arrivals(&self) -> Result<Arrivals, Failure> {
        let input = self.input.try_clone().trying("use the standard streams")?;
        Ok(Arrivals::of(input, Arc::clone(&self.read)))
    }

    /// Whether input is buffered already, which polling the descriptor would not show.
    pub(crate) fn has_ahead(&mut self) -> bool {
        !self.frames.source().buffer().is_empty()
    }

    /// The next message that is not a ping.
    pub(crate) fn hear(&mut self) -> Result<ClientMessage, Failure> {
        loop {
            match self.hear_any()? {
                ClientMessage::Request(Request::Ping {}) => {}
                heard => return Ok(heard),
            }
        }
    }

    /// The next message, pings included.
    pub(crate) fn hear_any(&mut self) -> Result<ClientMessage, Failure> {
        match self.frames.frame() {
            Ok(Some(Frame::Message(tag, payload))) => Request::take(tag, payload)
                .map(ClientMessage::Request)
                // No client of this agent sends such a message.
                .map_err(|error| Failure::Refused(error.to_string())),
            Ok(Some(Frame::Bytes(..))) => Ok(ClientMessage::Piece),
            Ok(None) | Err(FrameError::Read(_) | FrameError::Cut) => Err(Failure::Gone),
            Err(error) => Err(Failure::Refused(error.to_string())),
        }
    }

    /// The chunk that was received last.
    pub(crate) fn piece(&self) -> &[u8] {
        self.frames.payload()
    }

    /// Receives a whole list.
    pub(crate) fn list(&mut self) -> Result<Vec<u8>, Failure> {
        let mut list = Vec::new();
        self.pieces(|piece| {
            list.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(list)
    }

    /// Receives a list of names.
    pub(crate) fn names(&mut self) -> Result<Names, Failure> {
        Names::of(self.list()?)
    }

    /// Passes each chunk of a list to `take`.
    pub(crate) fn pieces(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            match self.hear()? {
                ClientMessage::Piece => take(self.frames.payload())?,
                ClientMessage::Request(Request::End {}) => return Ok(()),
                ClientMessage::Request(other) => return Err(out_of_order(&other)),
            }
        }
    }

    /// Sends a reply.
    pub(crate) fn say(&mut self, reply: &Reply) -> Result<(), Failure> {
        reply.frame(&mut self.waiting);
        self.flush()
    }

    /// Sends bytes of a stream immediately.
    pub(crate) fn send(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        put_bytes(&mut self.waiting, stream, bytes);
        self.flush()
    }

    /// Sends a whole list.
    pub(crate) fn send_list(&mut self, list: &[u8]) -> Result<(), Failure> {
        for piece in list.chunks(PIECE) {
            self.send(Stream::Data, piece)?;
        }
        self.say(&Reply::End {})
    }

    /// Queues bytes of a stream for [`Self::push`].
    pub(crate) fn queue(&mut self, stream: Stream, bytes: &[u8]) {
        put_bytes(&mut self.waiting, stream, bytes);
    }

    /// Whether output is queued.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The descriptor to poll for output.
    pub(crate) fn output(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Writes as much of the queue as the pipe takes without blocking, after a poll has shown that it takes
    /// some: a client that does not read must not keep us from reading its requests.
    pub(crate) fn push(&mut self) -> Result<(), Failure> {
        hold();
        let mut written = 0;
        while written < self.waiting.len() && (written == 0 || is_writable(&self.out)) {
            let piece = &self.waiting[written..];
            // A pipe that polls as writable takes at least this much without blocking.
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
        hold();
        let written = self.out.write_all(&self.waiting);
        self.waiting.clear();
        written.map_err(|_| Failure::Gone)
    }
}

fn is_writable(out: &File) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The client sent a request that is not allowed here.
pub(crate) fn out_of_order(request: &Request) -> Failure {
    let mut text = format!("{request:?}");
    text.truncate(text.floor_char_boundary(100));
    Failure::Refused(format!("the client sent a message out of order: {text}"))
}
