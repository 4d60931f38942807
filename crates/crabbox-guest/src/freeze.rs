//! Freezes the private layer for a moment, and makes sure that it thaws whatever happens.
//!
//! A frozen root file system stops the whole machine, so it stays frozen for [`LIMIT`] at most, when a
//! separate thread thaws it. Both threads belong to one process, which for the root file system is process 1
//! and cannot be killed. While it is frozen, neither may write to a file, read one that is not in memory, or
//! wait for anything without a time limit.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::sys;

/// The longest time that the file system stays frozen.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// How long after the freeze the host may still be sent a request. The time from here to [`LIMIT`] exceeds
/// what the host may take for a request (five seconds, by its own clock), so it never works on blocks that
/// may be in use again.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// A change of the file system's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Freeze,
    Thaw,
}

type Switch = dyn Fn(Turn) -> io::Result<()> + Send + Sync;

struct Shared {
    switch: Box<Switch>,
    /// When this process froze it, as uptime.
    since: Mutex<Option<Duration>>,
    /// Notified when that changes, or when the [`Freezer`] is dropped.
    changed: Condvar,
    gone: AtomicBool,
}

impl Shared {
    fn since(&self) -> MutexGuard<'_, Option<Duration>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Freezes one file system.
pub(crate) struct Freezer {
    shared: Arc<Shared>,
}

impl Freezer {
    /// Freezes the file system in which `inside` is an open descriptor.
    pub(crate) fn new(inside: OwnedFd) -> io::Result<Self> {
        let switch = move |turn| match turn {
            Turn::Freeze => {
                // Write out most of the data before writers have to wait.
                rustix::fs::syncfs(&inside)?;
                sys::freeze(&inside)
            }
            Turn::Thaw => sys::thaw(&inside),
        };
        Self::with(switch, LIMIT)
    }

    /// The same with other means to freeze and thaw, and another limit.
    pub(crate) fn with(
        switch: impl Fn(Turn) -> io::Result<()> + Send + Sync + 'static,
        limit: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            switch: Box::new(switch),
            since: Mutex::new(None),
            changed: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("thaw".to_owned())
            .spawn(move || watch(&watched, limit))?;
        Ok(Self { shared })
    }

    /// Freezes it until the returned value is dropped. Fails if another process has frozen it; that freeze is
    /// left alone.
    pub(crate) fn freeze(&self) -> io::Result<Frozen<'_>> {
        (self.shared.switch)(Turn::Freeze)?;
        *self.shared.since() = Some(clock::uptime());
        self.shared.changed.notify_all();
        Ok(Frozen { shared: &self.shared })
    }
}

impl Drop for Freezer {
    /// Ends the thread, which holds a descriptor in the file system and so would prevent unmounting it.
    fn drop(&mut self) {
        let _since = self.shared.since();
        self.shared.gone.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }
}

/// A frozen file system, until its time limit.
pub(crate) struct Frozen<'a> {
    shared: &'a Shared,
}

impl Frozen<'_> {
    /// How long it has been frozen; `None` if it has been thawed.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.shared
            .since()
            .map(|since| clock::uptime().saturating_sub(since))
    }

    /// Whether the host may be sent a request that relies on the freeze.
    pub(crate) fn may_ask(&self) -> bool {
        self.age().is_some_and(|age| age < ASK_LIMIT)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        thaw(self.shared, &mut self.shared.since());
    }
}

/// Thaws the file system if this process froze it. The caller holds the lock, so that it happens only once.
fn thaw(shared: &Shared, since: &mut Option<Duration>) {
    if since.take().is_some() {
        // It fails if something else has thawed it, which is fine.
        (shared.switch)(Turn::Thaw).ok();
    }
}

/// Thaws a file system that stays frozen for too long.
fn watch(shared: &Shared, limit: Duration) {
    let mut since = shared.since();
    while !shared.gone.load(Ordering::Relaxed) {
        let left = since.map(|since| (since + limit).saturating_sub(clock::uptime()));
        since = match left {
            None => shared.changed.wait(since).unwrap_or_else(PoisonError::into_inner),
            Some(Duration::ZERO) => {
                thaw(shared, &mut since);
                since
            }
            Some(left) => {
                let waited = shared.changed.wait_timeout(since, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake file system that records what is done to it, and refuses to be frozen twice.
    fn noted(limit: Duration) -> (Freezer, Arc<Mutex<Vec<Turn>>>) {
        let turns = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&turns);
        let switch = move |turn| {
            let mut turns = noted.lock().unwrap();
            if turns.last() == Some(&turn) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            turns.push(turn);
            Ok(())
        };
        (Freezer::with(switch, limit).unwrap(), turns)
    }

    #[test]
    fn it_is_thawed_once_when_the_guard_goes() {
        let (freezer, turns) = noted(Duration::from_mins(1));
        for _ in 0..3 {
            let frozen = freezer.freeze().unwrap();
            assert!(frozen.may_ask());
            assert!(freezer.freeze().is_err(), "somebody has frozen it");
        }
        assert_eq!(*turns.lock().unwrap(), [Turn::Freeze, Turn::Thaw].repeat(3));
    }

    #[test]
    fn one_that_takes_too_long_is_thawed_behind_its_back_and_may_ask_no_more() {
        let (freezer, turns) = noted(Duration::from_millis(50));
        let frozen = freezer.freeze().unwrap();
        assert!(frozen.may_ask());
        let thawed = clock::poll_until(Duration::from_secs(20), Duration::from_millis(1), || {
            (turns.lock().unwrap().len() == 2).then_some(())
        });
        assert!(thawed.is_some());
        assert_eq!(frozen.age(), None);
        assert!(!frozen.may_ask());
        drop(frozen);
        assert_eq!(*turns.lock().unwrap(), [Turn::Freeze, Turn::Thaw]);
        // The next freeze has its own time limit.
        drop(freezer.freeze().unwrap());
        assert_eq!(turns.lock().unwrap().len(), 4);
    }

    #[test]
    fn nothing_of_a_freezer_outlives_it() {
        let (freezer, turns) = noted(Duration::from_mins(1));
        drop(freezer.freeze().unwrap());
        drop(freezer);
        // In place of the descriptor, the thread holds a clone of `turns`.
        let alone = clock::poll_until(Duration::from_secs(20), Duration::from_millis(1), || {
            (Arc::strong_count(&turns) == 1).then_some(())
        });
        assert!(alone.is_some());
    }
}
