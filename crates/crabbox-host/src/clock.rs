//! Time: the wall clock, and waits that are short and bounded. Nothing else in the program may sleep.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Seconds since the Unix epoch; zero if the clock is before it.
pub fn unix_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since the unix epoch, and nanoseconds within the second.
pub fn unix_now() -> (i64, u32) {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or((0, 0), |since| {
            (
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                since.subsec_nanos(),
            )
        })
}

/// Time since this machine booted, including the time in suspend (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Sleeps for `pause`, at most 50 ms: no code of the program may wait longer without checking its condition.
#[expect(clippy::disallowed_methods, reason = "this is the one place that sleeps")]
pub fn nap(pause: Duration) {
    std::thread::sleep(pause.min(Duration::from_millis(50)));
}

/// Waits for `fd` to be readable or closed, as long as a [`nap`] for `pause`, and returns whether it is.
pub fn is_readable(fd: BorrowedFd<'_>, pause: Duration) -> bool {
    let limit = Timespec::try_from(pause.min(Duration::from_millis(50))).ok();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    // An interrupted poll counts as not readable; the caller checks again.
    poll(&mut fds, limit.as_ref()).is_ok_and(|count| count > 0)
}

/// Calls `ready` until it returns `Some`, or until `limit` has passed; sleeps from 1 ms up to 20 ms between
/// calls.
pub fn poll_until<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        nap(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
