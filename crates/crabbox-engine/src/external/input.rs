//! Reads the bytes of a request, limited in size and in time.
//!
//! It must never wait for ever: a program that forgets to close its end would otherwise leave one process
//! behind per request.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};

use crate::external::request::BYTES;

/// How long a whole request may take to arrive.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Why no request was read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The end of the input did not arrive in time.
    #[error("the request did not end within {} s: its writer has to close standard input", .limit.as_secs_f64())]
    Slow {
        /// The time limit.
        limit: Duration,
    },
    /// It cannot be read.
    #[error("cannot read the request on standard input")]
    Read(#[source] std::io::Error),
}

impl Fault for InputError {
    fn kind(&self) -> Kind {
        match self {
            Self::Slow { .. } => Kind::Unavailable,
            Self::Read(_) => Kind::Usage,
        }
    }
}

/// Reads `input` to its end, within `limit`. Reads at most one byte more than a request may have, so that the
/// caller can tell that a request is too long.
pub fn take(input: BorrowedFd<'_>, limit: Duration) -> Result<Vec<u8>, InputError> {
    let failed = |errno: Errno| InputError::Read(errno.into());
    let deadline = Instant::now() + limit;
    let (mut bytes, mut part) = (Vec::new(), vec![0; 1 << 16]);
    while bytes.len() <= BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).map_err(|_| failed(Errno::INVAL))?;
        match poll(&mut [PollFd::from_borrowed_fd(input, PollFlags::IN)], Some(&wait)) {
            Ok(0) => return Err(InputError::Slow { limit }),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        match read(input, &mut part) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    bytes.truncate(BYTES + 1);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_request_is_all_until_its_end_and_no_more_than_one_may_have() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            theirs.write_all(b"{}").unwrap();
            theirs.write_all(b"\n").unwrap();
        });
        assert_eq!(take(ours.as_fd(), PATIENCE).unwrap(), b"{}\n");
        writer.join().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // The writer stops when the reader closes its end.
        let writer = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        assert_eq!(take(ours.as_fd(), PATIENCE).unwrap().len(), BYTES + 1);
        drop(ours);
        writer.join().unwrap();
    }

    #[test]
    fn one_that_does_not_end_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{}").unwrap();
        let error = take(ours.as_fd(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, InputError::Slow { .. }), "{error}");
        drop(theirs);
    }
}
