//! The lock that earlier versions of this program take on a host without flock(1): a directory with one file in it, named after its owner process.
//!
//! Renaming a directory over an empty one is atomic, and over a non-empty one fails. Only the file of a process that has ended may ever be removed.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::io::Errno;

use super::Files;
use crate::failure::{At as _, Failure};
use crate::process::Stat;

/// Our claim on that lock, held or waiting; released on drop.
#[derive(Debug)]
pub(super) struct Older {
    /// The directory to rename over the lock.
    trying: PathBuf,
    lock: PathBuf,
    /// The name of our file: pid and start time.
    mark: String,
}

impl Older {
    /// The lock where those versions would take it; `None` if the host has flock(1) or if they could not see our process in `/proc`.
    pub(super) fn of(files: &Files) -> Option<Self> {
        if crate::has("flock") {
            return None;
        }
        let own = std::process::id();
        Stat::of(own).map(|stat| Self {
            trying: files.named(&format!("try.{own}")),
            lock: files.named("lock"),
            mark: format!("{own}.{}", stat.began),
        })
    }

    /// Takes the lock unless another process has it.
    pub(super) fn take(&self) -> Result<bool, Failure> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.trying) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.at(&self.trying)?,
        }
        let mark = self.trying.join(&self.mark);
        File::create(&mark).at(&mark)?;
        match rustix::fs::renameat(CWD, &self.trying, CWD, &self.lock) {
            Ok(()) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(&self.lock),
        }
        for entry in std::fs::read_dir(&self.lock).at(&self.lock)?.flatten() {
            if !is_alive(&entry.file_name().to_string_lossy()) {
                std::fs::remove_file(entry.path()).ok();
            }
        }
        Ok(false)
    }
}

impl Drop for Older {
    fn drop(&mut self) {
        // Any of these may be absent; a file that stays is recognised as one of an ended process.
        std::fs::remove_file(self.trying.join(&self.mark)).ok();
        std::fs::remove_dir(&self.trying).ok();
        std::fs::remove_file(self.lock.join(&self.mark)).ok();
    }
}

/// Whether the process that a file is named after still runs.
fn is_alive(name: &str) -> bool {
    let parts = name.split_once('.');
    let parts = parts.and_then(|(pid, began)| Some((pid.parse().ok()?, began.parse().ok()?)));
    parts.is_some_and(|(pid, began): (u32, u64)| Stat::of(pid).is_some_and(|stat| stat.began == began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_from_the_dead_only_and_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let older = |own: &str, mark: &str| Older {
            trying: dir.path().join(own),
            lock: dir.path().join("k.lock"),
            mark: mark.to_owned(),
        };
        let began = Stat::of(std::process::id()).unwrap().began;
        let first = older("try.1", &format!("{}.{began}", std::process::id()));
        assert!(first.take().unwrap());
        let second = older("try.2", "1.1");
        assert!(!second.take().unwrap() && !second.take().unwrap());
        assert!(first.lock.join(&first.mark).exists(), "it lives");
        drop(first);
        assert!(second.take().unwrap());
        // A dead owner's file no longer counts; the first attempt clears it away.
        std::mem::forget(second);
        let third = older("try.3", "x");
        assert!(!third.take().unwrap());
        assert!(third.take().unwrap());
        drop(third);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() != "try.3"));
        assert_eq!(std::fs::read_dir(dir.path().join("k.lock")).unwrap().count(), 0);
    }
}
