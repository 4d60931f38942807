//! Waits until the result of a sync would change: `crabbox watch`.
//!
//! Events only wake it; whether the tree differs is always checked. It must never miss a change for lack of
//! an event: if the system has no watches left, it checks every few seconds.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::watch::{Watch, Woken};
use crabbox_sync::directories::directories;
use crabbox_sync::manifest::Manifest;

use crate::sync::{self, Repo, SyncError};

/// How often to check if the system has no watches left.
const BLIND: Duration = Duration::from_secs(2);

/// How many times the debounce to wait at most while events keep coming: files that a sync ignores may be
/// written all the time.
const RESTLESS: u32 = 10;

/// Why it cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The system gave no events.
    #[error("cannot watch {}", root.display())]
    Events {
        /// The root.
        root: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The tree could not be listed.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl Fault for WatchError {
    fn kind(&self) -> Kind {
        match self {
            Self::Events { .. } => Kind::General,
            Self::Sync(error) => error.kind(),
        }
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The tree has changed.
    Changed,
    /// It stayed unchanged for the whole time.
    Idle,
    /// The user interrupted.
    Cancelled,
}

/// A watched tree.
#[derive(Debug)]
pub struct Watched<'a> {
    repo: &'a Repo,
    settings: &'a SyncSettings,
    watch: Watch,
    seen: String,
    /// Whether there are too few watches for this tree.
    pub is_blind: bool,
}

impl<'a> Watched<'a> {
    /// Starts watching.
    pub fn new(repo: &'a Repo, settings: &'a SyncSettings) -> Result<Self, WatchError> {
        let watch = Watch::new().map_err(|source| WatchError::Events {
            root: repo.root.clone(),
            source,
        })?;
        let mut watched = Self {
            repo,
            settings,
            watch,
            seen: String::new(),
            is_blind: false,
        };
        watched.seen = watched.look()?;
        Ok(watched)
    }

    /// Waits until the tree differs from the last one and was left alone for `debounce`, or for [`RESTLESS`]
    /// times that after the first event; at most `limit` in total.
    pub fn wait(
        &mut self,
        debounce: Duration,
        limit: Duration,
        cancel: BorrowedFd<'_>,
    ) -> Result<Change, WatchError> {
        let end = Instant::now() + limit;
        // Check first: changes since the last call caused no wakeup.
        let mut look = true;
        loop {
            if look {
                let now = self.look()?;
                if now != self.seen {
                    self.seen = now;
                    return Ok(Change::Changed);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Change::Idle);
            }
            let pause = if self.is_blind { BLIND.min(left) } else { left };
            match self.events(pause, cancel)? {
                Woken::Cancelled => return Ok(Change::Cancelled),
                Woken::Timeout => look = self.is_blind,
                Woken::Change => {
                    if self.settle(debounce, end, cancel)? == Woken::Cancelled {
                        return Ok(Change::Cancelled);
                    }
                    look = true;
                }
            }
        }
    }

    /// Waits until there was no event for `debounce`, for a bounded time, and not beyond `end`.
    fn settle(
        &mut self,
        debounce: Duration,
        end: Instant,
        cancel: BorrowedFd<'_>,
    ) -> Result<Woken, WatchError> {
        let until = end.min(Instant::now() + debounce.saturating_mul(RESTLESS));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events(debounce.min(left), cancel)? {
                Woken::Change if !left.is_zero() => {}
                woken => return Ok(woken),
            }
        }
    }

    fn events(&mut self, limit: Duration, cancel: BorrowedFd<'_>) -> Result<Woken, WatchError> {
        let root = &self.repo.root;
        self.watch
            .wait(limit, cancel)
            .map_err(|source| WatchError::Events {
                root: root.clone(),
                source,
            })
    }

    /// A digest of the tree. Lists it again if a directory was new, because changes there before it was
    /// watched caused no event.
    fn look(&mut self) -> Result<String, WatchError> {
        loop {
            let scope = sync::scope(self.settings);
            let manifest = Manifest::build(self.repo, &scope).map_err(SyncError::from)?;
            let dirs = directories(&manifest, &scope).map_err(SyncError::from)?;
            if !self.watch_all(&dirs)? {
                return Ok(word(&manifest));
            }
        }
    }

    /// Watches these directories; returns whether any was not watched before.
    fn watch_all(&mut self, dirs: &BTreeSet<PathBuf>) -> Result<bool, WatchError> {
        let mut any = false;
        for dir in dirs {
            match self.watch.add(dir) {
                Ok(new) => any |= new,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                    self.is_blind = true;
                    return Ok(false);
                }
                Err(source) => {
                    return Err(WatchError::Events {
                        root: dir.clone(),
                        source,
                    });
                }
            }
        }
        Ok(any)
    }
}

