//! The client side of OpenSSH's multiplexing protocol (`PROTOCOL.mux` in its sources), version 4.
//!
//! Speaking it directly saves an `ssh` process per command, and distinguishes what the exit code of `ssh`
//! cannot: a command that exited with 255 and a broken connection. It must never wait without a limit for a
//! reply that the master owes immediately.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_host::wait::{Ready, wait};
use rustix::event::PollFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const VERSION: u32 = 4;
const HELLO: u32 = 0x0000_0001;
const NEW_SESSION: u32 = 0x1000_0002;
const ALIVE_CHECK: u32 = 0x1000_0004;
const TERMINATE: u32 = 0x1000_0005;
const OPEN_FORWARD: u32 = 0x1000_0006;
const CLOSE_FORWARD: u32 = 0x1000_0007;
const STDIO_FORWARD: u32 = 0x1000_0008;
const OK: u32 = 0x8000_0001;
const PERMISSION_DENIED: u32 = 0x8000_0002;
const FAILURE: u32 = 0x8000_0003;
const EXIT_MESSAGE: u32 = 0x8000_0004;
const ALIVE: u32 = 0x8000_0005;
const SESSION_OPENED: u32 = 0x8000_0006;

/// No packet of the protocol comes near this; a longer one means that something else listens there.
const PACKET_LIMIT: usize = 256 * 1024;

/// How long the master may take for a reply that needs no network. It is one process with one loop, so a busy
/// one is slow; on an emulated machine by a factor of fifty.
const LOCAL_REPLY: Duration = Duration::from_secs(10);

/// Forwards a local port to the remote side (`PROTOCOL.mux` section 4).
const LOCAL_FORWARD: u32 = 1;

/// Escape character: none (`PROTOCOL.mux` section 2).
const NO_ESCAPE: u32 = 0xffff_ffff;

/// Why the master did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// Nothing listens on the control socket.
    #[error("no shared SSH connection is open")]
    Absent,
    /// The conversation broke off; the master has ended, most likely because the connection has.
    #[error("the shared SSH connection ended while it was asked to {asked}")]
    Io {
        /// What it was asked for.
        asked: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There was no answer in time: the machine is busy, or the network has gone and ssh does not know yet.
    #[error("the shared SSH connection gave no answer in {} s when it was asked to {asked}", limit.as_secs())]
    Late {
        /// What it was asked for.
        asked: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The caller cancelled it.
    #[error("interrupted while the shared SSH connection was asked to {asked}")]
    Cancelled {
        /// What it was asked for.
        asked: &'static str,
    },
    /// The master refused.
    #[error("the shared SSH connection refused to {asked}: {reason}")]
    Refused {
        /// What it was asked for.
        asked: &'static str,
        /// Its reason.
        reason: String,
    },
    /// The reply does not follow the protocol.
    #[error("the shared SSH connection sent the unexpected reply {kind:#x} when asked to {asked}")]
    Protocol {
        /// What it was asked for.
        asked: &'static str,
        /// The type of the packet.
        kind: u32,
    },
}

/// What the master reports about a running session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEvent {
    /// The command's exit status arrived; output may still follow.
    Exited(u8),
    /// Something without meaning for a session without a terminal.
    Other,
    /// The session is over and all of its output was delivered, or the master is gone.
    Closed,
}

