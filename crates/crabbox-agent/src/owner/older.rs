//! The lock that earlier versions of this program take on a host without flock(1): a directory with one file in it, named after its owner.
//!
//! Renaming a directory over an empty one is atomic, and over a full one fails. Only the file of a process that is gone may ever be removed.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::io::Errno;

use super::Files;
use crate::failure::{At as _, Failure};
use crate::process::Stat;

/// Our place in that lock, taken or waited for; it is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Older {
    /// What is to be renamed over the lock.
    trying: PathBuf,
    lock: PathBuf,
    /// Our name: number and start time.
    mark: String,
}

impl Older {
    /// Where those versions would take it, and would see that we live.
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

    /// Takes it, unless somebody has it.
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
        // Each of them is there or not; a file that stays is known to be of a process that is gone.
        std::fs::remove_file(self.trying.join(&self.mark)).ok();
        std::fs::remove_dir(&self.trying).ok();
        std::fs::remove_file(self.lock.join(&self.mark)).ok();
    }
}

/// Whether the process still runs after which a file is named.
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
        // What the dead have left is theirs no more; the first look clears it away.
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
