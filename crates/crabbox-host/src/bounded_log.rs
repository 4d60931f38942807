//! A log file with a size limit: it is rotated, so that at most two files of that size are kept.
//!
//! Other users may be able to put a link or a pipe at its path. It must never write through either, and never
//! make its writer wait.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Size at which a file is rotated, in bytes.
pub const FILE_LIMIT: u64 = 512 * 1024;

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be opened.
    #[error("cannot open log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The path is not a regular file.
    #[error("will not write log {}: it is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
}

/// An append-only log (mode 0600) that is rotated at [`FILE_LIMIT`].
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    size: u64,
}

impl BoundedLog {
    /// Opens the log at `path`, and creates it if it is missing. Its directory must exist.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let fail = |source: std::io::Error| LogError::Open {
            path: path.to_owned(),
            source,
        };
        // NONBLOCK: opening a pipe in the log's place must not block until it has a reader.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
                return Err(LogError::NotAFile {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(fail(errno.into())),
        };
        let facts = file.metadata().map_err(fail)?;
        if !facts.is_file() {
            return Err(LogError::NotAFile {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size: facts.len(),
        })
    }

    /// Appends `bytes`. They are lost if the disk is full or the directory is gone: a writer never fails
    /// because of its log.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > FILE_LIMIT {
            let fresh = std::fs::rename(&self.path, older(&self.path))
                .is_ok()
                .then(|| Self::open(&self.path));
            match fresh {
                Some(Ok(fresh)) => *self = fresh,
                _ => return,
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }
}

/// Path of the older half of a rotated log.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_files_are_private_and_bounded_and_the_newest_bytes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = BoundedLog::open(&path).unwrap();
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..40 {
            log.write(&block);
        }
        log.write(b"\nlast\n");
        for path in [&path, &older(&path)] {
            let facts = std::fs::metadata(path).unwrap();
            assert!(facts.len() <= FILE_LIMIT, "{}", facts.len());
            assert_eq!(facts.permissions().mode() & 0o777, 0o600);
        }
        assert!(std::fs::read(&path).unwrap().ends_with(b"\nlast\n"));
        // A log that is opened again continues where it was.
        BoundedLog::open(&path).unwrap().write(b"more\n");
        assert!(std::fs::read(&path).unwrap().ends_with(b"\nlast\nmore\n"));
    }

    #[test]
    fn nothing_is_written_through_a_link_or_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("link.log"));
        std::fs::write(&victim, "whole\n").unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        let pipe = dir.path().join("pipe.log");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [&link, &pipe] {
            let error = BoundedLog::open(path).unwrap_err();
            assert!(matches!(error, LogError::NotAFile { .. }), "{error:?}");
        }
        // With a reader the pipe can be opened, but it is still refused because it is not a file.
        let _reader = rustix::fs::open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert!(matches!(BoundedLog::open(&pipe), Err(LogError::NotAFile { .. })));
        assert_eq!(std::fs::read(&victim).unwrap(), b"whole\n");
    }

    #[test]
    fn a_log_whose_directory_is_gone_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let lease = dir.path().join("lease");
        std::fs::create_dir(&lease).unwrap();
        let mut log = BoundedLog::open(&lease.join("a.log")).unwrap();
        std::fs::remove_dir_all(&lease).unwrap();
        for _ in 0..20 {
            log.write(&vec![b'x'; 64 * 1024]);
        }
        assert!(!lease.exists());
    }
}
