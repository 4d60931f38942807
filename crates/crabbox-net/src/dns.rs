//! DNS for a guest: a forwarder that listens inside the lease's namespace and queries the host's resolvers
//! from outside.
//!
//! The guest may not reach any network of the host, and the host's resolver may be a stub on loopback; so the
//! forwarder accepts each query at the guest's gateway and sends a new one from the host. Answers are passed
//! on unchanged and not cached. The forwarder must never pass on anything but plain queries, never wait
//! without a limit, and never work on more queries at once than its slots allow.

mod message;
mod resolvers;
mod upstream;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crabbox_host::netns::{self, NetnsError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::inner::TAP_ADDRESS;

pub use resolvers::Resolvers;

/// The port of DNS.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(TAP_ADDRESS), 53);

/// Maximum number of open UDP queries; more are dropped, and the guest's resolver retries.
const UDP_SLOTS: usize = 64;

/// Maximum number of open TCP connections; each may be idle for [`IDLE`].
const TCP_SLOTS: usize = 16;

/// Time limit of a TCP connection for one query, including the idle time before it, and for reading its
/// answer.
const IDLE: Duration = Duration::from_secs(5);

/// The longest message over UDP, and over TCP with its two bytes of length (RFC 1035, section 4.2).
const LONGEST: usize = 65_535;

/// Why the forwarder could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The namespace cannot be entered.
    #[error("cannot start the DNS forwarder in {}", netns.display())]
    Namespace {
        /// The file of the namespace.
        netns: PathBuf,
        /// The underlying error.
        #[source]
        source: NetnsError,
    },
    /// The address cannot be bound.
    #[error("cannot listen for DNS queries on {address} in {}", netns.display())]
    Listen {
        /// The file of the namespace.
        netns: PathBuf,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Waiting for queries failed.
    #[error("cannot wait for DNS queries")]
    Wait {
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The sockets for the guest's queries. They belong to the namespace and keep it alive while they are open.
#[derive(Debug)]
pub struct Listeners {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

/// Opens both sockets inside the namespace; its tap must have its address. The calling thread stays outside.
pub fn listen(netns: &Path, address: SocketAddr) -> Result<Listeners, DnsError> {
    netns::within(netns, || {
        let udp = UdpSocket::bind(address)?;
        // Never block on either socket: poll(2) also reports a datagram whose checksum turns out to be wrong,
        // and then there is nothing to read.
        udp.set_nonblocking(true)?;
        let tcp = TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        Ok(Listeners {
            udp: Arc::new(udp),
            tcp,
        })
    })
    .map_err(|source| DnsError::Namespace {
        netns: netns.to_owned(),
        source,
    })?
    .map_err(|source| DnsError::Listen {
        netns: netns.to_owned(),
        address,
        source,
    })
}

/// Serves queries until `stop` is readable or its other end is closed. Must run in the network namespace of
/// the host. Open queries then end by themselves, within the time limit of a query.
pub fn serve(listeners: &Listeners, resolvers: &Resolvers, stop: BorrowedFd<'_>) -> Result<(), DnsError> {
    let resolvers = Arc::new(resolvers.clone());
    let (udp_slots, tcp_slots) = (Slots::new(UDP_SLOTS), Slots::new(TCP_SLOTS));
    let mut buffer = vec![0; LONGEST];
    loop {
        let mut sources = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(listeners.udp.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listeners.tcp.as_fd(), PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(source) => {
                return Err(DnsError::Wait {
                    source: source.into(),
                });
            }
        }
        if !sources[0].revents().is_empty() {
            return Ok(());
        }
        // An error on a socket concerns a single packet and is cleared by reading it.
        if !sources[1].revents().is_empty()
            && let Ok((length, guest)) = listeners.udp.recv_from(&mut buffer)
            && let Some(slot) = udp_slots.take()
        {
            let (question, socket) = (buffer[..length].to_vec(), Arc::clone(&listeners.udp));
            let resolvers = Arc::clone(&resolvers);
            on_thread(slot, move || {
                if let Some(answer) = upstream::answer(&question, &resolvers, upstream::over_udp) {
                    // The guest may have gone away meanwhile.
                    socket.send_to(&answer, guest).ok();
                }
            });
        }
        if !sources[2].revents().is_empty()
            && let Ok((stream, _)) = listeners.tcp.accept()
            && let Some(slot) = tcp_slots.take()
        {
            let resolvers = Arc::clone(&resolvers);
            on_thread(slot, move || {
                // An error means that the guest hung up or was silent for too long; either way the connection
                // ends here.
                converse(stream, &resolvers).ok();
            });
        }
    }
}

/// Runs `work` in a thread, which keeps `slot` until it ends. If no thread can be started, the query is lost,
/// as by packet loss.
fn on_thread(slot: Slot, work: impl FnOnce() + Send + 'static) {
    let body = move || {
        work();
        drop(slot);
    };
    std::thread::Builder::new()
        .name("dns".to_owned())
        .stack_size(256 * 1024)
        .spawn(body)
        .ok();
}

/// Serves the queries of one TCP connection, one after the other.
fn converse(mut stream: TcpStream, resolvers: &Resolvers) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    loop {
        let question = read_framed(&mut stream, Instant::now() + IDLE)?;
        let Some(answer) = upstream::answer(&question, resolvers, upstream::over_tcp) else {
            return Ok(());
        };
        write_framed(&mut stream, &answer, Instant::now() + IDLE)?;
    }
}

/// A stream whose next message must be complete by one deadline: with a limit per read, a client that sends
/// single bytes could keep its slot forever.
struct Until<'a> {
    stream: &'a mut TcpStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The time until `deadline`; an error once it has passed.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// Reads one message with its two bytes of length, complete by `deadline`.
fn read_framed(stream: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut stream = Until { stream, deadline };
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Sends `message` with its two bytes of length, complete by `deadline`.
fn write_framed(stream: &mut TcpStream, message: &[u8], deadline: Instant) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    Until { stream, deadline }.write_all(&framed)
}

/// A limit on concurrent work.
#[derive(Debug, Clone)]
struct Slots {
    free: Arc<AtomicUsize>,
}

/// One slot, released when dropped.
#[derive(Debug)]
struct Slot {
    free: Arc<AtomicUsize>,
}

impl Slots {
    fn new(count: usize) -> Self {
        Self {
            free: Arc::new(AtomicUsize::new(count)),
        }
    }

    fn take(&self) -> Option<Slot> {
        self.free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(1))
            .is_ok()
            .then(|| Slot {
                free: Arc::clone(&self.free),
            })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.fetch_add(1, Ordering::AcqRel);
    }
}

/// Parses `bytes` as a query and as an answer, for fuzzing; only a panic matters.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_as_both(bytes: &[u8]) {
    let (asked, answer) = bytes.split_at(bytes.len() / 2);
    for one in [bytes, asked] {
        if let message::Kind::Question(question) = message::kind(one) {
            assert!(question.len() <= one.len());
        }
        if let Some(refusal) = message::refusal(one, message::SERVFAIL) {
            assert!(message::is_setback(&refusal));
        }
    }
    message::answers(answer, asked);
    assert_eq!(message::with_id(bytes.to_vec(), [1, 2]).len(), bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_drips_gives_its_slot_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let dripping = std::thread::spawn(move || {
            // The writer ends by itself, so a reader that restarted its time limit with each byte would see
            // the end of the stream.
            for byte in [0xff; 200] {
                if guest.write_all(&[byte]).is_err() {
                    break;
                }
                crabbox_host::clock::nap(Duration::from_millis(20));
            }
        });
        let error = read_framed(&mut stream, Instant::now() + Duration::from_millis(100)).unwrap_err();
        // The kernel reports an expired socket timeout as the first, `left` an expired deadline as the
        // second.
        let over = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        assert!(over.contains(&error.kind()), "{error:?}");
        drop(stream);
        dripping.join().unwrap();
    }
}
