//! The registry of this host: one entry for each lease of any state directory, with its exclusive uid,
//! addresses and tag.
//!
//! ```text
//!   <registry>/leases/<id>.json   written before the lease's directory, removed after it
//!   <registry>/registry.lock      held while reading all entries and making the one change that follows from them
//!   <registry>/network.lock       for changes of the host's network that leases share
//! ```
//! It must never wait for anything while its lock is held, or trust a directory that another user can change.

use std::path::Path;
use std::time::Duration;

use crabbox_core::holding::{Holding, HoldingError};
use crabbox_core::id::LeaseId;
use crabbox_host::beneath::TEMPORARY;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::private_dir::{PrivateDir, PrivateDirError};
use crabbox_host::small::{self, SmallError};

use crate::places::Places;

/// How long to wait for the registry lock before reporting that its holder is stuck; it is normally held for
/// milliseconds.
const LIMIT: Duration = Duration::from_mins(1);

/// How long to wait for the host network lock before reporting that its holder is stuck.
const HOST_NETWORK_LIMIT: Duration = Duration::from_mins(1);

/// Maximum size of an entry in bytes: its longest part is a path of at most 4096 bytes (`PATH_MAX`), each of
/// which JSON may write as six.
const ENTRY_LIMIT: u64 = 32 * 1024;

/// The directory of the entries in the registry.
const ENTRIES: &str = "leases";

