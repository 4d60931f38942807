//! Uptime and short bounded waits. Nothing else in this program may sleep.

use std::time::Duration;

use rustix::thread::NanosleepRelativeResult;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Seconds since the unix epoch.
pub(crate) fn unix_seconds() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}

/// Nanoseconds since the unix epoch.
pub(crate) fn unix_nanoseconds() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// Sets the wall clock to `seconds` since the unix epoch.
pub(crate) fn set(seconds: i64) -> std::io::Result<()> {
    clock_settime(
        ClockId::Realtime,
        Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    )
    .map_err(Into::into)
}

/// Sets the wall clock to `time` nanoseconds since the unix epoch.
pub(crate) fn set_nanoseconds(time: i128) -> std::io::Result<()> {
    const SECOND: i128 = 1_000_000_000;
    let impossible = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
    clock_settime(
        ClockId::Realtime,
        Timespec {
            tv_sec: i64::try_from(time.div_euclid(SECOND)).map_err(impossible)?,
            tv_nsec: i64::try_from(time.rem_euclid(SECOND)).map_err(impossible)?,
        },
    )
    .map_err(Into::into)
}

/// Sleeps for `pause`, at most 50 ms.
fn nap(pause: Duration) {
    let pause = pause.min(Duration::from_millis(50));
    let request = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(pause.subsec_nanos()),
    };
    // Interrupted by a signal: the caller polls again anyway.
    if let NanosleepRelativeResult::Err(_) = rustix::thread::nanosleep(&request) {}
}

/// Calls `ready` until it returns `Some` or `limit` has passed; naps `pause` between calls.
pub(crate) fn poll_until<T>(
    limit: Duration,
    pause: Duration,
    mut ready: impl FnMut() -> Option<T>,
) -> Option<T> {
    let deadline = uptime() + limit;
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if uptime() >= deadline {
            return None;
        }
        nap(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_ends_at_its_limit_and_returns_what_came_in_time() {
        let mut calls = 0;
        let limit = Duration::from_millis(30);
        let never = poll_until(limit, Duration::from_millis(1), || {
            calls += 1;
            None::<()>
        });
        assert!(never.is_none() && calls > 1, "{calls} calls");
        let mut left = 3;
        let came = poll_until(Duration::from_secs(20), Duration::from_millis(1), || {
            left -= 1;
            (left == 0).then_some("here")
        });
        assert_eq!(came, Some("here"));
    }
}
