//! Files that only their owner may read, for example a private key.
//!
//! Such a file has private permissions from its creation. It must never be read through a link, or if others
//! could have read or written it: then it cannot be trusted.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::{BeneathError, Existing};
use crate::files::{self, FileError};
use crate::place::{Access, Place, PlaceError};

/// Maximum size that is read, in bytes.
const LIMIT: u64 = 64 * 1024;

/// Why a private file was not read or created.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// It is a link.
    #[error("{} is a symbolic link, which is refused for private files; give the file itself", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// It is a directory, a pipe or something else.
    #[error("{} is not a regular file", path.display())]
    NoFile {
        /// Its path.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error("{} is accessible to other users (mode {mode:04o}); run `chmod 600` on it, or replace it if they may have read it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("{} belongs to user {owner}, not to this one", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] PlaceError),
    /// Its directory cannot be made, or made private.
    #[error(transparent)]
    Directory(#[from] FileError),
}

impl PrivateFileError {
    /// Whether there is no such file.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The content of the private file at `path`.
pub fn read(path: &Path) -> Result<Vec<u8>, PrivateFileError> {
    let path_of = || path.to_owned();
    let failed = |source| PrivateFileError::Read {
        path: path_of(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(PrivateFileError::Link { path: path_of() }),
        Err(errno) => return Err(failed(errno.into())),
    };
    // Check the open file, not the name.
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(PrivateFileError::NoFile { path: path_of() });
    }
    let us = rustix::process::geteuid();
    if found.uid() != us.as_raw() && !us.is_root() {
        return Err(PrivateFileError::Foreign {
            path: path_of(),
            owner: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Open {
            path: path_of(),
            mode,
        });
    }
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Makes the private file `path` in a private directory, unless there is one of that name. Returns whether it
/// was made.
///
/// It is complete when it gets its name, so that of several concurrent callers one creates it and the others
/// read the complete file.
pub fn make(path: &Path, content: &[u8]) -> Result<bool, PrivateFileError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(PrivateFileError::NoFile {
            path: path.to_owned(),
        });
    };
    files::create_private_dir(dir)?;
    let mut placing = Place::below(dir, Path::new(name), Access::Private)?.begin()?;
    let failed = |source| FileError::io("write", path, source);
    placing.write_all(content).map_err(failed)?;
    placing.file().sync_all().map_err(failed)?;
    match placing.commit(Existing::Refuse) {
        Ok(_) => {
            files::sync_dir(dir)?;
            Ok(true)
        }
        Err(BeneathError::Exists { .. }) => Ok(false),
        Err(error) => Err(PlaceError::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn it_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/key");
        assert!(read(&path).unwrap_err().is_absent());
        assert!(make(&path, b"first").unwrap());
        assert!(!make(&path, b"second").unwrap());
        assert_eq!(read(&path).unwrap(), b"first");
        let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_could_have_seen_or_put_there_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("key"), dir.path().join("link"));
        make(&path, b"x").unwrap();
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(PrivateFileError::Link { .. })));
        // Nothing is written through a dangling link.
        let lost = dir.path().join("lost");
        symlink(dir.path().join("nowhere"), &lost).unwrap();
        assert!(!make(&lost, b"x").unwrap());
        assert!(!dir.path().join("nowhere").exists());
        assert!(matches!(read(dir.path()), Err(PrivateFileError::NoFile { .. })));
        for mode in [0o640, 0o604, 0o620, 0o610] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("(mode {mode:04o})")), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(read(&path).unwrap(), b"x");
    }
}
