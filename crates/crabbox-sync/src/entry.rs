//! One file or symbolic link of the manifest, and the look at the disk that makes it.
//!
//! The identity of an entry stands for its content without reading it, as in git's index: kind, permissions, size,
//! modification time, change time and inode. It must never be trusted for a file that was touched so shortly before the
//! look that a later touch could carry the same times; such an entry gets no identity and is sent again next time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, AtFlags};
use sha2::{Digest as _, Sha256};

use crate::manifest::ManifestError;

/// How fine a change time is taken to be where it carries nanoseconds: ten ticks of a slow kernel.
const FINE_NS: i128 = 100_000_000;
/// How fine it is where it seems to carry whole seconds only (old file systems): their worst, and a little.
const COARSE_NS: i128 = 2_100_000_000;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link, synced as a link.
    Symlink,
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
    /// Bytes: the content of a file, the target of a link.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Whether it differs from `HEAD` (modified, staged or untracked).
    pub changed: bool,
    /// Stands for the content; `None` when it was touched too recently to be trusted.
    pub identity: Option<u64>,
}

/// A path as a message shows it.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().collect()
}

/// One walk over the working tree.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) root: PathBuf,
    started_ns: i128,
    /// Directories known to be directories of the tree itself, not links.
    dirs: HashMap<Vec<u8>, bool>,
    user: u32,
}

impl Scan {
    pub(crate) fn start(root: &Path) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            root: root.to_owned(),
            started_ns: i128::try_from(started.as_nanos()).unwrap_or(i128::MAX),
            dirs: HashMap::new(),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    /// What stands at `path` now; `None` when no file or link does, or only one beyond a linked directory.
    pub(crate) fn look(&mut self, path: &[u8], changed: bool) -> Result<Option<Entry>, ManifestError> {
        if let Some(cut) = path.iter().rposition(|byte| *byte == b'/')
            && !self.is_own_dir(&path[..cut])
        {
            return Ok(None);
        }
        let full = self.root.join(OsStr::from_bytes(path));
        let meta = match full.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => {
                return Err(ManifestError::Look {
                    path: show(path),
                    source,
                });
            }
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            return Ok(None);
        }
        let mut target = Vec::new();
        let kind = if kind.is_file() {
            self.check_readable(path, &full, &meta)?;
            Kind::File
        } else if kind.is_symlink() {
            let link = std::fs::read_link(&full).map_err(|source| ManifestError::Look {
                path: show(path),
                source,
            })?;
            target.extend_from_slice(link.as_os_str().as_bytes());
            Kind::Symlink
        } else {
            let kind = if kind.is_socket() {
                "socket"
            } else if kind.is_fifo() {
                "named pipe"
            } else {
                "device"
            };
            return Err(ManifestError::Special {
                path: show(path),
                kind,
            });
        };
        let identity = self.identity(kind, &meta, &target);
        Ok(Some(Entry {
            path: path.to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            size: if kind == Kind::Symlink {
                target.len() as u64
            } else {
                meta.size()
            },
            mtime_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            changed,
            identity,
        }))
    }

    /// Whether `dir` and all above it are directories and not links: what lies beyond a link is not this tree's.
    fn is_own_dir(&mut self, dir: &[u8]) -> bool {
        if let Some(known) = self.dirs.get(dir) {
            return *known;
        }
        let above = dir
            .iter()
            .rposition(|byte| *byte == b'/')
            .is_none_or(|cut| self.is_own_dir(&dir[..cut]));
        let own = above
            && self
                .root
                .join(OsStr::from_bytes(dir))
                .symlink_metadata()
                .is_ok_and(|meta| meta.file_type().is_dir());
        self.dirs.insert(dir.to_vec(), own);
        own
    }

    /// Asks the system only where the owner's read bit does not answer.
    fn check_readable(
        &self,
        path: &[u8],
        full: &Path,
        meta: &std::fs::Metadata,
    ) -> Result<(), ManifestError> {
        if meta.uid() == self.user && meta.mode() & 0o400 != 0 {
            return Ok(());
        }
        rustix::fs::accessat(rustix::fs::CWD, full, Access::READ_OK, AtFlags::EACCESS).map_err(|source| {
            ManifestError::Denied {
                path: show(path),
                source: source.into(),
            }
        })
    }

    fn identity(&self, kind: Kind, meta: &std::fs::Metadata, target: &[u8]) -> Option<u64> {
        let modified = nanoseconds(meta.mtime(), meta.mtime_nsec());
        let changed = nanoseconds(meta.ctime(), meta.ctime_nsec());
        let grain = if meta.ctime_nsec() == 0 {
            COARSE_NS
        } else {
            FINE_NS
        };
        if changed + grain >= self.started_ns {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update([u8::from(kind == Kind::Symlink)]);
        for number in [
            i128::from(meta.mode()),
            i128::from(meta.size()),
            modified,
            changed,
            i128::from(meta.ino()),
        ] {
            hash.update(number.to_le_bytes());
        }
        hash.update(target);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        // Zero is the mark of "not trusted" on the wire.
        Some(u64::from_le_bytes(first).max(1))
    }

    /// One value for the whole tree. With an untrusted entry in it, it is like no other.
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

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            write!(text, "{byte:02x}").ok();
            text
        })
}
