//! One file or symbolic link of the manifest, and how it is read from the disk.
//!
//! The identity of an entry stands for its content without reading it, as in git's index: kind, permissions,
//! size, modification time, change time and inode. It must never be trusted for a file that was touched so
//! shortly before it was examined that a later change could have the same times; such an entry gets no
//! identity and is sent again next time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crabbox_core::id::hex;
use crabbox_host::beneath::Beneath;
use crabbox_host::entry_path::EntryPath;
use rustix::fs::{Access, AtFlags, FileType, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::manifest::ManifestError;

/// The assumed granularity of change times that have nanoseconds: ten ticks of a slow kernel.
const FINE_NS: i128 = 100_000_000;
/// The assumed granularity of change times in whole seconds (old file systems): the worst known, and a
/// margin.
const COARSE_NS: i128 = 2_100_000_000;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link, synced as a link.
    Symlink,
}

/// How a file compares with git's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The index of this repository does not have it.
    Untracked,
    /// It differs from the index, or git cannot tell yet.
    Unlike,
    /// It matches the index, after conversions (line ends, filters, modes).
    Same,
}

/// One path of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path, relative to the root, any bytes but NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0o7777` and below.
    pub mode: u32,
    /// Size in bytes: of a file's content, or of a link's target.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Whether it differs from `HEAD` (modified, staged or untracked).
    pub changed: bool,
    /// How it compares with git's index.
    pub standing: Standing,
    /// Stands for the content; `None` if it was touched too recently to be trusted.
    pub identity: Option<u64>,
}

/// A path as a message shows it.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().collect()
}

/// The fewest paths that make another thread worthwhile.
const PATHS_A_THREAD: usize = 2000;
/// More threads than this only contend in the kernel.
const THREADS: usize = 8;

/// One walk over the working tree.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) root: PathBuf,
    tree: Beneath,
    started_ns: i128,
    user: u32,
}

