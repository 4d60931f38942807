//! Waits for an SSH server on a port, and notices it soon after it starts.
//!
//! While a machine boots, packets to it are lost, and the kernel resends a lost SYN only after a second. So a
//! new attempt starts every 100 ms while the older ones go on, and the first that connects counts; a distant
//! host, which takes longer to answer, is reached too. It must never keep an attempt open once it has
//! returned.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crabbox_host::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

/// Time between the starts of two attempts.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most attempts pending at the same time; the oldest is dropped for a new one.
const PENDING_LIMIT: usize = 20;

/// How long a server that accepted the connection may take to greet. sshd greets before it does anything
/// costly.
const BANNER_LIMIT: Duration = Duration::from_secs(10);

/// Lines and bytes that may come before the greeting (RFC 4253, section 4.2, sets no limit; OpenSSH uses
/// these).
const BANNER_BYTES: u64 = 8 * 1024;

/// First and longest pause after a refusal, which returns immediately.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// When the two steps were seen, counted from the start of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortTimings {
    /// The connection was accepted.
    pub tcp: Duration,
    /// The line `SSH-…` had arrived.
    pub banner: Duration,
}

/// Why one probe of the port failed.
#[derive(Debug, thiserror::Error)]
pub enum PortFailure {
    /// Nothing accepts connections there.
    #[error("cannot connect to {address}")]
    Closed {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something accepts connections and does not greet as an SSH server does.
    #[error("{address} accepts connections but sends no SSH greeting")]
    NoBanner {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What the caller of [`wait_port`] wants after a failed probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Probe again.
    Again,
    /// Give up.
    Stop,
}

/// Probes `address` until an SSH server greets there. After each failed probe, and at least ten times a
/// second, `failed` decides whether to go on; the last failure is the error.
pub(crate) fn wait_port(
    address: SocketAddr,
    mut failed: impl FnMut(&PortFailure) -> Next,
) -> Result<PortTimings, PortFailure> {
    let began = Instant::now();
    let mut pending: Vec<OwnedFd> = Vec::new();
    let mut pause = PAUSES.0;
    loop {
        let closed = |source| PortFailure::Closed { address, source };
        let failure = match look(address, &mut pending) {
            Ok(stream) => {
                let tcp = began.elapsed();
                match greeting(stream) {
                    Ok(()) => {
                        let banner = began.elapsed();
                        return Ok(PortTimings { tcp, banner });
                    }
                    Err(source) => PortFailure::NoBanner { address, source },
                }
            }
            Err(source) => closed(source),
        };
        if failed(&failure) == Next::Stop {
            return Err(failure);
        }
        if pending.is_empty() {
            clock::nap(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// Starts one more attempt and waits [`INTERVAL`] for any of them.
fn look(address: SocketAddr, pending: &mut Vec<OwnedFd>) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    if pending.len() >= PENDING_LIMIT {
        pending.remove(0);
    }
    pending.push(socket);
    let deadline = Instant::now() + INTERVAL;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    while !pending.is_empty() {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let mut fds: Vec<PollFd<'_>> = pending.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)).collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let Some(index) = fds.iter().position(|fd| !fd.revents().is_empty()) else {
            continue;
        };
        let socket = pending.remove(index);
        match sockopt::socket_error(&socket)? {
            Ok(()) => {
                // Close the other attempts here, not when the caller is done.
                pending.clear();
                let stream = TcpStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(errno) => last = errno.into(),
        }
    }
    Err(last)
}

/// Reads up to the line that begins with `SSH-` and sends our own, which keeps the server's log clean.
fn greeting(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(BANNER_LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(BANNER_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        if line.starts_with(b"SSH-") {
            stream.write_all(b"SSH-2.0-crabbox\r\n").ok();
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    fn again(_: &PortFailure) -> Next {
        Next::Again
    }

    #[test]
    fn a_server_is_noticed_within_100_ms_of_its_first_breath() {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (wait_port(address, again).unwrap(), Instant::now()));
            let mut looks = 0;
            clock::poll_until(Duration::from_millis(300), || {
                looks += 1;
                None::<()>
            });
            let listener = TcpListener::bind(address).unwrap();
            let up = Instant::now();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"welcome\r\nSSH-2.0-test\r\n").unwrap();
            let (timings, noticed) = waiting.join().unwrap();
            assert!(noticed - up < Duration::from_millis(100), "{:?}", noticed - up);
            assert!(
                timings.tcp >= Duration::from_millis(250) && timings.banner >= timings.tcp,
                "{timings:?}"
            );
        });
    }

    #[test]
    fn a_port_that_is_not_ssh_is_not_taken_for_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        });
        let error = wait_port(address, |_| Next::Stop).unwrap_err();
        assert!(matches!(error, PortFailure::NoBanner { .. }), "{error:?}");
        server.join().unwrap();
    }

    #[test]
    fn the_caller_is_asked_often_and_can_stop_it() {
        // A listener with a full queue neither answers nor refuses: it drops what arrives.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let _first = TcpStream::connect(address).unwrap();
        let began = Instant::now();
        let error = wait_port(address, |_| {
            if began.elapsed() > Duration::from_millis(500) {
                Next::Stop
            } else {
                Next::Again
            }
        });
        let error = error.unwrap_err();
        assert!(matches!(error, PortFailure::Closed { .. }), "{error:?}");
        assert!(
            began.elapsed() < Duration::from_millis(800),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_server_behind_lost_packets_is_noticed_before_the_kernel_sends_them_again() {
        // A full queue drops each SYN, and the kernel repeats a SYN only after a second.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let first = TcpStream::connect(address).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (wait_port(address, again).unwrap(), Instant::now()));
            clock::poll_until(Duration::from_millis(250), || None::<()>);
            assert!(!waiting.is_finished());
            let up = Instant::now();
            drop((listener.accept().unwrap(), first));
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SSH-2.0-test\r\n").unwrap();
            let (_, noticed) = waiting.join().unwrap();
            assert!(noticed - up < Duration::from_millis(250), "{:?}", noticed - up);
        });
    }
}
