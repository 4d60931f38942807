//! Unix sockets by path, however long the path is, and streams that keep a deadline.
//!
//! The address of a unix socket holds 107 bytes; a lease's directory is often longer, so the socket is then named through
//! an open descriptor of its directory. Nothing here may change the working directory, which all threads share.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

/// Bytes of a path that fit into `sockaddr_un`, which ends with a NUL (unix(7)).
const PATH_LIMIT: usize = 107;

/// Why a socket could not be reached or made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The directory of the socket could not be opened.
    #[error("cannot open directory {} to reach a socket in it", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody could be reached there.
    #[error("cannot connect to socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The socket could not be made.
    #[error("cannot listen on socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl SocketError {
    /// Whether nobody listens there (yet): no such socket, or one that was left behind.
    pub fn is_absent(&self) -> bool {
        let (Self::Directory { source, .. } | Self::Connect { source, .. } | Self::Bind { source, .. }) =
            self;
        matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
    }
}

/// A path that fits into a socket address, and the descriptor it may lean on.
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

/// Makes a socket at `path` and listens on it. An existing file is never replaced.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let short = shorten(path)?;
    UnixListener::bind(&short.path).map_err(|source| SocketError::Bind {
        path: path.to_owned(),
        source,
    })
}

/// A stream whose reads and writes together must be over by a deadline. A time limit for each single read would let a
/// peer that sends a byte now and then hold us for ever.
#[derive(Debug)]
pub struct DeadlineStream {
    stream: UnixStream,
    deadline: Cell<Option<Instant>>,
}

impl DeadlineStream {
    /// Wraps `stream`, without a deadline yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            deadline: Cell::new(None),
        }
    }

    /// From now on, everything must be over within `limit`; later reads and writes fail with [`ErrorKind::TimedOut`].
    pub fn set_limit(&self, limit: Duration) {
        self.deadline.set(Instant::now().checked_add(limit));
    }

    /// The time that is left, `None` without a deadline.
    fn left(&self) -> std::io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline.get() else {
            return Ok(None);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(ErrorKind::TimedOut.into())
        } else {
            Ok(Some(left))
        }
    }
}

/// A socket's own time limit shows as `EAGAIN`; the callers are told the true name of it.
fn timed_out(error: std::io::Error) -> std::io::Error {
    if error.kind() == ErrorKind::WouldBlock {
        ErrorKind::TimedOut.into()
    } else {
        error
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(timed_out)
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
        // Closing alone would leave it to a process that another test is just starting, which has a copy.
        let listener = bind(&path).unwrap();
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        drop(listener);
        assert!(connect(&path).unwrap_err().is_absent(), "nobody listens");
        assert!(!bind(&path).unwrap_err().is_absent(), "the name is taken");
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
    fn a_silent_peer_is_a_timeout_and_not_would_block() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut stream = DeadlineStream::new(ours);
        stream.set_limit(Duration::from_millis(10));
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
