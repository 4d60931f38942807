//! Waits for a descriptor, for a second one that requests a stop, or for a deadline, whichever comes first.
//!
//! It must never mistake a signal for an event.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The result of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The first descriptor.
    First,
    /// The second one.
    Second,
    /// Neither before the deadline.
    Neither,
}

/// Waits until `first` has one of `events` (or an error), or `second` is readable or closed, or until `deadline`. If both
/// are ready, the second one takes precedence.
///
/// # Errors
/// Of poll(2), but for a signal.
pub fn wait(
    first: BorrowedFd<'_>,
    events: PollFlags,
    second: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::from_borrowed_fd(first, events)];
        fds.extend(second.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(Ready::Neither),
            Ok(_) if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) => return Ok(Ready::Second),
            Ok(_) => return Ok(Ready::First),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until `fd` is readable or closed.
///
/// # Errors
/// Of poll(2), but for a signal.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    wait(fd, PollFlags::IN, None, None).map(drop)
}