impl Scan {
    pub(crate) fn start(root: &Path) -> Result<Self, ManifestError> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tree = Beneath::open(root).map_err(|error| ManifestError::Look {
            path: root.display().to_string(),
            source: error.into(),
        })?;
        Ok(Self {
            root: root.to_owned(),
            tree,
            started_ns: i128::try_from(started.as_nanos()).unwrap_or(i128::MAX),
            user: rustix::process::geteuid().as_raw(),
        })
    }

    /// Creates an examiner of paths that caches directories.
    pub(crate) fn eye(&self) -> Examiner<'_> {
        Examiner {
            scan: self,
            last: None,
        }
    }

    /// The results of `look` for all items, in order; several threads share the items, each with its own
    /// memory.
    pub(crate) fn all<T: Sync, R: Send, M>(
        &self,
        items: &[T],
        memory: impl Fn() -> M + Sync,
        look: impl Fn(&mut Examiner<'_>, &mut M, &T) -> Result<R, ManifestError> + Sync,
    ) -> Result<Vec<R>, ManifestError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = cores.min(THREADS).min(items.len() / PATHS_A_THREAD).max(1);
        let share = |items: &[T]| -> Result<Vec<R>, ManifestError> {
            let mut eye = self.eye();
            let mut memory = memory();
            items
                .iter()
                .map(|item| look(&mut eye, &mut memory, item))
                .collect()
        };
        if threads == 1 {
            return share(items);
        }
        let parts: Vec<Result<Vec<R>, ManifestError>> = std::thread::scope(|scope| {
            let started: Vec<_> = items
                .chunks(items.len().div_ceil(threads))
                .map(|part| scope.spawn(|| share(part)))
                .collect();
            started
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let mut all = Vec::with_capacity(items.len());
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    }

    /// Opens the directory `dir` if it and all directories above it are not links: what is beyond a link does
    /// not belong to this tree.
    fn own_dir(&self, dir: &[u8]) -> io::Result<Option<OwnedFd>> {
        let below = EntryPath::exact(dir).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        match self.tree.enter(&below) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether `dir` is a directory of the tree itself.
    pub(crate) fn is_own_dir(&self, dir: &[u8]) -> bool {
        self.own_dir(dir).is_ok_and(|opened| opened.is_some())
    }

    /// Calls access(2) only if the owner's read bit does not answer the question.
    fn check_readable(&self, dir: impl AsFd, name: &[u8], stat: &Stat) -> Result<(), Errno> {
        if stat.st_uid == self.user && stat.st_mode & 0o400 != 0 {
            return Ok(());
        }
        rustix::fs::accessat(dir, name, Access::READ_OK, AtFlags::EACCESS)
    }

    /// Whether a file was touched so shortly before this walk that a later change could have the same times.
    pub(crate) fn is_fresh(&self, stat: &Stat) -> bool {
        let grain = if stat.st_ctime_nsec == 0 {
            COARSE_NS
        } else {
            FINE_NS
        };
        nanoseconds(stat.st_ctime, stat.st_ctime_nsec) + grain >= self.started_ns
    }

    /// Whether it was written after this walk began.
    pub(crate) fn is_younger(&self, entry: &Entry) -> bool {
        entry.mtime_ns >= self.started_ns
    }

    fn identity(&self, kind: Kind, stat: &Stat, target: &[u8]) -> Option<u64> {
        if self.is_fresh(stat) {
            return None;
        }
        let modified = nanoseconds(stat.st_mtime, stat.st_mtime_nsec);
        let changed = nanoseconds(stat.st_ctime, stat.st_ctime_nsec);
        // If another version of the standard library uses another hash, that costs one full sync and nothing
        // else.
        let mut hash = DefaultHasher::new();
        (kind == Kind::Symlink).hash(&mut hash);
        (stat.st_mode, stat.st_size, modified, changed, stat.st_ino).hash(&mut hash);
        target.hash(&mut hash);
        // Zero means "not trusted" in the protocol.
        Some(hash.finish().max(1))
    }

    /// One value for the whole tree. If any entry is untrusted, the value is unique.
    pub(crate) fn fingerprint(&self, entries: &[Entry], deleted: &[Vec<u8>]) -> String {
        let mut hash = Sha256::new();
        hash.update(b"crabbox-sync 1\0");
        for entry in entries {
            hash.update(entry.identity.unwrap_or(0).to_le_bytes());
            hash.update(&entry.path);
            hash.update([0]);
        }
        hash.update([0]);
        for path in deleted {
            hash.update(path);
            hash.update([0]);
        }
        if entries.iter().any(|entry| entry.identity.is_none()) {
            hash.update(self.started_ns.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// Examines paths of a tree.
#[derive(Debug)]
pub(crate) struct Examiner<'a> {
    scan: &'a Scan,
    /// The directory of the last path, open unless it is reached through a link. Neighbouring paths usually
    /// follow each other, so that the walk from the root is saved.
    last: Option<(Vec<u8>, Option<OwnedFd>)>,
}

/// What was found at a path.
pub(crate) struct Examined {
    kind: Kind,
    stat: Stat,
    /// The target of a link.
    target: Vec<u8>,
    identity: Option<u64>,
}

impl Examined {
    /// Whether it is the same as before.
    pub(crate) fn is(&self, was: &Entry) -> bool {
        self.identity.is_some() && self.identity == was.identity
    }

    /// Converts it to an entry.
    pub(crate) fn entry(self, path: &[u8], changed: bool) -> Entry {
        let size = match self.kind {
            Kind::Symlink => self.target.len() as u64,
            Kind::File => u64::try_from(self.stat.st_size).unwrap_or(0),
        };
        Entry {
            path: path.to_vec(),
            kind: self.kind,
            mode: self.stat.st_mode & 0o7777,
            size,
            mtime_ns: nanoseconds(self.stat.st_mtime, self.stat.st_mtime_nsec),
            changed,
            standing: Standing::Untracked,
            identity: self.identity,
        }
    }
}

impl Examiner<'_> {
    /// The entry at `path` now.
    pub(crate) fn look(&mut self, path: &[u8], changed: bool) -> Result<Option<Entry>, ManifestError> {
        Ok(self.see(path)?.map(|sight| sight.entry(path, changed)))
    }

    /// What is at `path` now; `None` if there is no file or link, or only one beyond a linked directory.
    pub(crate) fn see(&mut self, path: &[u8]) -> Result<Option<Examined>, ManifestError> {
        let scan = self.scan;
        let failed = |source: io::Error| ManifestError::Look {
            path: show(path),
            source,
        };
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(cut) => match self.enter(&path[..cut]).map_err(failed)? {
                Some(dir) => (dir.as_fd(), &path[cut + 1..]),
                None => return Ok(None),
            },
            None => (scan.tree.as_fd(), path),
        };
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(source) => return Err(failed(source.into())),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(None),
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            other => {
                return Err(ManifestError::Special {
                    path: show(path),
                    kind: match other {
                        FileType::Socket => "socket",
                        FileType::Fifo => "named pipe",
                        _ => "device",
                    },
                });
            }
        };
        let target = if kind == Kind::Symlink {
            rustix::fs::readlinkat(dir, name, Vec::new())
                .map_err(|source| failed(source.into()))?
                .into_bytes()
        } else {
            scan.check_readable(dir, name, &stat)
                .map_err(|source| ManifestError::Denied {
                    path: show(path),
                    source: source.into(),
                })?;
            Vec::new()
        };
        let identity = scan.identity(kind, &stat, &target);
        Ok(Some(Examined {
            kind,
            stat,
            target,
            identity,
        }))
    }

    /// The directory, open, unless it is reached through a link.
    fn enter(&mut self, dir: &[u8]) -> io::Result<Option<&OwnedFd>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != dir) {
            self.last = Some((dir.to_vec(), self.scan.own_dir(dir)?));
        }
        Ok(self.last.as_ref().and_then(|(_, opened)| opened.as_ref()))
    }
}

/// Combines seconds and nanoseconds of a `stat`.
pub(crate) fn nanoseconds(seconds: impl Into<i128>, rest: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + rest.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_just_touched_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "1").unwrap();
        let identity_in = |scan: &Scan| scan.eye().look(b"a", false).unwrap().unwrap().identity;
        // Touched once the walk has begun, so that it is fresh however slowly this test runs.
        let scan = Scan::start(dir.path()).unwrap();
        std::fs::write(&file, "2").unwrap();
        assert_eq!(identity_in(&scan), None);
        let settled = crabbox_host::clock::poll_until(Duration::from_secs(30), || {
            identity_in(&Scan::start(dir.path()).unwrap())
        });
        assert_ne!(
            settled, None,
            "a file that stays as it is must be trusted in the end"
        );
    }
}
