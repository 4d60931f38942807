//! Which lease holds which resource on this host: leases of this state directory, leases of other state
//! directories by the host's registry, and leases of other state directories whose entry is damaged or lost;
//! those are found by their mounted namespaces.
//!
//! Observes, and decides with `core::holding`. It must never wait for a lock of a lease, and must remove only
//! entries whose lease no longer exists.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::holding::{self, Holding, Owner, Sight};
use crabbox_core::id::LeaseId;
use crabbox_core::journal::Journal;
use crabbox_host::files;
use crabbox_host::lock::FileLock;
use crabbox_host::process::{self, ProcessError, ProcessInfo};
use crabbox_host::{mounts, small};
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::registry::{Listing, Registry, RegistryError};
use ipnet::Ipv4Net;

/// The maximum number of bytes read of another state directory's journal; only its first line is needed.
const JOURNAL_LIMIT: u64 = 1 << 20;

/// The resources held on this host.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// uids of leases, and those under which processes run.
    pub uids: BTreeSet<u32>,
    /// Address blocks of leases.
    pub blocks: Vec<Ipv4Net>,
    /// The tags of leases of other state directories, and of leases of this one that have an entry.
    pub tags: BTreeSet<String>,
    /// Other state directories that hold resources.
    pub others: BTreeSet<PathBuf>,
    /// Leases of which only the entry is left.
    pub gone: Vec<LeaseId>,
}

/// Why the holders of resources cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum HoldersError {
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Processes cannot be listed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Mounts cannot be listed.
    #[error("cannot search for the namespaces of leases")]
    Mounts(#[source] std::io::Error),
}

/// All held resources, from the entries of `listing` and from objects on the host.
pub(crate) fn look(places: &Places, listing: &Listing) -> Result<Held, HoldersError> {
    let processes = process::list()?;
    let own = owner(places);
    let mut held = Held::default();
    held.uids.extend(processes.iter().map(|process| process.uid));
    for holding in &listing.holdings {
        let is_own = own.as_ref() == Some(&holding.owner);
        let sight = sight(
            &holding.owner.lease_dir(&holding.lease),
            &holding.owner.lease_lock(&holding.lease),
            bears(&processes, &holding.lease, holding.uid),
        );
        if !sight.is_held(is_own) {
            held.gone.push(holding.lease.clone());
            continue;
        }
        held.take(holding);
        if !is_own {
            held.others.insert(holding.owner.state.clone());
        }
    }
    let mut mounted = mounted()?;
    mounted.retain(|(lease, _)| !listing.holdings.iter().any(|holding| holding.lease == *lease));
    for (lease, dir) in &mounted {
        held.tags.insert(lease.tag());
        held.take_journal(dir);
        // `dir` is `<state>/firecracker/leases/<id>`. Skip leases of this state directory.
        let state = dir.ancestors().nth(3).filter(|_| !places.lease(lease).exists());
        held.others.extend(state.map(Path::to_owned));
    }
    for (lease, _) in &listing.damaged {
        let seen = sight(
            &places.lease(lease),
            &places.lease_lock(lease.as_str()),
            bears(&processes, lease, None),
        );
        if seen.is_held(false) {
            held.tags.insert(lease.tag());
        } else if !mounted.iter().any(|(one, _)| one == lease) {
            held.gone.push(lease.clone());
        }
    }
    Ok(held)
}

/// The same with the registry locked: removes entries of leases that no longer exist, and makes entries for
/// leases of this state directory whose entry is damaged or lost. `own` has their journals.
pub(crate) fn settle<'a>(
    places: &Places,
    registry: &Registry,
    own: impl Iterator<Item = &'a Journal>,
) -> Result<Held, HoldersError> {
    let listing = registry.list()?;
    let mut held = look(places, &listing)?;
    for lease in &held.gone {
        registry.remove(lease)?;
    }
    let owner = owner(places);
    for journal in own {
        let Ok(lease) = LeaseId::parse(&journal.lease) else {
            continue;
        };
        held.take_open(journal);
        let known = listing.holdings.iter().any(|holding| holding.lease == lease);
        // The journals were read before we locked the registry: meanwhile a lease may have been torn down,
        // and then its entry is gone or about to be removed.
        let lives = places.lease(&lease).exists();
        if let Some(owner) = owner.clone().filter(|_| !known && lives) {
            let holding = Holding {
                lease,
                owner,
                uid: journal.uid,
                block: journal.subnet.clone(),
            };
            registry.put(&holding)?;
            held.take(&holding);
        }
    }
    Ok(held)
}

