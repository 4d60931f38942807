//! Waits for changes in directories (inotify); it reports only that something changed, never what.
//!
//! The kernel drops events when there are too many, so an event must never be taken for complete information:
//! the caller must check the directories itself.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// The watched directories.
#[derive(Debug)]
pub struct Watch {
    events: OwnedFd,
    known: HashSet<i32>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something happened in a watched directory.
    Change,
    /// The time limit has passed.
    Timeout,
    /// The additional descriptor became readable.
    Cancelled,
}

impl Watch {
    /// A new watcher without directories.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            known: HashSet::new(),
        })
    }

    /// Watches a directory; returns whether it was not watched before. A missing directory, or a link, is
    /// skipped. Fails with `ENOSPC` when the system's limit of watches is reached.
    pub fn add(&mut self, dir: &Path) -> io::Result<bool> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&self.events, dir, flags) {
            Ok(number) => Ok(self.known.insert(number)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a change, at most `limit`, and discards the events that report it.
    pub fn wait(&mut self, limit: Duration, cancel: BorrowedFd<'_>) -> io::Result<Woken> {
        let limit = Timespec::try_from(limit).ok();
        let mut fds = [
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
            PollFd::new(&self.events, PollFlags::IN),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            // The signal may be a request to end; the caller checks `cancel` again.
            Err(Errno::INTR) => return Ok(Woken::Change),
            Err(error) => return Err(error.into()),
        }
        let [cancelled, changed] = fds.map(|fd| !fd.revents().is_empty());
        if cancelled {
            return Ok(Woken::Cancelled);
        }
        if changed {
            self.drain()?;
            return Ok(Woken::Change);
        }
        Ok(Woken::Timeout)
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.events.as_fd(), &mut space);
        loop {
            match reader.next() {
                // The directory is gone, and its watch number may be reused.
                Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {
                    self.known.remove(&event.wd());
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn changes_are_told_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (cancel, other) = UnixStream::pair().unwrap();
        let mut watch = Watch::new().unwrap();
        assert!(watch.add(dir.path()).unwrap());
        assert!(!watch.add(dir.path()).unwrap(), "known already");
        assert!(!watch.add(&dir.path().join("gone")).unwrap());
        let short = Duration::from_millis(20);
        assert_eq!(watch.wait(short, cancel.as_fd()).unwrap(), Woken::Timeout);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let long = Duration::from_secs(20);
        assert_eq!(watch.wait(long, cancel.as_fd()).unwrap(), Woken::Change);
        assert_eq!(
            watch.wait(short, cancel.as_fd()).unwrap(),
            Woken::Timeout,
            "told once"
        );
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        assert!(watch.add(&sub).unwrap());
        std::fs::remove_dir(&sub).unwrap();
        assert_eq!(watch.wait(long, cancel.as_fd()).unwrap(), Woken::Change);
        std::fs::create_dir(&sub).unwrap();
        assert!(watch.add(&sub).unwrap(), "another one of that name");
        drop(other);
        assert_eq!(watch.wait(long, cancel.as_fd()).unwrap(), Woken::Cancelled);
    }
}
