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

/// Waits until `first` has one of `events` (or an error), or `second` is readable or closed, or until
/// `deadline`. If both are ready, the second one takes precedence.
///
/// # Errors
/// Those of poll(2), except for interruption by a signal.
pub fn wait(
    first: BorrowedFd<'_>,
    events: PollFlags,
    second: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    let second = second.map(|fd| (fd, PollFlags::IN));
    let found = any([second, Some((first, events))], deadline)?;
    Ok(match found {
        None => Ready::Neither,
        Some(0) => Ready::Second,
        Some(_) => Ready::First,
    })
}

/// Waits until one of several descriptors has one of its events, has an error, or is closed; returns its
/// index, or `None` at the deadline. If several are ready, the first one is returned.
///
/// # Errors
/// Those of poll(2), except for interruption by a signal.
pub fn any<const N: usize>(
    of: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    deadline: Option<Instant>,
) -> io::Result<Option<usize>> {
    let given = || of.iter().enumerate().filter_map(|(at, fd)| Some((at, (*fd)?)));
    let mut fds: Vec<PollFd<'_>> = given()
        .map(|(_, (fd, events))| PollFd::from_borrowed_fd(fd, events))
        .collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) => {
                let first = fds.iter().position(|fd| !fd.revents().is_empty());
                return Ok(first.and_then(|first| given().nth(first)).map(|(at, _)| at));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until `fd` is readable or closed.
///
/// # Errors
/// Those of poll(2), except for interruption by a signal.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    wait(fd, PollFlags::IN, None, None).map(drop)
}
