//! Taking away what setup made, and nothing else.
//!
//! A file that somebody changed since is theirs and stays; so does a directory with something in it. What leases leave on a host
//! that was set up (empty directories and lock files) goes too when no lease is left.

use std::path::{Path, PathBuf};

use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_image::store::{Store, StoreError};
use crabbox_store::leases;
use crabbox_store::places::Places;
use crabbox_store::registry;
use crabbox_store::templates::Templates;

use super::SetupError;
use super::record::{Made, Record};
use crate::host::images;
use crate::host::prepare::DEFAULT_IMAGE;
use crate::host::warm::{self, WarmError};

/// One thing of the record, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// An image goes.
    Image {
        /// Its digest.
        digest: String,
    },
    /// A template goes.
    Template {
        /// Its key.
        key: String,
    },
    /// A file goes.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// What the plugins keep about a network of ours goes, unless an address is still given out.
    Addresses {
        /// The network's directory.
        dir: PathBuf,
    },
    /// A directory goes.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// A file stays: somebody changed it.
    Changed {
        /// Its path.
        path: PathBuf,
    },
}

/// Takes away what setup made, in the reverse order; with `dry_run` only tells. `told` hears each thing before it goes.
pub fn remove(places: &Places, dry_run: bool, told: &mut dyn FnMut(&Removal)) -> Result<(), SetupError> {
    let listing = leases::list(&places.leases())?;
    let mut left: Vec<String> = listing
        .leases
        .iter()
        .map(|lease| lease.record.lease_id.clone())
        .collect();
    left.extend(
        listing
            .unreadable
            .iter()
            .map(|lease| lease.path.display().to_string()),
    );
    if !left.is_empty() {
        return Err(SetupError::InUse { leases: left });
    }
    let record = Record::read(places)?;
    if record.made().is_empty() {
        return Ok(());
    }
    let mut removals = Vec::new();
    for made in record.made().iter().rev() {
        for removal in decide(places, made)? {
            // A template of an image that goes may be one of ours as well.
            if removals.contains(&removal) {
                continue;
            }
            told(&removal);
            if !dry_run {
                carry_out(places, &removal)?;
            }
            removals.push(removal);
        }
    }
    if dry_run {
        return Ok(());
    }
    // Before the directory that it lies in.
    Templates::of(places).dissolve().map_err(WarmError::from)?;
    skeleton(places)?;
    // What leases of other state directories have there stays.
    registry::dissolve(places)?;
    let directories: Vec<PathBuf> = record
        .made()
        .iter()
        .rev()
        .filter_map(|made| match made {
            Made::Directory { path } => Some(path.clone()),
            _ => None,
        })
        .collect();
    // From here on nothing depends on it; it lies in a directory that is to go.
    record.forget()?;
    for path in directories {
        remove_empty(&path)?;
    }
    Ok(())
}

/// What is to become of it, and of what is of no use without it; nothing when it is gone already.
fn decide(places: &Places, made: &Made) -> Result<Vec<Removal>, SetupError> {
    let removal = match made {
        Made::Template { key } => {
            let is_there = Templates::of(places).keys().contains(key);
            is_there.then(|| Removal::Template { key: key.clone() })
        }
        Made::Directory { path } => path.is_dir().then(|| Removal::Directory { path: path.clone() }),
        Made::File { path, sha256 } => {
            if std::fs::symlink_metadata(path).is_err() {
                None
            } else if digest::sha256_file(path)? == *sha256 {
                Some(Removal::File { path: path.clone() })
            } else {
                Some(Removal::Changed { path: path.clone() })
            }
        }
        Made::Addresses { dir } => dir.is_dir().then(|| Removal::Addresses { dir: dir.clone() }),
        Made::Image { digest } if places.images().is_dir() => {
            let reference = digest.as_deref().unwrap_or(DEFAULT_IMAGE);
            match Store::open(&places.images())?.get(reference) {
                Ok(image) => {
                    let digest = image.manifest.digest;
                    let swept = warm::sweep(places, &[&digest], true)?.unwrap_or_default();
                    let templates = swept
                        .into_iter()
                        .map(|swept| Removal::Template { key: swept.key });
                    return Ok(templates.chain([Removal::Image { digest }]).collect());
                }
                Err(StoreError::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            }
        }
        Made::Image { .. } => None,
    };
    Ok(removal.into_iter().collect())
}

fn carry_out(places: &Places, removal: &Removal) -> Result<(), SetupError> {
    match removal {
        Removal::Image { digest } => drop(Store::open(&places.images())?.remove(digest)?),
        Removal::Template { key } => Templates::of(places).remove(key).map_err(WarmError::from)?,
        Removal::File { path } => files::remove_tree(path)?,
        Removal::Addresses { dir } => remove_bookkeeping(dir)?,
        // When everything else is gone.
        Removal::Directory { .. } | Removal::Changed { .. } => {}
    }
    Ok(())
}

/// What a store without images and a host without leases still have: directories with nothing in them but locks, and what is
/// remembered of working trees.
fn skeleton(places: &Places) -> Result<(), FileError> {
    let images = places.images();
    files::remove_tree(&images::downloads(places))?;
    // Only what every look at a tree finds out anew.
    files::remove_tree(&places.trees())?;
    for dir in [images.join("images"), images.join("names")] {
        remove_empty(&dir)?;
    }
    if !images.join("images").exists() {
        files::remove_tree(&images.join("lock"))?;
    }
    remove_empty(&places.leases())?;
    if !places.leases().exists() {
        files::remove_tree(&places.allocation_lock())?;
        for locks in [
            places.state.join("firecracker/locks"),
            places.state.join("claim-locks"),
        ] {
            remove_locks(&locks)?;
        }
    }
    for dir in [
        images,
        places.firecracker(),
        places.state.join("firecracker"),
        places.claims(),
        places.config.join("testboxes"),
    ] {
        remove_empty(&dir)?;
    }
    Ok(())
}

/// Removes the lock and the note of the last address that `host-local` keeps; a file for an address keeps them.
fn remove_bookkeeping(dir: &Path) -> Result<(), FileError> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    let paths: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "lock" || name.starts_with("last_reserved_ip.")
    };
    if !paths.iter().all(is_ours) {
        return Ok(());
    }
    paths.iter().try_for_each(|path| files::remove_tree(path))?;
    remove_empty(dir)
}

/// Removes a directory of lock files, which nobody can hold when there is no lease.
fn remove_locks(dir: &Path) -> Result<(), FileError> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "lock") {
            files::remove_tree(&path)?;
        }
    }
    remove_empty(dir)
}

/// Removes a directory unless something is in it or it is not there.
fn remove_empty(dir: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::DirectoryNotEmpty
                    | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Err(FileError::io("remove directory", dir, error))
        }
        _ => Ok(()),
    }
}