/// A connection to the master, after the hello exchange.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    /// How long one read or write may take.
    limit: Option<Duration>,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub(crate) fn connect(path: &Path) -> Result<Self, MuxError> {
        let asked = "say hello";
        let stream = match crabbox_host::unix::connect_to_own(path) {
            Ok(stream) => stream,
            Err(error) if error.is_absent() => return Err(MuxError::Absent),
            Err(error) => {
                return Err(MuxError::Io {
                    asked,
                    source: io::Error::other(error),
                });
            }
        };
        let mut client = Self { stream, limit: None };
        client.limit(asked, Some(LOCAL_REPLY))?;
        client.send(asked, HELLO, &Body::default().number(VERSION))?;
        let (kind, mut reply) = client.receive(asked)?;
        if kind != HELLO || reply.number() != Some(VERSION) {
            return Err(MuxError::Protocol { asked, kind });
        }
        Ok(client)
    }

    /// The pid of the master.
    pub(crate) fn alive(&mut self) -> Result<i32, MuxError> {
        let asked = "tell its pid";
        self.send(asked, ALIVE_CHECK, &Body::default().number(0))?;
        let (kind, mut reply) = self.receive(asked)?;
        let pid = (kind == ALIVE)
            .then(|| reply.number().and_then(|_request| reply.number()))
            .flatten();
        pid.and_then(|pid| i32::try_from(pid).ok())
            .ok_or(MuxError::Protocol { asked, kind })
    }

    /// Asks the master to end, with everything that runs over it.
    pub(crate) fn terminate(&mut self) -> Result<(), MuxError> {
        let asked = "end";
        self.send(asked, TERMINATE, &Body::default().number(0))?;
        match self.receive(asked) {
            // The master may be gone before its reply is read.
            Ok((OK, _)) | Err(MuxError::Io { .. }) => Ok(()),
            Ok((kind, reply)) => Err(refusal(asked, kind, reply)),
            Err(error) => Err(error),
        }
    }

    /// Makes the master listen on port `local` of 127.0.0.1 and forward each connection to `remote` of
    /// `host`, resolved on the remote side.
    pub(crate) fn forward(&mut self, local: u16, host: &str, remote: u16) -> Result<(), MuxError> {
        self.change_forward("forward a port", OPEN_FORWARD, local, (host, remote))
    }

    /// Ends such a forward; open connections stay.
    pub(crate) fn end_forward(&mut self, local: u16, host: &str, remote: u16) -> Result<(), MuxError> {
        self.change_forward("end a forward", CLOSE_FORWARD, local, (host, remote))
    }

    /// Makes the remote side connect to `port` of `host` and closes that connection immediately; returns
    /// whether it succeeded. The reason for a failure is in the master's own messages.
    pub(crate) fn reaches(mut self, host: &str, port: u16) -> Result<bool, MuxError> {
        let asked = "connect to a port";
        let body = Body::default().number(0).text("").text(host).number(port.into());
        self.send(asked, STDIO_FORWARD, &body)?;
        let (input, output) = io::pipe().map_err(|source| MuxError::Io { asked, source })?;
        for fd in [input.as_fd(), output.as_fd()] {
            self.send_fd(fd).map_err(|source| self.failed(asked, source))?;
        }
        match self.receive(asked)? {
            (SESSION_OPENED, _) => Ok(true),
            (FAILURE, _) => Ok(false),
            (kind, reply) => Err(refusal(asked, kind, reply)),
        }
    }

    fn change_forward(
        &mut self,
        asked: &'static str,
        kind: u32,
        local: u16,
        (host, remote): (&str, u16),
    ) -> Result<(), MuxError> {
        let body = Body::default()
            .number(0)
            .number(LOCAL_FORWARD)
            .text("127.0.0.1")
            .number(local.into())
            .text(host)
            .number(remote.into());
        self.send(asked, kind, &body)?;
        match self.receive(asked)? {
            (OK, _) => Ok(()),
            (kind, reply) => Err(refusal(asked, kind, reply)),
        }
    }

    /// Starts `command` with three of our descriptors as its standard streams; the master copies between them
    /// and the network. `limit` bounds the wait for the remote side to accept, which takes one round trip;
    /// the wait also ends when `cancel` becomes readable.
    pub(crate) fn session(
        mut self,
        command: &str,
        streams: [BorrowedFd<'_>; 3],
        limit: Duration,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Session, MuxError> {
        let asked = "start a command";
        self.limit(asked, Some(limit))?;
        // Request id, a reserved string, then: terminal, X11, agent, subsystem, escape character, terminal
        // type, command.
        let body = Body::default()
            .number(0)
            .text("")
            .number(0)
            .number(0)
            .number(0)
            .number(0)
            .number(NO_ESCAPE)
            .text("")
            .text(command);
        self.send(asked, NEW_SESSION, &body)?;
        for fd in streams {
            self.send_fd(fd).map_err(|source| self.failed(asked, source))?;
        }
        match wait(
            self.stream.as_fd(),
            PollFlags::IN,
            cancel,
            Some(Instant::now() + limit),
        ) {
            Ok(Ready::First) => {}
            Ok(Ready::Second) => return Err(MuxError::Cancelled { asked }),
            Ok(Ready::Neither) => return Err(MuxError::Late { asked, limit }),
            Err(source) => return Err(MuxError::Io { asked, source }),
        }
        match self.receive(asked)? {
            (SESSION_OPENED, _) => {}
            (kind, reply) => return Err(refusal(asked, kind, reply)),
        }
        self.limit(asked, None)?;
        Ok(Session { client: self })
    }

    fn limit(&mut self, asked: &'static str, limit: Option<Duration>) -> Result<(), MuxError> {
        self.limit = limit;
        self.stream
            .set_read_timeout(limit)
            .and_then(|()| self.stream.set_write_timeout(limit))
            .map_err(|source| MuxError::Io { asked, source })
    }

    /// Converts an I/O error; a timeout shows up as "would block".
    fn failed(&self, asked: &'static str, source: io::Error) -> MuxError {
        match (source.kind(), self.limit) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(limit)) => {
                MuxError::Late { asked, limit }
            }
            _ => MuxError::Io { asked, source },
        }
    }

    fn send(&mut self, asked: &'static str, kind: u32, body: &Body) -> Result<(), MuxError> {
        let packet = Body::default().number(kind).0;
        let length = u32::try_from(packet.len() + body.0.len()).unwrap_or(u32::MAX);
        let whole = [&length.to_be_bytes()[..], &packet, &body.0].concat();
        let sent = self.stream.write_all(&whole);
        sent.map_err(|source| self.failed(asked, source))
    }

    /// Sends one descriptor along with one NUL byte.
    fn send_fd(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    fn receive(&mut self, asked: &'static str) -> Result<(u32, Reply), MuxError> {
        let mut length = [0; 4];
        let read = self.stream.read_exact(&mut length);
        read.map_err(|source| self.failed(asked, source))?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if !(4..=PACKET_LIMIT).contains(&length) {
            return Err(self.failed(asked, io::Error::from(io::ErrorKind::InvalidData)));
        }
        let mut bytes = vec![0; length];
        let read = self.stream.read_exact(&mut bytes);
        read.map_err(|source| self.failed(asked, source))?;
        let mut reply = Reply { bytes, at: 0 };
        let kind = reply.number().unwrap_or(0);
        Ok((kind, reply))
    }
}

