//! Small untrusted files: an ignore file, a record, a list in a foreign tree.
//!
//! [`read_small`] reads a regular file of bounded length and nothing else. It must never follow a link, open
//! a device, wait for a named pipe, or hold more than `limit` bytes.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::beneath::{Beneath, BeneathError, describe};
use crate::entry_path::{EntryPath, EntryPathError};

/// Why a small file was not read.
#[derive(Debug, thiserror::Error)]
pub enum SmallError {
    /// It does not exist.
    #[error("{} does not exist", path.display())]
    Absent {
        /// The path.
        path: PathBuf,
    },
    /// The name is not a valid path below the directory.
    #[error("{name:?} is {why}, not a file below {}", dir.display())]
    Name {
        /// The name.
        name: PathBuf,
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: EntryPathError,
    },
    /// The path is not a regular file.
    #[error("{} is {what}, not a regular file", path.display())]
    Special {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It exceeds the size limit.
    #[error("{} is larger than {limit} bytes", path.display())]
    Large {
        /// The path.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A component of its path is a link.
    #[error("{} is reached through a symbolic link, which is not followed", path.display())]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot read {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Reads the file `name` below `dir`, which must be regular and at most `limit` bytes long.
///
/// Links in `dir` are followed, because the caller chose it; no component of `name` may be a link.
pub fn read_small(dir: &Path, name: &Path, limit: u64) -> Result<Vec<u8>, SmallError> {
    use std::os::unix::ffi::OsStrExt as _;
    let below = EntryPath::normal(name.as_os_str().as_bytes()).map_err(|why| SmallError::Name {
        name: name.to_owned(),
        dir: dir.to_owned(),
        why,
    })?;
    let opened = Beneath::open(dir).map_err(|error| refine(error, &dir.join(name)))?;
    read_small_at(&opened, &below, limit)
}

/// The same below an open directory.
pub(crate) fn read_small_at(dir: &Beneath, below: &EntryPath, limit: u64) -> Result<Vec<u8>, SmallError> {
    let path = dir.full(below);
    let failed = |error| refine(error, &path);
    // Check the type before opening, because opening a device may already have effects.
    match dir.kind(below).map_err(failed)? {
        Some(FileType::RegularFile) => {}
        None => return Err(SmallError::Absent { path }),
        Some(kind) => {
            return Err(SmallError::Special {
                path,
                what: describe(kind),
            });
        }
    }
    let file = dir
        .open_file(below, OFlags::RDONLY, Mode::empty())
        .map_err(failed)?;
    // Check again after opening, because it may have been replaced meanwhile.
    crate::beneath::regular(&file, &path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| SmallError::Io {
            path: path.clone(),
            source,
        })?;
    if bytes.len() as u64 > limit {
        return Err(SmallError::Large { path, limit });
    }
    Ok(bytes)
}

fn refine(error: BeneathError, path: &Path) -> SmallError {
    let path = path.to_owned();
    match error {
        error if error.is_absent() => SmallError::Absent { path },
        BeneathError::Link { .. } => SmallError::Link { path },
        BeneathError::InTheWay { what, .. } => SmallError::Special { path, what },
        BeneathError::Exists { .. } => SmallError::Io {
            path,
            source: io::ErrorKind::AlreadyExists.into(),
        },
        // A component of the path is a file instead of a directory: the requested file does not exist.
        BeneathError::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory => {
            SmallError::Absent { path }
        }
        BeneathError::Io { source, .. } => SmallError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_regular_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "12345").unwrap();
        let read = |name: &str, limit| read_small(dir.path(), Path::new(name), limit);
        assert_eq!(read("f", 5).unwrap(), b"12345");
        assert_eq!(read("./f", 9).unwrap(), b"12345");
        assert!(matches!(read("f", 4), Err(SmallError::Large { limit: 4, .. })));
        assert!(matches!(read("none", 4), Err(SmallError::Absent { .. })));
        assert!(matches!(read("f/x", 4), Err(SmallError::Absent { .. })));
        assert!(matches!(read("../f", 4), Err(SmallError::Name { .. })));
        assert!(matches!(read("/etc/passwd", 4), Err(SmallError::Name { .. })));
    }

    #[test]
    fn links_devices_and_pipes_are_named_and_hold_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/f"), "x").unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("d", at("linked")).unwrap();
        symlink("d/f", at("inner")).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), mode).unwrap();
        let said = |dir: &Path, name: &str| {
            let error = read_small(dir, Path::new(name), 10).unwrap_err();
            error.to_string()
        };
        for (name, words) in [
            ("zero", "zero is a symbolic link, not a regular file"),
            ("inner", "inner is a symbolic link, not a regular file"),
            ("linked/f", "linked/f is reached through a symbolic link"),
            ("pipe", "pipe is a named pipe, not a regular file"),
            ("d", "d is a directory, not a regular file"),
        ] {
            let said = said(dir.path(), name);
            assert!(said.contains(words), "{name}: {said}");
        }
        let said = said(Path::new("/dev"), "zero");
        assert!(said.contains("is a device"), "{said}");
    }

    #[test]
    fn an_endless_file_of_the_kernel_is_bounded() {
        // Its length is 0 according to stat(2), so the limit must count the bytes that are read.
        let error = read_small(Path::new("/proc/self"), Path::new("maps"), 16).unwrap_err();
        assert!(matches!(error, SmallError::Large { limit: 16, .. }), "{error}");
    }
}
