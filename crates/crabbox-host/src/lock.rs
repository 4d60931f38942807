//! File locks between processes with `flock(2)`: the kernel releases a lock when its holder dies, for
//! whatever reason.
//!
//! They are compatible with `flock(1)` and with the Go program. A lock here must never be held on a file that
//! has lost its name, since the next process would lock another file, and both would hold "the" lock.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::files::remove_if_there;

/// Why a lock could not be taken or released.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A system call failed.
    #[error("cannot {attempt} lock file {}", path.display())]
    Io {
        /// The attempted operation.
        attempt: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Another process held the lock for the caller's whole waiting time.
    #[error("lock file {} is still held by another process after {limit:?}", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long the caller waited.
        limit: Duration,
    },
}

/// A lock, exclusive unless it is [shared](FileLock::share); dropping it, or dying, releases it. The file
/// stays where it is.
#[derive(Debug)]
#[must_use = "the lock is released when this value is dropped"]
pub struct FileLock {
    path: PathBuf,
    file: File,
}

impl FileLock {
    /// Waits for the lock without a limit. Creates the file (0600) and its directory (0700) if they are
    /// missing.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        Self::wait_for(path, File::lock)
    }

    /// The same for a shared lock, which any number of holders may have; [`FileLock::acquire`] and similar
    /// calls exclude them.
    pub fn share(path: &Path) -> Result<Self, LockError> {
        Self::wait_for(path, File::lock_shared)
    }

    fn wait_for(path: &Path, take: fn(&File) -> std::io::Result<()>) -> Result<Self, LockError> {
        make_parent(path)?;
        loop {
            let file = open(path)?;
            match take(&file) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(failed("take", path, source)),
                Ok(()) if still_named(&file, path)? => {
                    return Ok(Self {
                        path: path.to_owned(),
                        file,
                    });
                }
                Ok(()) => {}
            }
        }
    }

    /// Takes the lock if it is free; `None` if it is held. Creates file and directory like
    /// [`FileLock::acquire`].
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, LockError> {
        Self::try_for(path, File::try_lock)
    }

    /// The same for a shared lock; `None` if an exclusive lock is held.
    pub fn try_share(path: &Path) -> Result<Option<Self>, LockError> {
        Self::try_for(path, File::try_lock_shared)
    }

    fn try_for(path: &Path, take: fn(&File) -> Result<(), TryLockError>) -> Result<Option<Self>, LockError> {
        make_parent(path)?;
        loop {
            let file = open(path)?;
            match take(&file) {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(source)) => return Err(failed("take", path, source)),
                Ok(()) if still_named(&file, path)? => {
                    return Ok(Some(Self {
                        path: path.to_owned(),
                        file,
                    }));
                }
                Ok(()) => {}
            }
        }
    }

    /// Whether a process holds the lock right now. It changes nothing: a missing lock file is not created.
    pub fn is_held(path: &Path) -> Result<bool, LockError> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(failed("open", path, source)),
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(failed("inspect", path, source)),
            Ok(()) => {
                let looked = file.unlock();
                looked
                    .map(|()| false)
                    .map_err(|source| failed("give back", path, source))
            }
        }
    }

    /// Waits for the lock, at most `limit`, then gives up with [`LockError::Busy`].
    pub fn acquire_within(path: &Path, limit: Duration) -> Result<Self, LockError> {
        clock::poll_until(limit, || Self::try_acquire(path).transpose()).unwrap_or_else(|| {
            Err(LockError::Busy {
                path: path.to_owned(),
                limit,
            })
        })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the lock file and then releases the lock. A waiting process notices, and locks a new file.
    pub fn remove_while_held(self) -> Result<(), LockError> {
        match remove_if_there(&self.path) {
            Ok(_) => Ok(()),
            Err(source) => Err(failed("remove", &self.path, source)),
        }
    }
}

impl Drop for FileLock {
    /// Unlocks explicitly. Closing the file would not be enough: a child that another thread is starting has
    /// a copy of the descriptor until its exec.
    fn drop(&mut self) {
        // If unlocking fails, closing the descriptor releases the lock.
        self.file.unlock().ok();
    }
}

fn failed(attempt: &'static str, path: &Path, source: impl Into<std::io::Error>) -> LockError {
    LockError::Io {
        attempt,
        path: path.to_owned(),
        source: source.into(),
    }
}

fn make_parent(path: &Path) -> Result<(), LockError> {
    let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(());
    };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| failed("make the directory of", path, source))
}

/// The standard library opens files close-on-exec, so a child never holds our lock. A symbolic link is
/// refused, since its target would be locked, and another user could choose that.
fn open(path: &Path) -> Result<File, LockError> {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    options.open(path).map_err(|source| failed("open", path, source))
}

/// Whether `path` still names the locked file: it may have been removed or replaced while we waited.
fn still_named(file: &File, path: &Path) -> Result<bool, LockError> {
    let held = file
        .metadata()
        .map_err(|source| failed("inspect", path, source))?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok(held.nlink() > 0 && (named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("inspect", path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Cmd;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_lock_excludes_and_is_released_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/lock");
        let held = FileLock::acquire(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        let limit = Duration::from_millis(20);
        assert!(matches!(
            FileLock::acquire_within(&path, limit),
            Err(LockError::Busy { .. })
        ));
        assert!(FileLock::is_held(&path).unwrap());
        drop(held);
        assert!(!FileLock::is_held(&path).unwrap());
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
        let none = dir.path().join("none");
        assert!(
            !FileLock::is_held(&none).unwrap() && !none.exists(),
            "a look makes nothing"
        );
    }

    #[test]
    fn a_lock_excludes_flock_1_and_is_not_inherited_by_children() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let attempt = Cmd::new("flock").arg("--nonblock").arg(&path).arg("true");
        let held = FileLock::acquire(&path).unwrap();
        assert!(
            attempt.run().is_err(),
            "flock(1) must not get a lock that we hold"
        );
        let mut child = Cmd::new("sleep").arg("600").to_std().spawn().unwrap();
        drop(held);
        let after = attempt.run();
        child.kill().unwrap();
        child.wait().unwrap();
        after.unwrap();
    }

    #[test]
    fn a_dropped_lock_is_free_although_a_starting_process_has_a_copy_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::acquire(&path).unwrap();
        let copy = held.file.try_clone().unwrap();
        drop(held);
        assert!(!FileLock::is_held(&path).unwrap());
        drop(copy);
    }

    #[test]
    fn who_waited_for_a_removed_lock_takes_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::acquire(&path).unwrap();
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || FileLock::acquire(&path).unwrap())
        };
        let is_waiting = || {
            let locks = std::fs::read_to_string("/proc/locks").ok()?;
            let inode = std::fs::metadata(&path).ok()?.ino();
            locks
                .lines()
                .any(|line| line.contains("->") && line.contains(&format!(":{inode} ")))
                .then_some(())
        };
        clock::poll_until(Duration::from_secs(5), is_waiting).expect("the other thread waits for the lock");
        first.remove_while_held().unwrap();
        let second = waiter.join().unwrap();
        assert!(path.exists(), "the waiter made a new file");
        assert!(
            FileLock::try_acquire(&path).unwrap().is_none(),
            "and it is the one that others see"
        );
        drop(second);
    }

    #[test]
    fn a_symbolic_link_is_not_a_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(FileLock::acquire(&path).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