/// A running command. Dropping it closes the session; the remote command may go on by itself.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
}

impl Session {
    /// The next event. To be called when the descriptor is readable.
    pub(crate) fn next_event(&mut self) -> SessionEvent {
        match self.client.receive("report the end") {
            Ok((EXIT_MESSAGE, mut reply)) => {
                let status = reply.number().and_then(|_session| reply.number());
                // The exit status of POSIX has eight bits; the protocol passes 32.
                status.map_or(SessionEvent::Other, |code| {
                    SessionEvent::Exited(code.to_be_bytes()[3])
                })
            }
            Ok(_) => SessionEvent::Other,
            Err(_) => SessionEvent::Closed,
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.stream.as_fd()
    }
}

/// Parses all packets in `bytes`; results are ignored, fuzzing looks for panics, hangs and excessive
/// allocation.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_packets(bytes: &[u8]) {
    let Ok((stream, mut master)) = UnixStream::pair() else {
        return;
    };
    // No more than the socket buffer holds, since all is written before it is read.
    master.write_all(&bytes[..bytes.len().min(64 * 1024)]).ok();
    drop(master);
    let mut session = Session {
        client: Client { stream, limit: None },
    };
    while let Ok((kind, reply)) = session.client.receive("be read") {
        drop(refusal("be read", kind, reply));
    }
    // Whatever follows an invalid packet, the session must end.
    while session.next_event() != SessionEvent::Closed {}
}

fn refusal(asked: &'static str, kind: u32, mut reply: Reply) -> MuxError {
    if matches!(kind, FAILURE | PERMISSION_DENIED) {
        let reason = reply
            .number()
            .and_then(|_request| reply.text())
            .unwrap_or_default();
        MuxError::Refused { asked, reason }
    } else {
        MuxError::Protocol { asked, kind }
    }
}

/// The body of a packet: big-endian numbers and strings with their length in front.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn number(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(self, value: &str) -> Self {
        let mut body = self.number(u32::try_from(value.len()).unwrap_or(u32::MAX));
        body.0.extend(value.as_bytes());
        body
    }
}

struct Reply {
    bytes: Vec<u8>,
    at: usize,
}

impl Reply {
    fn number(&mut self) -> Option<u32> {
        let bytes = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        bytes.try_into().ok().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}
