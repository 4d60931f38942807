//! Removes what setup made, and nothing else.
//!
//! A file that was changed since belongs to the user and stays; so does a directory that is not empty.
//! Leftovers of leases (empty directories and lock files) are removed, too, once no lease is left.

use std::path::{Path, PathBuf};

use crabbox_core::labels;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::FileLock;
use crabbox_image::store::{Store, StoreError};
use crabbox_machine::context::Engine;
use crabbox_store::leases::{self, StoredLease};
use crabbox_store::places::Places;
use crabbox_store::registry;
use crabbox_store::templates::Templates;

use super::record::{Made, Record};
use super::serve::{self, Ground, ServeSetupError};
use super::{SetupError, lock};
use crate::host::images;
use crate::host::prepare::DEFAULT_IMAGE;
use crate::host::warm::{self, WarmError};

/// The fate of one recorded thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Remove an image.
    Image {
        /// Its digest.
        digest: String,
    },
    /// Remove a template.
    Template {
        /// Its key.
        key: String,
    },
    /// Remove a file.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// Remove the plugins' address files of our network, unless an address is still allocated.
    Addresses {
        /// The network's directory.
        dir: PathBuf,
    },
    /// Remove a directory.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// Keep a file, because it was changed.
    Changed {
        /// Its path.
        path: PathBuf,
    },
    /// Remove the account of remote owners, and end its open sessions.
    Account,
    /// Remove an `authorized_keys` file if it is empty.
    KeyFile {
        /// Its path.
        path: PathBuf,
    },
    /// Remove a line of an `authorized_keys` file.
    Key {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
    },
    /// Keep an `authorized_keys` file: it cannot be read, or others than root can change it.
    KeysLeft {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Keep a line of an `authorized_keys` file, because it was changed.
    ChangedKey {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
    },
}

/// Which part of a set-up to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Everything,
    /// The part that serves remote owners.
    Serving,
}

/// The leases that still need `part`.
fn in_use(places: &Places, part: Part) -> Result<Vec<String>, SetupError> {
    let listing = leases::list(&places.leases())?;
    let needs =
        |lease: &&StoredLease| part == Part::Everything || labels::owner(&lease.record.labels).is_some();
    let known = listing.leases.iter().filter(needs);
    // An unreadable lease may belong to any owner.
    let unreadable = listing
        .unreadable
        .iter()
        .map(|lease| lease.path.display().to_string());
    Ok(known
        .map(|lease| lease.record.lease_id.clone())
        .chain(unreadable)
        .collect())
}

fn refuse_in_use(places: &Places, part: Part) -> Result<(), SetupError> {
    let leases = in_use(places, part)?;
    if leases.is_empty() {
        return Ok(());
    }
    Err(SetupError::InUse { leases })
}

/// Removes what setup made, or a part of it; only reports with `dry_run`. `on_removal` is called for each
/// thing before it is removed.
///
/// Remote owners are locked out first, and their sessions end. What leases need is only removed if no new
/// lease has appeared by then.
pub fn remove(
    engine: &Engine,
    ground: &Ground,
    (part, dry_run): (Part, bool),
    on_removal: &mut dyn FnMut(&Removal),
) -> Result<(), SetupError> {
    let places = &engine.places;
    // Check before touching anything.
    refuse_in_use(places, part)?;
    let is_needed = |record: &Record| {
        let is_part = |made: &Made| part == Part::Everything || serve::is_of_serving(record, made);
        record.made().iter().any(is_part)
    };
    if !is_needed(&Record::read(places)?) {
        return Ok(());
    }
    // The lock keeps others from writing the record, and the things that this removes.
    let lock = (!dry_run).then(|| lock::now(places)).transpose()?;
    let record = Record::read(places)?;
    let goes = |made: &&Made| part == Part::Everything || serve::is_of_serving(&record, made);
    let (ways_in, rest): (Vec<&Made>, Vec<&Made>) = record
        .made()
        .iter()
        .rev()
        .filter(goes)
        .partition(|made| serve::lets_in(made));
    let mut removal = Removing {
        engine,
        ground,
        dry_run,
        on_removal,
        removals: Vec::new(),
    };
    // Remove the sudoers rule first: every owner's access depends on it, so all are locked out even if a
    // later step fails.
    let (rules, keys): (Vec<&Made>, Vec<&Made>) = ways_in
        .into_iter()
        .partition(|made| matches!(made, Made::Sudoers { .. }));
    rules
        .into_iter()
        .chain(keys)
        .try_for_each(|made| removal.go(made))?;
    if !dry_run {
        serve::end_sessions(engine, ground, &record)?;
        refuse_in_use(places, part)?;
    }
    rest.into_iter().try_for_each(|made| removal.go(made))?;
    if let Some(lock) = lock {
        match part {
            Part::Everything => forget(places, record, lock)?,
            Part::Serving => forget_serving(record, lock)?,
        }
    }
    Ok(())
}