/// Why the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Other users could change its directory.
    #[error("the registry of this host's leases cannot be used")]
    Directory(#[from] PrivateDirError),
    /// A file of it could not be made, read or removed.
    #[error(transparent)]
    Files(#[from] FileError),
    /// Another crabbox holds one of its locks.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// An entry cannot be serialised: the path of the state directory is not UTF-8.
    #[error("cannot write the entry of lease {lease}")]
    Form {
        /// The lease.
        lease: LeaseId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl RegistryError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Directory(_) => vec![
                "find out who made that directory; remove it if it is not in use, or set CRABBOX_REGISTRY_DIR to your own directory".to_owned(),
            ],
            Self::Files(error) if error.is_out_of_space() => vec!["free some space on its file system".to_owned()],
            Self::Form { .. } => vec!["set XDG_STATE_HOME to a path that is UTF-8".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// The registry with its lock held.
#[derive(Debug)]
pub struct Registry {
    entries: PrivateDir,
    lock: FileLock,
}

/// The contents of the registry.
#[derive(Debug, Default)]
pub struct Listing {
    /// The entries, by lease.
    pub holdings: Vec<Holding>,
    /// Leases whose entries cannot be read, with the reasons. Their resources are unknown.
    pub damaged: Vec<(LeaseId, EntryError)>,
}

/// Why an entry cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The file was not made by crabbox.
    #[error(transparent)]
    File(#[from] SmallError),
    /// The text is not a valid entry.
    #[error(transparent)]
    Text(#[from] HoldingError),
}

impl Registry {
    /// Locks the registry, and creates it if it is missing.
    pub fn lock(places: &Places) -> Result<Self, RegistryError> {
        let home = home(places)?;
        Ok(Self {
            lock: FileLock::acquire_within(&home.join("registry.lock"), LIMIT)?,
            entries: home.create_below(ENTRIES)?,
        })
    }

    /// All entries. Temporary files of dead writers are removed.
    pub fn list(&self) -> Result<Listing, RegistryError> {
        let (listing, strange) = read(&self.entries)?;
        for name in strange {
            // Only the holder of the lock writes, so any other temporary file was left by a dead writer.
            if name.starts_with(TEMPORARY) {
                self.remove_file(&name)?;
            }
        }
        Ok(listing)
    }

    /// Writes or replaces the entry of a lease. It is synced to disk when this returns.
    pub fn put(&self, holding: &Holding) -> Result<(), RegistryError> {
        let text = serde_json::to_vec(holding).map_err(|source| RegistryError::Form {
            lease: holding.lease.clone(),
            source,
        })?;
        Ok(files::write_atomic(
            &self.entries.join(file_name(&holding.lease)),
            &text,
            0o600,
        )?)
    }

    /// Removes the entry of `lease`; succeeds if there is none.
    pub fn remove(&self, lease: &LeaseId) -> Result<(), RegistryError> {
        self.remove_file(&file_name(lease))
    }

    fn remove_file(&self, name: &str) -> Result<(), RegistryError> {
        let path = self.entries.join(name);
        Ok(removed(&path, std::fs::remove_file(&path))?)
    }
}

/// All entries as they are now. Takes no lock and creates nothing.
pub fn look(places: &Places) -> Result<Listing, RegistryError> {
    let entries = places.registry.join(ENTRIES);
    if !is_there(&entries) {
        return Ok(Listing::default());
    }
    Ok(read(&PrivateDir::open(&entries)?)?.0)
}

/// Removes the entry of `lease` when the lease is gone. On a host without a registry it only checks that
/// there is none. The existence of an entry is checked only under the lock: its holder may be about to write
/// one, for a lease that it saw a moment ago.
pub fn forget(places: &Places, lease: &LeaseId) -> Result<(), RegistryError> {
    if !is_there(&places.registry.join(ENTRIES)) {
        return Ok(());
    }
    Registry::lock(places)?.remove(lease)
}

/// Takes the lock for network state of the host that leases of all state directories share: forwarding of its
/// uplinks, and the tables of built-in NAT. The caller already holds the lock of the lease whose network it
/// makes or removes.
pub fn host_network(places: &Places) -> Result<FileLock, RegistryError> {
    Ok(FileLock::acquire_within(
        &home(places)?.join("network.lock"),
        HOST_NETWORK_LIMIT,
    )?)
}

/// Removes a registry without entries, so that the host is as before the first lease.
pub fn dissolve(places: &Places) -> Result<(), RegistryError> {
    if !is_there(&places.registry) {
        return Ok(());
    }
    let registry = Registry::lock(places)?;
    let listing = registry.list()?;
    if !(listing.holdings.is_empty() && listing.damaged.is_empty()) {
        return Ok(());
    }
    let network = places.registry.join("network.lock");
    removed(&network, std::fs::remove_file(&network))?;
    removed(&registry.entries, std::fs::remove_dir(&*registry.entries))?;
    registry.lock.remove_while_held()?;
    Ok(removed(&places.registry, std::fs::remove_dir(&places.registry))?)
}

/// The result of removing `path`. A missing path is a success, and a directory with foreign contents is kept.
fn removed(path: &Path, outcome: std::io::Result<()>) -> Result<(), FileError> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    match outcome {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => {
            Err(FileError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// The registry's directory, created if missing and checked to belong to us.
fn home(places: &Places) -> Result<PrivateDir, RegistryError> {
    if let Some(parent) = places.registry.parent() {
        files::make_dirs(parent, 0o755)?;
    }
    Ok(PrivateDir::create(&places.registry)?)
}

fn is_there(path: &Path) -> bool {
    // If existence cannot be checked, assume that it exists: using it then reports the error.
    path.symlink_metadata()
        .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |_| true)
}

fn file_name(lease: &LeaseId) -> String {
    format!("{lease}.json")
}

/// The entries, and the names of files that are not entries.
fn read(entries: &PrivateDir) -> Result<(Listing, Vec<String>), RegistryError> {
    let failed = |source| FileError::io("list", entries, source);
    let (mut listing, mut strange) = (Listing::default(), Vec::new());
    for name in std::fs::read_dir(&**entries).map_err(failed)? {
        let name = name.map_err(failed)?.file_name();
        let text = name.to_string_lossy();
        let Some(lease) = text.strip_suffix(".json").and_then(|id| LeaseId::parse(id).ok()) else {
            strange.push(text.into_owned());
            continue;
        };
        match entry(entries, &lease) {
            Ok(holding) => listing.holdings.push(holding),
            // The lease was torn down just now.
            Err(EntryError::File(SmallError::Absent { .. })) => {}
            Err(error) => listing.damaged.push((lease, error)),
        }
    }
    listing.holdings.sort_by(|one, other| one.lease.cmp(&other.lease));
    listing.damaged.sort_by(|one, other| one.0.cmp(&other.0));
    Ok((listing, strange))
}

fn entry(entries: &PrivateDir, lease: &LeaseId) -> Result<Holding, EntryError> {
    let text = small::read_small(entries, Path::new(&file_name(lease)), ENTRY_LIMIT)?;
    Ok(Holding::parse(lease, &text)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;
    use crabbox_core::holding::Owner;

    fn places(root: &Path) -> Places {
        Places {
            // As on a host that has no registry yet: its parent directory is missing too.
            registry: root.join("var/registry"),
            ..Places::below(root)
        }
    }

    fn holding(number: u8) -> Holding {
        Holding {
            lease: LeaseId::from_random([number; 6]),
            owner: Owner {
                state: "/state".into(),
                device: 1,
                inode: u64::MAX,
            },
            uid: Some(1_900_000_000),
            block: Some("10.213.0.0/30".to_owned()),
        }
    }

    #[test]
    fn entries_come_back_and_go_and_a_look_makes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        assert!(look(&places).unwrap().holdings.is_empty());
        forget(&places, &holding(1).lease).unwrap();
        dissolve(&places).unwrap();
        assert!(!places.registry.exists());
        {
            let registry = Registry::lock(&places).unwrap();
            registry.put(&holding(2)).unwrap();
            registry.put(&holding(1)).unwrap();
            registry.put(&holding(1)).unwrap();
        }
        assert_eq!(look(&places).unwrap().holdings, [holding(1), holding(2)]);
        dissolve(&places).unwrap();
        forget(&places, &holding(1).lease).unwrap();
        forget(&places, &holding(1).lease).unwrap();
        assert_eq!(look(&places).unwrap().holdings, [holding(2)]);
        forget(&places, &holding(2).lease).unwrap();
        drop(host_network(&places).unwrap());
        dissolve(&places).unwrap();
        assert!(!places.registry.exists(), "nothing is left of an empty one");
    }

    #[test]
    fn whoever_forgets_a_lease_waits_for_an_entry_that_is_about_to_be_written() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let holding = holding(1);
        let registry = Registry::lock(&places).unwrap();
        std::thread::scope(|threads| {
            let forgets = threads.spawn(|| forget(&places, &holding.lease));
            // Long enough that a check without the lock would find no entry and finish.
            crabbox_host::clock::nap(std::time::Duration::from_millis(100));
            registry.put(&holding).unwrap();
            drop(registry);
            forgets.join().unwrap().unwrap();
        });
        assert!(look(&places).unwrap().holdings.is_empty());
    }

    #[test]
    fn a_damaged_entry_hides_no_other_and_a_dead_writers_half_goes() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let registry = Registry::lock(&places).unwrap();
        registry.put(&holding(1)).unwrap();
        let at = |name: &str| registry.entries.join(name);
        let (torn, link, large) = (holding(2).lease, holding(3).lease, holding(4).lease);
        std::fs::write(at(&file_name(&torn)), "{\"lease\":").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at(&file_name(&link))).unwrap();
        std::fs::write(at(&file_name(&large)), vec![b' '; 1 << 20]).unwrap();
        std::fs::write(at(".crabbox-tmp-dead"), "{").unwrap();
        std::fs::write(at("README"), "mine").unwrap();
        let listing = registry.list().unwrap();
        assert_eq!(listing.holdings, [holding(1)]);
        let damaged: Vec<_> = listing.damaged.into_iter().map(|(lease, _)| lease).collect();
        assert_eq!(damaged, [torn, link, large]);
        assert!(!at(".crabbox-tmp-dead").exists() && at("README").exists());
    }

    #[test]
    fn one_at_a_time_is_at_it_whatever_the_state_directory() {
        let root = tempfile::tempdir().unwrap();
        let one = places(root.path());
        let other = Places {
            state: root.path().join("elsewhere"),
            ..one.clone()
        };
        let held = Registry::lock(&one).unwrap();
        let lock = other.registry.join("registry.lock");
        assert!(FileLock::is_held(&lock).unwrap());
        drop(held);
        assert!(!FileLock::is_held(&lock).unwrap());
        let held = host_network(&one).unwrap();
        assert_eq!(host_network_path(&other), held.path());
    }

    fn host_network_path(places: &Places) -> std::path::PathBuf {
        places.registry.join("network.lock")
    }

    #[test]
    fn a_registry_that_others_can_change_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        Registry::lock(&places).unwrap().put(&holding(1)).unwrap();
        let refused = || {
            assert!(matches!(look(&places), Err(RegistryError::Directory(_))));
            assert!(matches!(
                Registry::lock(&places),
                Err(RegistryError::Directory(_))
            ));
            assert!(matches!(host_network(&places), Err(RegistryError::Directory(_))));
        };
        let mode =
            |bits| std::fs::set_permissions(&places.registry, std::fs::Permissions::from_mode(bits)).unwrap();
        mode(0o777);
        refused();
        mode(0o700);
        chown(&places.registry, Some(65_534), None).expect("tests run as root");
        refused();
    }
}
