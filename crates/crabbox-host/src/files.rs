//! Files and directories: atomic replacement, private permissions, safe removal.
//!
//! Records are written so that a crash leaves the old or the new text, and removal of a tree never leaves the
//! tree. It must never follow a symbolic link or cross a mount while removing, or leave a file more readable
//! than requested.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

mod place;
mod remove;

pub use place::{Placement, place_read_only, withdraw};
pub(crate) use remove::remove_entry;
pub use remove::remove_tree;

/// Why a file system operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// The attempted operation, as a verb phrase that the path completes.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file system is mounted there, so the removal would reach into it.
    #[error("will not remove {}: something is mounted there", path.display())]
    MountPoint {
        /// Where.
        path: PathBuf,
    },
    /// A directory that must be private belongs to another user.
    #[error("will not use {} as a private directory: it belongs to user {owner}, not to us", path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// The numeric id of its owner.
        owner: u32,
    },
    /// The path must be a directory and is something else (a file, a symbolic link).
    #[error("will not use {} as a private directory: it is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The path does not name an entry of a directory (it is `/`, ends in `..`, or is empty).
    #[error("{:?} names no file", path)]
    NoName {
        /// The path as given.
        path: PathBuf,
    },
}

impl FileError {
    /// An I/O failure of `attempt` (a verb phrase that the path completes) on `path`.
    pub fn io(attempt: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            attempt,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the file system had no room (`ENOSPC`) or the user's quota was used up (`EDQUOT`).
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if out_of_space(source))
    }
}

/// Whether `error` means that there is no room left on the file system or in the quota.
pub fn out_of_space(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// The directory that contains `path`; `.` if it has no directory part.
fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Replaces `path` by a file with exactly `bytes` and permission bits `mode` (independent of the umask).
///
/// The file and then its directory are synced: after it returns, not even a power cut brings the old text
/// back. A reader sees the old file or the new one, never a part; a symbolic link at `path` is replaced, not
/// followed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = parent_of(path);
    let fail = |source| FileError::io("write", path, source);
    let mut file = tempfile::Builder::new()
        .prefix(crate::beneath::TEMPORARY)
        .tempfile_in(dir)
        .map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    sync_dir(dir)
}

/// Makes names created, renamed or removed in `dir` survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    let open = std::fs::File::open(dir).map_err(|source| FileError::io("open directory", dir, source))?;
    open.sync_all()
        .map_err(|source| FileError::io("sync directory", dir, source))
}

/// Makes sure `path` is a directory that only its owner can enter (0700), creating it and its parents when
/// missing.
///
/// The permissions of an existing directory are restricted. A symbolic link, or another user's directory, is
/// refused, because its owner could change our records. Root accepts a user's directory, since `sudo` keeps
/// the user's home.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::io("create directory", path, source))?;
    let found =
        std::fs::symlink_metadata(path).map_err(|source| FileError::io("inspect directory", path, source))?;
    if !found.is_dir() {
        return Err(FileError::NotADirectory {
            path: path.to_owned(),
        });
    }
    let us = rustix::process::geteuid();
    if found.uid() != us.as_raw() && !us.is_root() {
        return Err(FileError::ForeignOwner {
            path: path.to_owned(),
            owner: found.uid(),
        });
    }
    if found.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|source| FileError::io("make private directory", path, source))?;
    }
    Ok(())
}

/// The content of the regular file at `path`, at most `limit` bytes. Links are followed: the path is the
/// caller's own. A pipe or a device is an error at once, without waiting, and so is a longer file
/// ([`std::io::ErrorKind::FileTooLarge`]).
pub fn read_regular(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = open_regular(path)?;
    std::io::Read::take(file, limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let why = format!("it is longer than {limit} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why));
    }
    Ok(content)
}

/// Whether an entry with the name `path` exists, including a dangling link. An error means that this is
/// unknown.
pub fn is_named(path: &Path) -> std::io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a file, socket or link; whether there was one.
pub fn remove_if_there(path: &Path) -> std::io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The whole content of `path`; `None` only if nothing has that name. A dangling link is an error: its target
/// may be on a disk that is not mounted now.
pub fn read_named(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Err(_) if !is_named(path)? => Ok(None),
        Err(error) => Err(std::io::Error::new(
            error.kind(),
            "it is a link, and what it leads to is not there",
        )),
    }
}

/// Opens the regular file at `path` for reading; anything else is an error at once.
pub fn open_regular(path: &Path) -> std::io::Result<std::fs::File> {
    // NONBLOCK: opening a pipe must not block until it has a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::other("it is not a regular file"))
}

/// Makes the directory `path` and its missing parents, each with permission bits `mode` less the umask.
pub fn make_dirs(path: &Path, mode: u32) -> Result<(), FileError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| FileError::io("create directory", path, source))
}

/// Free bytes for an unprivileged process on the file system of `path`, which must exist.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let facts =
        rustix::fs::statvfs(path).map_err(|source| FileError::io("measure free space at", path, source))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_write_replaces_text_mode_and_a_link_without_following_it() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomic(&link, b"new", 0o640).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(
            (std::fs::read_to_string(&link).unwrap().as_str(), mode(&link)),
            ("new", 0o640)
        );
        write_atomic(&link, b"newer", 0o600).unwrap();
        assert_eq!(
            (std::fs::read_to_string(&link).unwrap().as_str(), mode(&link)),
            ("newer", 0o600)
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            2,
            "no temporary file may stay"
        );
    }

    #[test]
    fn a_failed_write_leaves_the_old_text_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        let error = write_atomic(&taken, b"x", 0o600).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file may stay"
        );
    }

    #[test]
    fn a_private_dir_is_made_with_parents_and_an_open_one_is_tightened() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        create_private_dir(&deep).unwrap();
        assert_eq!((mode(&deep), mode(&dir.path().join("a"))), (0o700, 0o700));
        std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o755)).unwrap();
        create_private_dir(&deep).unwrap();
        assert_eq!(mode(&deep), 0o700);
    }

    #[test]
    fn a_private_dir_is_never_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        let error = create_private_dir(&link).unwrap_err();
        assert!(matches!(error, FileError::NotADirectory { .. }), "{error:?}");
    }

    #[test]
    fn only_a_regular_file_is_read_and_only_a_short_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, pipe) = (dir.path().join("file"), dir.path().join("pipe"));
        std::fs::write(&file, "12345").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(read_regular(&file, 5).unwrap(), b"12345");
        let error = read_regular(&file, 4).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
        for other in [pipe.as_path(), Path::new("/dev/zero"), dir.path()] {
            assert!(read_regular(other, 5).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn free_space_is_measured_and_a_missing_path_is_named() {
        assert!(
            free_bytes(Path::new("/proc")).unwrap() == 0 && free_bytes(Path::new("/dev/shm")).unwrap() > 0
        );
        assert!(
            free_bytes(Path::new("/no/such/place"))
                .unwrap_err()
                .to_string()
                .contains("/no/such/place")
        );
    }
}
