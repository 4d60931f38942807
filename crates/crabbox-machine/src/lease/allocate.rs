//! Allocation of a lease's exclusive resources: slug, uid, subnet, directory.
//!
//! It runs under the allocation lock of the state directory; uid and subnet also under the lock of the host's
//! registry. Both are held for milliseconds. Records, journals and the registry show what is in use; a
//! lease's registry entry exists before its directory. It must never hand out anything that another lease on
//! this host has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crabbox_core::admission::{Asker, OwnerUsage, Refusal};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::holding::Holding;
use crabbox_core::id::{LeaseId, Slug, SlugError};
use crabbox_core::journal::{Entry, JOB, Journal, Step, VERSION};
use crabbox_core::labels::{self, Labels, NewLease};
use crabbox_core::network::NetworkMode;
use crabbox_core::record::{LeaseRecord, SCHEMA_VERSION};
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::clock;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::journal::{self, JournalFile, JournalFileError};
use crabbox_store::leases::{self, RecordError, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::registry::{self, Registry, RegistryError};

use crate::failpoint::{self, Phase, Who};
use crate::lease::admission;
use crate::lease::allocated::Allocated;
use crate::lease::holders::{self, Held, HoldersError};
use crate::lease::ownership::{OwnedLease, OwnershipError};
use crate::request::{AcquireRequest, GuestSource};
use crate::resource::network;

/// Why a lease could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// Another crabbox holds a lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease id is taken.
    #[error("lease {id} exists already")]
    Exists {
        /// The id.
        id: String,
    },
    /// The lease that another program asks for exists already, or is being made.
    #[error("a lease for {lease} is here already or is being made")]
    External {
        /// That program's id of the lease.
        lease: String,
    },
    /// No free slug was found.
    #[error(transparent)]
    Slug(#[from] SlugError),
    /// Existing records could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Existing claims could not be read.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Directories could not be made.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The journal could not be started.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// The directory is not ours.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// Every uid of the range is in use.
    #[error("all {count} uids from {first} on are in use{}", elsewhere(.others))]
    NoUid {
        /// First uid of the range.
        first: u32,
        /// How many it has.
        count: u32,
        /// Other state directories whose leases use part of the range.
        others: Vec<PathBuf>,
    },
    /// Another lease on this host has the same tag, from which the names of its objects are made.
    #[error("lease {id} would have the tag {tag}, which another lease on this host has")]
    Tag {
        /// The id.
        id: String,
        /// Its tag.
        tag: String,
    },
    /// It is unknown what other state directories hold.
    #[error(transparent)]
    Holders(#[from] HoldersError),
    /// The host's registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The host has no room for it.
    #[error(transparent)]
    NoRoom(#[from] Refusal),
    /// No free subnet was found.
    #[error(transparent)]
    Subnet(#[from] network::SubnetError),
}

impl Fault for AllocateError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoRoom(refusal) => refusal.kind(),
            Self::External { .. } => Kind::Unavailable,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        self.hints_for(Asker::Here)
    }
}

impl AllocateError {
    /// What the requester can do about it.
    pub(crate) fn hints_for(&self, asker: Asker) -> Vec<String> {
        let stop = || asker.can_stop().to_owned();
        match (self, asker) {
            (Self::NoRoom(refusal), _) => refusal.hints_for(asker),
            (Self::NoUid { .. }, Asker::Here) => vec![stop(), "raise firecracker.uidCount".to_owned()],
            (Self::NoUid { .. }, Asker::Afar) => vec![
                stop(),
                "the administrator of that host can raise firecracker.uidCount there".to_owned(),
            ],
            (Self::Subnet(_), Asker::Here) => {
                vec!["stop a lease, or use CNI (--firecracker-network cni)".to_owned()]
            }
            (Self::Subnet(_), Asker::Afar) => vec![
                stop(),
                "the administrator of that host can put its leases into a CNI network (firecracker.network)"
                    .to_owned(),
            ],
            (Self::Files(error), Asker::Afar) if error.is_out_of_space() => {
                vec![
                    stop(),
                    "the administrator of that host can free some space there".to_owned(),
                ]
            }
            (error, _) => error.hints_of_either(),
        }
    }

    fn hints_of_either(&self) -> Vec<String> {
        match self {
            Self::Tag { .. } => vec!["try again: ids are random".to_owned()],
            Self::Registry(error) | Self::Holders(HoldersError::Registry(error)) => error.hints(),
            Self::Files(error) if error.is_out_of_space() => {
                vec!["free some space, or stop a lease that `crabbox list` shows".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Other state directories that use the missing resource.
fn elsewhere(others: &[PathBuf]) -> String {
    if others.is_empty() {
        return String::new();
    }
    let list: Vec<_> = others.iter().map(|state| state.display().to_string()).collect();
    format!(", some of them by leases of {}", list.join(", "))
}

/// Makes the lease directory for `request`. On failure nothing of the lease is left.
pub fn allocate(places: &Places, request: &AcquireRequest, id: &LeaseId) -> Result<Allocated, AllocateError> {
    for dir in [&places.state, &places.config, &places.leases()] {
        files::create_private_dir(dir)?;
    }
    let _allocation = locks::allocation(places)?;
    let taken = taken(places)?;
    let room = admission::room(
        places,
        taken.journals.iter().map(|(journal, busy)| (journal, *busy)),
    )?;
    let demand = admission::demand(places, request);
    if let Some(owner) = &request.owner {
        let had = taken.had(&owner.name);
        crabbox_core::admission::admit_owner(&owner.quota, &owner.name, &had, &demand)?;
    }
    crabbox_core::admission::admit(&request.limits, &demand, &room)?;
    let slug = choose_slug(request, id, |slug| taken.slugs.contains(slug))?;
    let exists = || AllocateError::Exists { id: id.to_string() };
    // Take the lock before making the entry: an entry whose lease has neither a held lock nor a directory
    // counts as abandoned.
    let lock = locks::try_lease(places, id.as_str())?.ok_or_else(exists)?;
    let dir = LeaseDir::at(places.lease(id));
    if dir.path().exists() {
        return Err(exists());
    }
    // Write the record before the allocation lock is released, because the record reserves the slug.
    let made = hold(places, request, id, &taken).and_then(|(uid, subnet)| {
        let share = Share { slug, uid, subnet };
        let (journal, stored) = open(&dir, request, id, &share)?;
        Ok((share, journal, stored))
    });
    match made {
        Ok((share, journal, stored)) => Ok(Allocated {
            lease: OwnedLease::prove(places, id, lock)?,
            stored,
            uid: share.uid,
            subnet: share.subnet,
            journal,
        }),
        Err(error) => {
            give_up(places, id, &dir, lock);
            Err(error)
        }
    }
}

/// The slug for the lease of `request`. A lease of another program is identified by that program's id, which
/// must be unique: a second request is refused and does not get another slug.
pub(crate) fn choose_slug(
    request: &AcquireRequest,
    id: &LeaseId,
    is_taken: impl Fn(&str) -> bool,
) -> Result<Slug, AllocateError> {
    let wanted = match &request.slug {
        Some(text) => Slug::requested(text)?,
        None => Slug::for_lease(id),
    };
    match &request.external {
        Some(external) if is_taken(wanted.as_str()) => Err(AllocateError::External {
            lease: external.lease().to_string(),
        }),
        _ => Ok(wanted.unique(id, is_taken)?),
    }
}

/// Rolls back a failed allocation. On a full disk even this may fail; `cleanup` handles such directories,
/// entries and locks, too.
fn give_up(places: &Places, id: &LeaseId, dir: &LeaseDir, lock: FileLock) {
    files::remove_tree(dir.path()).ok();
    registry::forget(places, id).ok();
    lock.remove_while_held().ok();
}

/// The exclusive resources of a lease.
struct Share {
    slug: Slug,
    uid: Option<u32>,
    subnet: Option<ipnet::Ipv4Net>,
}

/// Chooses a uid and a subnet that no lease on this host has, and enters them in the host's registry. The
/// registry's lock is the last one taken, and nothing is waited for while it is held.
fn hold(
    places: &Places,
    request: &AcquireRequest,
    id: &LeaseId,
    taken: &Taken,
) -> Result<(Option<u32>, Option<ipnet::Ipv4Net>), AllocateError> {
    let hit = |phase| failpoint::hit(&request.failpoint, Who::Supervisor, "registry", phase);
    hit(Phase::Begun);
    let registry = Registry::lock(places)?;
    let held = holders::settle(
        places,
        &registry,
        taken.journals.iter().map(|(journal, _)| journal),
    )?;
    if held.tags.contains(&id.tag()) {
        return Err(AllocateError::Tag {
            id: id.to_string(),
            tag: id.tag(),
        });
    }
    let uid = free_uid(request, &held)?;
    let subnet = match request.network.mode {
        NetworkMode::Nat => Some(network::choose_subnet(request.network.nat_range, &held.blocks)?),
        NetworkMode::Cni => None,
    };
    let owner = holders::owner(places)
        .ok_or_else(|| FileError::io("inspect directory", &places.state, std::io::ErrorKind::NotFound))?;
    registry.put(&Holding {
        lease: id.clone(),
        owner,
        uid,
        block: subnet.map(|subnet| subnet.to_string()),
    })?;
    hit(Phase::Made);
    drop(registry);
    hit(Phase::Done);
    Ok((uid, subnet))
}

/// The first uid of the range that no process runs under and no lease has; `None` without a jail.
pub(crate) fn free_uid(request: &AcquireRequest, held: &Held) -> Result<Option<u32>, AllocateError> {
    let Some(jail) = &request.programs.jailer else {
        return Ok(None);
    };
    (jail.first_uid..jail.first_uid.saturating_add(jail.uid_count))
        .find(|uid| !held.uids.contains(uid))
        .map(Some)
        .ok_or_else(|| AllocateError::NoUid {
            first: jail.first_uid,
            count: jail.uid_count,
            others: held.others.iter().cloned().collect(),
        })
}

/// Makes the directory with its journal and record.
fn open(
    dir: &LeaseDir,
    request: &AcquireRequest,
    id: &LeaseId,
    share: &Share,
) -> Result<(JournalFile, StoredLease), AllocateError> {
    files::create_private_dir(dir.path())?;
    failpoint::hit(&request.failpoint, Who::Supervisor, "directory", Phase::Begun);
    let mut journal = JournalFile::create(
        &dir.journal(),
        &Entry::Open {
            version: VERSION,
            lease: id.to_string(),
            at: clock::unix_seconds(),
            uid: share.uid,
            subnet: share.subnet.map(|subnet| subnet.to_string()),
            memory_mib: Some(request.most_memory_mib()),
        },
    )?;
    // Write this before the record: if the record is missing, the job's epilog finds the lease by this note.
    if let Some(job) = &request.job {
        journal.note(JOB, &job.id.to_string())?;
    }
    let pending = journal.begin(Step::Directory {
        path: dir.path().to_string_lossy().into_owned(),
    })?;
    journal.done(pending, None)?;
    failpoint::hit(&request.failpoint, Who::Supervisor, "directory", Phase::Done);
    let mut stored = StoredLease::new(dir.clone(), first_record(request, id, &share.slug, dir));
    stored.save()?;
    Ok((journal, stored))
}

/// The record of a lease in the making.
fn first_record(request: &AcquireRequest, id: &LeaseId, slug: &Slug, dir: &LeaseDir) -> LeaseRecord {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let name = id.vm_name(slug);
    let network = &request.network;
    let (seconds, nanoseconds) = clock::unix_now();
    let mut labels = first_labels(request, id, slug.as_str(), &name, seconds);
    labels::set_state(&mut labels, &LeaseState::Provisioning);
    if let Some(pool) = request.member_of() {
        labels::set_pool(&mut labels, &pool.key);
    }
    if let Some(owner) = &request.owner {
        labels::set_owner(&mut labels, &owner.name);
    }
    if let Some(job) = &request.job {
        labels::set_job(&mut labels, job.id, &job.node);
    }
    let (kernel, rootfs) = match &request.guest {
        GuestSource::Ours { dir, .. } => (dir.join("vmlinux"), dir.join("base.ext4")),
        GuestSource::Foreign { kernel, rootfs, .. } => (kernel.clone(), rootfs.clone()),
    };
    let now = timestamp::rfc3339_nano(seconds, nanoseconds);
    LeaseRecord {
        schema_version: SCHEMA_VERSION,
        lease_id: id.to_string(),
        slug: slug.to_string(),
        name: name.clone(),
        vmid: name,
        provider: "firecracker".to_owned(),
        state_dir: text(dir.path()),
        log_path: text(&dir.vmm_log()),
        netns_path: text(&dir.netns()),
        cni_cache_dir: text(&dir.cni_cache()),
        ssh_user: request.ssh_user.clone(),
        ssh_port: request.ssh_port.to_string(),
        binary_path: text(&request.programs.firecracker),
        kernel_path: text(&kernel),
        source_rootfs: text(&rootfs),
        cni_network: cni_network(request).to_owned(),
        cni_conf_dir: text(&network.cni_conf_dir),
        cni_bin_dir: network
            .cni_bin_dirs
            .first()
            .map(|dir| text(dir))
            .unwrap_or_default(),
        delete_on_release: request.delete_on_release,
        labels,
        created_at: now.clone(),
        updated_at: now,
        ..LeaseRecord::default()
    }
}

/// The CNI network of a lease; empty for other network modes.
fn cni_network(request: &AcquireRequest) -> &str {
    match request.network.mode {
        NetworkMode::Cni => &request.network.cni_network,
        NetworkMode::Nat => "",
    }
}

/// The labels of a lease of `request` at `now` (Unix time in seconds).
pub(crate) fn first_labels(
    request: &AcquireRequest,
    id: &LeaseId,
    slug: &str,
    name: &str,
    now: i64,
) -> Labels {
    let new = NewLease {
        lease: id.as_str(),
        slug,
        name,
        provider: "firecracker",
        profile: &request.profile,
        class: &request.class,
        server_type: &request.server_type,
        target: "linux",
        keep: request.keep,
        idle: request.idle,
        ttl: request.ttl,
        ssh_user: &request.ssh_user,
        ssh_port: request.ssh_port,
        work_root: &request.work_root,
        network: request.network.mode.name(),
        cni_network: cni_network(request),
        exposed: &request.exposed,
    };
    let mut labels = labels::new_lease(&new, now);
    if let Some(external) = &request.external {
        external.put(&mut labels);
    }
    labels
}

/// The slugs in use in this state directory.
pub(crate) fn slugs(places: &Places) -> Result<BTreeSet<String>, AllocateError> {
    Ok(taken(places)?.slugs)
}

/// The resources of leases of this state directory.
#[derive(Debug, Default)]
struct Taken {
    slugs: BTreeSet<String>,
    /// The journals, each with whether another process holds the lease's lock.
    journals: Vec<(Journal, bool)>,
    /// Leases of remote owners, with the owners' names.
    owned: Vec<(LeaseDir, String)>,
}

impl Taken {
    /// The leases and resources of `owner`. A lease whose journal does not record its memory still counts as
    /// a lease.
    fn had(&self, owner: &str) -> OwnerUsage {
        let mut had = OwnerUsage::default();
        for (dir, _) in self.owned.iter().filter(|(_, name)| name == owner) {
            let journal = journal::read(&dir.journal()).ok().flatten();
            had.leases += 1;
            had.memory_mib += journal.and_then(|journal| journal.memory_mib).unwrap_or(0);
        }
        had
    }
}

/// Reads what is in use in this state directory. An unreadable journal contributes nothing; the registry
/// entry of its lease does.
fn taken(places: &Places) -> Result<Taken, AllocateError> {
    let mut taken = Taken::default();
    for lease in leases::list(&places.leases())?.leases {
        // A released lease does not count towards its owner's quota, even if its directory is kept.
        if let Some(owner) = labels::owner(&lease.record.labels)
            && labels::state(&lease.record.labels) != LeaseState::Released
        {
            taken.owned.push((lease.dir, owner.to_owned()));
        }
        taken.slugs.insert(lease.record.slug);
    }
    for claim in claims::list(places)?.claims {
        taken.slugs.insert(claim.slug);
    }
    taken.journals = journals(places);
    Ok(taken)
}

/// The journals of all leases of this state directory, each with whether another process holds the lease's
/// lock.
pub(crate) fn journals(places: &Places) -> Vec<(Journal, bool)> {
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(places.leases()).into_iter().flatten().flatten() {
        let Ok(Some(journal)) = journal::read(&LeaseDir::at(entry.path()).journal()) else {
            continue;
        };
        // If a lock cannot be inspected, treat it as held; failing here would block every allocation.
        let busy = locks::is_busy(places, &entry.file_name().to_string_lossy()).unwrap_or(true);
        journals.push((journal, busy));
    }
    journals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_has_given_back_is_not_in_their_share() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        for (id, state) in [("cbx_000000000001", "ready"), ("cbx_000000000002", "released")] {
            let dir = places.leases().join(id);
            std::fs::create_dir_all(&dir).unwrap();
            let record = format!(
                r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"s-{state}","name":"n","vmid":"n","provider":"firecracker",
                "labels":{{"state":"{state}","owner":"alice"}}}}"#
            );
            std::fs::write(dir.join("metadata.json"), record).unwrap();
        }
        let taken = taken(&places).unwrap();
        assert_eq!(taken.had("alice").leases, 1);
        // Its slug is still in use, because its directory exists.
        assert!(taken.slugs.contains("s-released"));
    }
}
