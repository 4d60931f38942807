//! Unix sockets by path, of any length, and streams with a deadline.
//!
//! The address of a Unix socket holds 107 bytes, and a lease's directory is often longer; then the socket is
//! named through an open descriptor of its directory. Nothing here may change the working directory, which
//! all threads share.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Maximum length of a path in `sockaddr_un`, which ends with a NUL (unix(7)).
const PATH_LIMIT: usize = 107;

/// Why a socket could not be reached or made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The directory of the socket could not be opened.
    #[error("cannot open directory {} to reach a socket in it", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The connection failed.
    #[error("cannot connect to socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The socket could not be made.
    #[error("cannot listen on socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A process of another user listens there.
    #[error("socket {} is served by user {uid}, not by us", path.display())]
    ForeignPeer {
        /// The socket.
        path: PathBuf,
        /// The numeric id of the user whose process listens.
        uid: u32,
    },
}

impl SocketError {
    /// Whether nothing listens there (yet): there is no such socket, or only a leftover one.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Directory { source, .. } | Self::Connect { source, .. } | Self::Bind { source, .. } => {
                matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
            }
            Self::ForeignPeer { .. } => false,
        }
    }
}

/// A path that fits into a socket address, and the descriptor that it may depend on.
struct Short {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

fn shorten(path: &Path) -> Result<Short, SocketError> {
    let parts = path
        .parent()
        .zip(path.file_name())
        .filter(|(dir, _)| !dir.as_os_str().is_empty());
    let Some((dir, name)) = parts.filter(|_| path.as_os_str().len() > PATH_LIMIT) else {
        return Ok(Short {
            path: path.to_owned(),
            _dir: None,
        });
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|errno| SocketError::Directory {
        path: dir.to_owned(),
        source: errno.into(),
    })?;
    let mut short = format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes();
    short.extend_from_slice(name.as_bytes());
    Ok(Short {
        path: OsStr::from_bytes(&short).into(),
        _dir: Some(fd),
    })
}

/// Connects to the socket at `path`.
pub fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    let short = shorten(path)?;
    UnixStream::connect(&short.path).map_err(|source| SocketError::Connect {
        path: path.to_owned(),
        source,
    })
}

/// Connects to the socket at `path`, and waits at most `limit` if its queue of waiting clients is full
/// (unix(7), `SO_SNDTIMEO` in socket(7)).
pub fn connect_within(path: &Path, limit: Duration) -> Result<UnixStream, SocketError> {
    let short = shorten(path)?;
    let until = Instant::now().checked_add(limit);
    let connected = || -> std::io::Result<UnixStream> {
        let address = SocketAddrUnix::new(&short.path)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ErrorKind::TimedOut.into());
            }
            sockopt::set_socket_timeout(&socket, Timeout::Send, left)?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        sockopt::set_socket_timeout(&socket, Timeout::Send, None)?;
        Ok(UnixStream::from(socket))
    };
    connected().map_err(|source| SocketError::Connect {
        path: path.to_owned(),
        source,
    })
}

/// Connects to the socket at `path`, but only to a process of this user, because another user may be able to
/// create a socket at that path. The kernel records the listener's user when it starts to listen
/// (`SO_PEERCRED`, unix(7)).
pub fn connect_to_own(path: &Path) -> Result<UnixStream, SocketError> {
    let stream = connect(path)?;
    let uid = peer_uid(&stream).map_err(|source| SocketError::Connect {
        path: path.to_owned(),
        source,
    })?;
    if uid != rustix::process::geteuid() {
        return Err(SocketError::ForeignPeer {
            path: path.to_owned(),
            uid: uid.as_raw(),
        });
    }
    Ok(stream)
}

/// Whether `stream` was connected by a process of this user, as recorded by the kernel at that time
/// (`SO_PEERCRED`, unix(7)).
pub fn is_own_peer(stream: &UnixStream) -> std::io::Result<bool> {
    Ok(peer_uid(stream)? == rustix::process::geteuid())
}

fn peer_uid(stream: &UnixStream) -> std::io::Result<rustix::process::Uid> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid)
}

/// Creates a socket at `path` and listens on it. An existing file is never replaced.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let short = shorten(path)?;
    UnixListener::bind(&short.path).map_err(|source| SocketError::Bind {
        path: path.to_owned(),
        source,
    })
}

/// Interval at which a waiting read or write checks whether to stop.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// A stream whose reads and writes must together be finished by a deadline, or as soon as a stop is
/// requested. With a time limit per read, a peer that sends single bytes could block us forever.
pub struct DeadlineStream<'a> {
    stream: UnixStream,
    deadline: Cell<Option<Instant>>,
    stop: Option<&'a dyn Fn() -> bool>,
}

impl std::fmt::Debug for DeadlineStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadlineStream")
            .field("stream", &self.stream)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<'a> DeadlineStream<'a> {
    /// Wraps `stream`, without a deadline yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            deadline: Cell::new(None),
            stop: None,
        }
    }

    /// Calls `stop` before each read and write, and every 50 ms while one waits; once it returns true they
    /// fail with [`ErrorKind::ConnectionAborted`].
    #[must_use]
    pub fn stopped_by(mut self, stop: &'a dyn Fn() -> bool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// The stream itself, without a deadline.
    pub fn into_inner(self) -> std::io::Result<UnixStream> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self.stream)
    }

    /// From now on, everything must be over within `limit`; later reads and writes fail with
    /// [`ErrorKind::TimedOut`].
    pub fn set_limit(&self, limit: Duration) {
        self.deadline.set(Instant::now().checked_add(limit));
    }

    /// How long the next system call may wait, `None` for no limit; fails if no time is left or a stop was
    /// requested.
    fn slice(&self) -> std::io::Result<Option<Duration>> {
        if self.stop.is_some_and(|stop| stop()) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let left = self
            .deadline
            .get()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(match (left, self.stop) {
            (Some(left), Some(_)) => Some(left.min(STOP_EVERY)),
            (None, Some(_)) => Some(STOP_EVERY),
            (left, None) => left,
        })
    }
}

