//! Proof that this process may destroy a lease directory.
//!
//! An [`OwnedLease`] exists only while the lease's lock is held, and only for a directory whose name is a
//! lease id and that is not a link and belongs to this user. Every destructive step takes one; there must be
//! no other way to call it.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crabbox_core::id::LeaseId;
use crabbox_host::lock::FileLock;
use crabbox_store::places::{LeaseDir, Places};

/// A lease that this process may change and destroy.
#[derive(Debug)]
pub struct OwnedLease {
    id: LeaseId,
    dir: LeaseDir,
    lock: FileLock,
}

/// Why a directory may not be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// Its name is not a lease id.
    #[error("{} is not a lease directory; it was not changed", path.display())]
    NotALease {
        /// The path.
        path: PathBuf,
    },
    /// It is a symbolic link or a file.
    #[error("{} is not a directory; it was not changed", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error("{} belongs to uid {owner}; it was not changed", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The uid it belongs to.
        owner: u32,
    },
    /// It cannot be inspected.
    #[error("cannot inspect {}", path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl OwnedLease {
    /// Takes a lease whose `lock` is held. The directory may be missing: claim and keys can still exist.
    pub fn prove(places: &Places, id: &LeaseId, lock: FileLock) -> Result<Self, OwnershipError> {
        let path = places.lease(id);
        match std::fs::symlink_metadata(&path) {
            Ok(facts) if !facts.is_dir() => return Err(OwnershipError::NotADirectory { path }),
            Ok(facts) if facts.uid() != rustix::process::geteuid().as_raw() => {
                return Err(OwnershipError::Foreign {
                    path,
                    owner: facts.uid(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(OwnershipError::Look { path, source }),
        }
        Ok(Self {
            id: id.clone(),
            dir: LeaseDir::at(path),
            lock,
        })
    }

    /// The lease.
    pub fn id(&self) -> &LeaseId {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &LeaseDir {
        &self.dir
    }

    /// Releases the lock; the lease continues.
    pub fn release(self) {
        drop(self.lock);
    }

    /// The lock, for a process that takes the lease again.
    pub(crate) fn into_lock(self) -> FileLock {
        self.lock
    }

    /// Removes the lock with the lease that it guarded.
    pub fn forget(self) -> Result<(), crabbox_host::lock::LockError> {
        self.lock.remove_while_held()
    }
}