/// Removes the entry of `lease` if nothing else of it is left.
pub(crate) fn reclaim(places: &Places, lease: &LeaseId) -> Result<(), HoldersError> {
    let registry = Registry::lock(places)?;
    if look(places, &registry.list()?)?.gone.contains(lease) {
        registry.remove(lease)?;
    }
    Ok(())
}

/// This state directory, if it exists.
pub(crate) fn owner(places: &Places) -> Option<Owner> {
    let state = places.state.canonicalize().ok()?;
    let facts = state.metadata().ok()?;
    Some(Owner {
        state,
        device: facts.dev(),
        inode: facts.ino(),
    })
}

impl Held {
    fn take(&mut self, holding: &Holding) {
        self.tags.insert(holding.lease.tag());
        self.uids.extend(holding.uid);
        let block = holding.block.as_deref();
        self.blocks
            .extend(block.and_then(|block| block.parse::<Ipv4Net>().ok()));
    }

    fn take_open(&mut self, journal: &Journal) {
        self.uids.extend(journal.uid);
        let subnet = journal.subnet.as_deref();
        self.blocks
            .extend(subnet.and_then(|subnet| subnet.parse::<Ipv4Net>().ok()));
    }

    /// The first line of the journal in `dir`, which may be another user's directory.
    fn take_journal(&mut self, dir: &Path) {
        let path = LeaseDir::at(dir).journal();
        let name = path.file_name().map_or(&*path, Path::new);
        // If the journal is unreadable, the uid of its process and the route to its block are still observed.
        let bytes = small::read_small(dir, name, JOURNAL_LIMIT).unwrap_or_default();
        let first = bytes.split_inclusive(|byte| *byte == b'\n').next();
        let text = first.and_then(|line| std::str::from_utf8(line).ok());
        if let Some(Ok(journal)) = text.map(Journal::parse) {
            self.take_open(&journal);
        }
    }
}

/// The observed state of a lease. The lock is checked before the directory, because a lease's maker holds the
/// lock until the directory exists.
fn sight(dir: &Path, lock: &Path, process: bool) -> Sight {
    // If existence cannot be checked, assume that it exists.
    let exists = || files::is_named(dir).unwrap_or(true);
    if exists() {
        return Sight {
            directory: true,
            ..Sight::default()
        };
    }
    Sight {
        locked: FileLock::is_held(lock).unwrap_or(true),
        directory: exists(),
        process,
    }
}

/// Whether a process runs under the lease's uid, or is its machine by name and belongs to us or root. The
/// arguments of other users' processes prove nothing.
fn bears(processes: &[ProcessInfo], lease: &LeaseId, uid: Option<u32>) -> bool {
    let us = rustix::process::geteuid().as_raw();
    processes.iter().any(|process| {
        Some(process.uid) == uid
            || ((process.uid == 0 || process.uid == us)
                && process
                    .cmdline
                    .iter()
                    .any(|arg| holding::names_machine(lease, &arg.to_string_lossy())))
    })
}

/// Leases with mounted namespaces and an existing directory.
fn mounted() -> Result<Vec<(LeaseId, PathBuf)>, HoldersError> {
    let mounts = mounts::of_type("nsfs").map_err(HoldersError::Mounts)?;
    Ok(mounts
        .iter()
        .filter_map(|mount| holding::lease_of_namespace(mount))
        .filter(|(_, dir)| dir.try_exists().unwrap_or(true))
        .map(|(lease, dir)| (lease, dir.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests;