/// A removal in progress.
struct Removing<'a> {
    engine: &'a Engine,
    ground: &'a Ground,
    dry_run: bool,
    on_removal: &'a mut dyn FnMut(&Removal),
    removals: Vec<Removal>,
}

impl Removing<'_> {
    fn go(&mut self, made: &Made) -> Result<(), SetupError> {
        let places = &self.engine.places;
        let decided = match made {
            Made::Account { .. } | Made::KeyFile { .. } | Made::Key { .. } | Made::Sudoers { .. } => {
                serve::decide(self.ground, made)?
            }
            _ => decide(places, made)?,
        };
        for removal in decided {
            // A template may be on record by itself and also go with its image, and an owner may have several
            // keys; report it once.
            let is_told = self.removals.contains(&removal);
            if !is_told {
                (self.on_removal)(&removal);
            }
            let is_done = self.dry_run || is_told && matches!(removal, Removal::Template { .. });
            if !is_done {
                carry_out(places, &removal)?;
                serve::carry_out(self.engine, self.ground, (made, &removal))?;
            }
            self.removals.push(removal);
        }
        Ok(())
    }
}

/// Removes what is left once everything recorded is gone, and then the record.
fn forget(places: &Places, record: Record, lock: FileLock) -> Result<(), SetupError> {
    // Must come before removing the directory that contains it.
    Templates::of(places).dissolve().map_err(WarmError::from)?;
    skeleton(places)?;
    // Keeps the entries of leases in other state directories.
    registry::dissolve(places)?;
    let directories = directories(&record, &|_| true);
    // Nothing depends on the record from here on, and it is in a directory that will be removed.
    record.forget()?;
    lock.remove_while_held().map_err(ServeSetupError::from)?;
    directories.iter().try_for_each(|path| remove_empty(path))?;
    Ok(())
}

/// Removes the entries about serving remote owners; the rest of the set-up stays.
fn forget_serving(mut record: Record, lock: FileLock) -> Result<(), SetupError> {
    let known = record.clone();
    let directories = directories(&record, &|made| serve::is_of_serving(&known, made));
    directories.iter().try_for_each(|path| remove_empty(path))?;
    // A directory that is in use stays, and so does its entry, since setup made it.
    let is_gone = |made: &Made| match made {
        Made::Directory { path } => !path.exists(),
        _ => true,
    };
    record.forget_where(&|made| serve::is_of_serving(&known, made) && is_gone(made))?;
    if record.made().is_empty() {
        record.forget()?;
    }
    lock.remove_while_held().map_err(ServeSetupError::from)?;
    Ok(())
}

/// The recorded directories that satisfy `goes`, newest first.
fn directories(record: &Record, goes: &dyn Fn(&Made) -> bool) -> Vec<PathBuf> {
    let recorded = record.made().iter().rev().filter(|made| goes(made));
    recorded
        .filter_map(|made| match made {
            Made::Directory { path } => Some(path.clone()),
            _ => None,
        })
        .collect()
}

/// What to do with a recorded thing, and with everything that is useless without it. Empty if it no longer
/// exists.
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
        // `serve::decide` handles the others.
        Made::Image { .. }
        | Made::Account { .. }
        | Made::KeyFile { .. }
        | Made::Key { .. }
        | Made::Sudoers { .. } => None,
    };
    Ok(removal.into_iter().collect())
}

fn carry_out(places: &Places, removal: &Removal) -> Result<(), SetupError> {
    match removal {
        Removal::Image { digest } => drop(Store::open(&places.images())?.remove(digest)?),
        Removal::Template { key } => Templates::of(places).remove(key).map_err(WarmError::from)?,
        Removal::File { path } => files::remove_tree(path)?,
        Removal::Addresses { dir } => remove_bookkeeping(dir)?,
        // Directories are removed when everything else is gone; `serve::carry_out` handles the rest.
        Removal::Directory { .. }
        | Removal::Changed { .. }
        | Removal::Account
        | Removal::KeyFile { .. }
        | Removal::Key { .. }
        | Removal::KeysLeft { .. }
        | Removal::ChangedKey { .. } => {}
    }
    Ok(())
}

/// Removes what remains of a store without images and a host without leases: directories that only contain
/// locks, and cached facts about working trees.
fn skeleton(places: &Places) -> Result<(), FileError> {
    let images = places.images();
    files::remove_tree(&images::downloads(places))?;
    // A cache that the next sync rebuilds.
    files::remove_tree(&places.trees())?;
    for dir in [images.join("images"), images.join("names")] {
        remove_empty(&dir)?;
    }
    if !images.join("images").exists() {
        files::remove_tree(&images.join("lock"))?;
    }
    remove_empty(&places.leases())?;
    // Stays if there are volumes, which hold users' data.
    remove_empty(&places.volumes())?;
    if !places.volumes().exists() {
        files::remove_tree(&places.volumes_lock())?;
    }
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

/// Removes the lock and the last-address files of `host-local`, unless an address is still allocated.
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

/// Removes a directory of lock files. Without leases, nobody can hold them.
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

/// Removes a directory if it exists and is empty.
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