/// Whether a socket's own timeout expired, reported as `EAGAIN`; the next slice decides whether the deadline
/// has passed.
fn slice_is_over<T>(outcome: &std::io::Result<T>) -> bool {
    outcome
        .as_ref()
        .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

impl Read for DeadlineStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            self.stream.set_read_timeout(self.slice()?)?;
            let outcome = self.stream.read(buffer);
            if !slice_is_over(&outcome) {
                return outcome;
            }
        }
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            self.stream.set_write_timeout(self.slice()?)?;
            let outcome = self.stream.write(bytes);
            if !slice_is_over(&outcome) {
                return outcome;
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_path_longer_than_an_address_works_for_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        for depth in [1, 3] {
            let deep = (0..depth).fold(dir.path().to_owned(), |dir, _| dir.join("d".repeat(60)));
            std::fs::create_dir_all(&deep).unwrap();
            let path = deep.join("api.sock");
            let listener = bind(&path).unwrap();
            assert!(path.exists());
            let mut client = connect(&path).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"x").unwrap();
            let mut byte = [0];
            server.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"x");
        }
    }

    #[test]
    fn an_absent_and_a_dead_socket_are_told_from_other_failures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d".repeat(90)).join("api.sock");
        assert!(connect(&path).unwrap_err().is_absent(), "no directory");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        assert!(connect(&path).unwrap_err().is_absent(), "no socket");
        // Shut down, because closing is not enough: a process that another test is just starting may have a
        // copy of the descriptor.
        let listener = bind(&path).unwrap();
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        drop(listener);
        assert!(connect(&path).unwrap_err().is_absent(), "nobody listens");
        assert!(!bind(&path).unwrap_err().is_absent(), "the name is taken");
    }

    #[test]
    fn a_listener_that_accepts_nobody_holds_a_caller_for_its_limit_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let limit = Duration::from_millis(50);
        assert!(connect_within(&path, limit).unwrap_err().is_absent());
        let listener = bind(&path).unwrap();
        // A shorter queue than `bind` requests.
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match connect_within(&path, limit) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "its queue is never full");
        };
        assert!(
            matches!(&refused, SocketError::Connect { source, .. } if source.kind() == ErrorKind::TimedOut),
            "{refused:?}"
        );
        assert!(!waiting.is_empty());
        let (mut server, _) = listener.accept().unwrap();
        waiting[0].write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn a_peer_that_drips_bytes_does_not_outlast_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let dripping = std::thread::spawn(move || {
            while theirs.write_all(b".").is_ok() {
                clock::nap(Duration::from_millis(5));
            }
        });
        let mut stream = DeadlineStream::new(ours);
        stream.set_limit(Duration::from_millis(100));
        let started = Instant::now();
        let error = stream.read_exact(&mut vec![0; 100_000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(5));
        drop(stream);
        dripping.join().unwrap();
    }

    #[test]
    fn stop_ends_a_read_of_a_silent_peer_and_of_one_that_drips() {
        for drips in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let peer = std::thread::spawn(move || {
                while drips && theirs.write_all(b".").is_ok() {
                    clock::nap(Duration::from_millis(5));
                }
                // Stay silent and connected until the other side hangs up.
                theirs.read_to_end(&mut Vec::new()).ok();
            });
            let asked = Cell::new(0);
            let stop = || {
                asked.set(asked.get() + 1);
                asked.get() > 3
            };
            let mut stream = DeadlineStream::new(ours).stopped_by(&stop);
            stream.set_limit(Duration::from_mins(1));
            let error = stream.read_exact(&mut vec![0; 100_000]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            drop(stream);
            peer.join().unwrap();
        }
    }

    #[test]
    fn a_silent_peer_is_a_timeout_and_not_would_block() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut stream = DeadlineStream::new(ours);
        stream.set_limit(Duration::from_millis(10));
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_socket_that_another_user_serves_is_not_our_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        // The other user must be able to make the socket there.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let path = dir.path().join("s");
        let script = "import socket,sys,time\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\ntime.sleep(600)";
        let cmd = crate::command::Cmd::new("python3")
            .args(["-c", script])
            .arg(&path);
        let mut command = cmd.to_std();
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        let mut server = cmd.spawn(&mut command).expect("tests run as root");
        let reached = clock::poll_until(Duration::from_secs(20), || connect(&path).ok());
        let own = connect_to_own(&path);
        server.kill().unwrap();
        server.wait().unwrap();
        reached.expect("the other user listens");
        let error = own.unwrap_err();
        assert!(
            matches!(error, SocketError::ForeignPeer { uid: 65_534, .. }),
            "{error:?}"
        );
        assert!(!error.is_absent());
        let ours = dir.path().join("ours");
        let _listener = bind(&ours).unwrap();
        connect_to_own(&ours).unwrap();
    }
}
