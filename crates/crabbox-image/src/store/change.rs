//! Changes of the store: one process at a time, each change a single rename.
//!
//! Leftovers of a killed process are in a scratch directory, which must never be taken for an image and is
//! removed by the next change.

use std::fs::{File, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::files::{self, FileError};

use super::{Image, Store, StoreError, entries, read_image, verify_files};
use crate::manifest::{self, Manifest};

/// Name prefix of scratch directories.
const SCRATCH: &str = "scratch-";

/// How long to wait for the lock of another change. After a kill, a child that was just being started holds a
/// copy of the lock until its exec.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// The exclusive right to change the store, with a scratch directory for the preparation. Both end when it is
/// dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    lock: File,
}

impl Scratch {
    /// The empty, private scratch directory; on the store's file system, so that its files can be renamed
    /// into place.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it cannot be removed now, the next change removes it or reports the error.
        files::remove_tree(&self.dir).ok();
        // Unlock explicitly, because a process that another thread is just starting has a copy of the
        // descriptor.
        self.lock.unlock().ok();
    }
}

impl Store {
    /// Takes the store's lock, removes leftovers of killed processes, and makes a scratch directory.
    pub fn begin(&self) -> Result<Scratch, StoreError> {
        let path = self.root().join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| FileError::io("open", &path, source))?;
        let locked = clock::poll_until(LOCK_WAIT, || match lock.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            other => Some(other),
        });
        match locked {
            Some(Ok(())) => {}
            Some(Err(TryLockError::Error(source))) => return Err(FileError::io("lock", &path, source).into()),
            Some(Err(TryLockError::WouldBlock)) | None => {
                return Err(StoreError::Busy {
                    root: self.root().to_owned(),
                });
            }
        }
        for name in entries(self.root())?
            .iter()
            .filter(|name| name.starts_with(SCRATCH))
        {
            files::remove_tree(&self.root().join(name))?;
        }
        let dir = self.root().join(format!("{SCRATCH}{}", std::process::id()));
        files::create_private_dir(&dir)?;
        Ok(Scratch { dir, lock })
    }

    /// Removes leftovers of killed processes. While a change is in progress there is nothing to do, because
    /// it has removed them.
    pub fn sweep(&self) -> Result<(), StoreError> {
        match self.begin() {
            Ok(_) | Err(StoreError::Busy { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves the image files in `staged` (inside `scratch`) and their record into the store, and makes `name`
    /// point to them.
    ///
    /// The files become read-only. If the same image exists already and is intact, it is kept and `staged` is
    /// not used; if it is damaged, it is replaced. A name that pointed to another image is changed.
    pub fn put(
        &self,
        scratch: &Scratch,
        staged: &Path,
        record: &Manifest,
        name: &str,
    ) -> Result<Image, StoreError> {
        verify_files(staged, record)?;
        self.place(scratch, staged, record, name)
    }

    /// Like [`Store::put`], for files whose digests were checked while they were written.
    pub(crate) fn place(
        &self,
        scratch: &Scratch,
        staged: &Path,
        record: &Manifest,
        name: &str,
    ) -> Result<Image, StoreError> {
        check_name(name)?;
        let target = self.images().join(&record.digest);
        let kept = read_image(&target, &record.digest, &[])
            .and_then(|image| self.verify(&image))
            .is_ok();
        if !kept {
            let text = serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record {
                path: target.join(manifest::FILE),
                source,
            })?;
            files::write_atomic(&staged.join(manifest::FILE), &text, 0o644)?;
            for file in record.files.keys() {
                settle(&staged.join(file))?;
            }
            files::sync_dir(staged)?;
            set_aside(scratch, &target)?;
            std::fs::rename(staged, &target)
                .map_err(|source| FileError::io("move the image to", &target, source))?;
            files::sync_dir(&self.images())?;
        }
        files::write_atomic(
            &self.names().join(name),
            format!("{}\n", record.digest).as_bytes(),
            0o644,
        )?;
        self.get(name)
    }

    /// Removes the image that `reference` identifies, and every name that points to it.
    ///
    /// Leases that use it are not affected: they have their own links to its files.
    pub fn remove(&self, reference: &str) -> Result<Image, StoreError> {
        let scratch = self.begin()?;
        let image = self.get(reference)?;
        for name in &image.names {
            files::remove_tree(&self.names().join(name))?;
        }
        set_aside(&scratch, &image.dir)?;
        files::sync_dir(&self.images())?;
        Ok(image)
    }
}

/// Moves the image in `dir`, if there is one, into `scratch`, which is removed later.
fn set_aside(scratch: &Scratch, dir: &Path) -> Result<(), FileError> {
    let aside = scratch.dir.join("removed");
    match std::fs::rename(dir, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::io("move away", dir, error))
        }
        _ => Ok(()),
    }
}

/// Makes a finished file read-only for everybody and durable.
fn settle(path: &Path) -> Result<(), FileError> {
    let file = File::open(path).map_err(|source| FileError::io("open", path, source))?;
    // Readable for everybody, because a jailed VMM runs as another user. The directory above restricts
    // access.
    file.set_permissions(std::fs::Permissions::from_mode(0o444))
        .and_then(|()| file.sync_all())
        .map_err(|source| FileError::io("make durable", path, source))
}

/// A name must be a plain file name, and must not consist only of digits, or it could be mistaken for a
/// digest prefix.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let good = (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(allowed);
    if good {
        Ok(())
    } else {
        Err(StoreError::BadName {
            name: name.to_owned(),
        })
    }
}