/// A digest of the manifest. Its own fingerprint cannot be used, because that is unique while any file was
/// touched a moment ago.
fn word(manifest: &Manifest) -> String {
    let mut text = Vec::new();
    for entry in &manifest.entries {
        let line = format!(
            "{:?} {:o} {} {} ",
            entry.kind, entry.mode, entry.size, entry.mtime_ns
        );
        text.extend_from_slice(line.as_bytes());
        text.extend_from_slice(&entry.path);
        text.push(0);
    }
    crabbox_host::digest::sha256(&text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crabbox_core::config::{Inputs, Settings, resolve};
    use crabbox_host::clock;
    use crabbox_host::command::Cmd;

    use super::*;

    fn settings(root: &Path) -> Settings {
        let resolved = resolve(&Inputs {
            files: &[],
            environment: &|_| None,
            flags: &[],
            home: None,
            cwd: root,
            user_file: None,
        });
        resolved.unwrap().settings
    }

    #[test]
    fn only_what_a_sync_would_bring_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        Cmd::new("git").args(["init", "-q"]).cwd(root).run().unwrap();
        fs::write(root.join(".gitignore"), "ignored\n").unwrap();
        let settings = settings(root);
        let repo = sync::look(root).unwrap();
        let mut watched = Watched::new(&repo, &settings.sync).unwrap();
        let (cancel, other) = UnixStream::pair().unwrap();
        let mut wait = |limit| {
            let debounce = Duration::from_millis(20);
            watched.wait(debounce, limit, cancel.as_fd()).unwrap()
        };
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(30));
        assert_eq!(wait(short), Change::Idle);
        fs::create_dir_all(root.join("ignored/deep")).unwrap();
        fs::write(root.join("ignored/deep/file"), "x").unwrap();
        assert_eq!(wait(short), Change::Idle, "nobody would sync that");
        fs::create_dir_all(root.join("new/deep")).unwrap();
        assert_eq!(wait(short), Change::Idle, "still no file");
        // In a directory that was empty when it was listed.
        fs::write(root.join("new/deep/file"), "x").unwrap();
        assert_eq!(wait(long), Change::Changed);
        fs::write(root.join("new/deep/file"), "xy").unwrap();
        assert_eq!(wait(long), Change::Changed);
        fs::remove_file(root.join("new/deep/file")).unwrap();
        assert_eq!(wait(long), Change::Changed);
        assert_eq!(wait(short), Change::Idle);
        drop(other);
        assert_eq!(wait(long), Change::Cancelled);
    }

    /// Half a minute of writes at least, thirty times as long as [`RESTLESS`] lets a wait go on.
    const WRITES: usize = 6000;

    #[test]
    fn a_change_is_seen_while_an_ignored_file_beside_it_is_written_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        Cmd::new("git").args(["init", "-q"]).cwd(root).run().unwrap();
        fs::write(root.join(".gitignore"), "*.log\n").unwrap();
        let settings = settings(root);
        let repo = sync::look(root).unwrap();
        let mut watched = Watched::new(&repo, &settings.sync).unwrap();
        let (cancel, _other) = UnixStream::pair().unwrap();
        let (has_idled, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|threads| {
            // Bounded, so that a watch that waits for silence fails the test instead of hanging it.
            let writing = threads.spawn(|| {
                let mut since = 0;
                for _ in 0..WRITES {
                    if is_over.load(Ordering::Relaxed) {
                        return true;
                    }
                    fs::write(root.join("build.log"), "x").unwrap();
                    since += u32::from(has_idled.load(Ordering::Relaxed));
                    // Long after the second wait has begun: it is to come while that waits for silence.
                    if since == 400 {
                        fs::write(root.join("source"), "x").unwrap();
                    }
                    clock::nap(Duration::from_millis(5));
                }
                false
            });
            let mut wait = |limit| watched.wait(Duration::from_millis(100), limit, cancel.as_fd());
            let idle = wait(Duration::from_millis(300));
            has_idled.store(true, Ordering::Relaxed);
            // Longer than all writes take.
            let changed = wait(Duration::from_mins(10));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!((idle.unwrap(), changed.unwrap()), (Change::Idle, Change::Changed));
            assert!(writing.join().unwrap(), "it was seen only after the last write");
        });
    }
}
