//! Releases leases: `stop` for one, `cleanup` for all that are no longer needed.
//!
//! Both use the teardown of the journal. Cleanup continues after an error, gives a reason for each decision,
//! and must not touch a lease whose lock is held: another process is making it or tearing it down.

use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels::{self, Verdict};
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_host::clock;
use crabbox_host::files;
use crabbox_host::lock::LockError;
use crabbox_host::process::{self, ProcessError, ProcessId};
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::journal::{self, JournalFileError};
use crabbox_store::leases::{self, RecordError, StoredLease};
use crabbox_store::locks;
use crabbox_store::places::{LeaseDir, Places};

use crate::context::Engine;
use crate::control::{Verb, client};
use crate::failpoint::Who;
use crate::lease::find::{self, Purpose, ResolveError};
use crate::lease::machine;
use crate::lease::ownership::{OwnedLease, OwnershipError};
use crate::lifecycle::orphans::{self, OrphanError};
use crate::lifecycle::teardown::{self, Actor, Extent, Report};

/// How long `stop` waits for another command that holds the lease.
const LOCK_LIMIT: Duration = Duration::from_mins(2);

/// The reason for removing a lease whose maker died before the claim.
const NEVER_CLAIMED: &str = "never_claimed";

/// The reason for leaving objects that could not be searched for.
const NOT_LOOKED_FOR: &str = "not_looked_for";

/// Why a lease could not be released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// There is no such lease.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It does not belong to this user, or is no lease.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The records cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A claim cannot be read or removed.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// A file could not be removed.
    #[error(transparent)]
    Files(#[from] files::FileError),
    /// An object without a lease could not be found or removed.
    #[error(transparent)]
    Orphan(#[from] OrphanError),
    /// Neither a record nor a journal says what has to be undone.
    #[error("lease {id} was not changed: its record is unreadable and may refer to a running machine{}", running(.machines))]
    Unknown {
        /// The lease.
        id: String,
        /// Its directory.
        dir: PathBuf,
        /// Machines that use a socket in it.
        machines: Vec<ProcessId>,
        /// Why the record cannot be read.
        #[source]
        source: RecordError,
    },
    /// Processes cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// It was a pool member when it was named, and has been claimed since.
    #[error("lease {id} has been taken from its pool and is in use; nothing was stopped")]
    Taken {
        /// The lease.
        id: String,
    },
    /// Part of it is left.
    #[error("lease {id} could not be removed completely: {}", .leftovers.join("; "))]
    Leftovers {
        /// The lease.
        id: String,
        /// What is left and why.
        leftovers: Vec<String>,
    },
}

fn running(machines: &[ProcessId]) -> String {
    let pids: Vec<String> = machines.iter().map(|id| id.pid.to_string()).collect();
    if pids.is_empty() {
        String::new()
    } else {
        format!(" (process {} has its socket)", pids.join(", "))
    }
}

impl Fault for ReleaseError {
    fn kind(&self) -> Kind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::Leftovers { .. } => Kind::Remote,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Resolve(error) => error.hints(),
            Self::Unknown { dir, .. } => {
                let dir = dir.display();
                vec![format!(
                    "restore {dir}/metadata.json and stop it again; or move {dir} away and run `crabbox cleanup --provider firecracker`: it ends a machine with a socket there, and removes claim and keys"
                )]
            }
            Self::Orphan(error) => error.hints(),
            Self::Journal(error) if error.is_too_new() => {
                vec!["use the crabbox that made the lease, or a newer one (`crabbox version` shows this one's version); nothing was stopped".to_owned()]
            }
            Self::Taken { id } => vec![format!("`crabbox stop {id}` stops it, if it is yours")],
            Self::Leftovers { .. } => {
                vec!["fix the cause and run `crabbox cleanup --provider firecracker`: it continues where this stopped".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// A released lease.
#[derive(Debug)]
pub struct Released {
    /// The lease.
    pub id: String,
    /// Its machine's name.
    pub name: String,
    /// The host, for provider `ssh`.
    pub host: Option<String>,
    /// The KVM host that it was on, as `firecracker.host` names it; `None` if that is this machine.
    pub kvm_host: Option<String>,
    /// The directory that is kept with its disk (`deleteOnRelease: false`).
    pub kept: Option<PathBuf>,
}

/// Releases the lease that `text` names. If the lease was made with `deleteOnRelease: false`, its directory
/// is kept at every release, unless `discard`.
pub fn stop(engine: &Engine, text: &str, discard: bool) -> Result<Released, ReleaseError> {
    let found = find::find(&engine.places, text, Purpose::Release)?;
    let name = match (&found.stored, &found.claim) {
        (Some(stored), _) => stored.record.name.clone(),
        (None, Some(claim)) => claim.cloud_id.clone(),
        (None, None) => found.id.clone(),
    };
    let Ok(id) = LeaseId::parse(&found.id) else {
        claims::remove(&engine.places, &found.id, None)?;
        return Ok(Released {
            id: found.id,
            name,
            host: None,
            kvm_host: None,
            kept: None,
        });
    };
    let guard = locks::lease(&engine.places, id.as_str(), LOCK_LIMIT)?;
    let lease = OwnedLease::prove(&engine.places, &id, guard)?;
    // Another process may have stopped it while we waited: nothing is left to do, and that is a success.
    let waits = |stored: &leases::StoredLease| labels::pool(&stored.record.labels).is_some();
    let waited = found.stored.as_ref().is_some_and(waits);
    let extent = match leases::read(lease.dir()) {
        Ok(stored) if waited && !waits(&stored) => return Err(ReleaseError::Taken { id: found.id }),
        Ok(stored) if !discard && labels::pool(&stored.record.labels).is_none() => Extent::of(&stored.record),
        Ok(_) | Err(RecordError::Missing { .. }) => Extent::Everything,
        Err(source) => {
            told_by_journal(engine, &lease, source)?;
            Extent::Everything
        }
    };
    let kept = (extent == Extent::KeepDirectory).then(|| lease.dir().path().to_owned());
    take_back(engine, lease, extent, Who::Cli)?;
    Ok(Released {
        id: id.to_string(),
        name,
        host: None,
        kvm_host: None,
        kept,
    })
}

/// Refuses a lease with an unreadable record, unless a journal says what has to be undone: if the lease's
/// machine cannot be identified, the record that may name it must be kept.
fn told_by_journal(engine: &Engine, lease: &OwnedLease, source: RecordError) -> Result<(), ReleaseError> {
    if journal::read(&lease.dir().journal())?.is_some() {
        return Ok(());
    }
    Err(ReleaseError::Unknown {
        id: lease.id().to_string(),
        dir: lease.dir().path().to_owned(),
        machines: machine::running_on(&engine.places.leases(), lease.id(), None)?,
        source,
    })
}

fn take_back(engine: &Engine, lease: OwnedLease, extent: Extent, who: Who) -> Result<(), ReleaseError> {
    let id = lease.id().to_string();
    // This program cannot undo a journal that it cannot read. Touch nothing, so that the newer program that
    // wrote it finds the lease complete.
    if let Err(error) = journal::read(&lease.dir().journal())
        && error.is_too_new()
    {
        return Err(error.into());
    }
    let actor = Actor {
        who,
        failpoint: &engine.failpoint,
    };
    // The supervisor stops its threads before their machine goes, and finishes the teardown if we die.
    // Whatever it replies, we tear the lease down here, under the lock that we hold.
    match client::ask(lease.dir(), &Verb::End) {
        Ok(reply) => tracing::debug!(?reply, "the supervisor was asked to end"),
        Err(error) => tracing::debug!("{}", fault::chain(&error)),
    }
    let report: Report = teardown::teardown(&engine.places, lease, extent, actor);
    let leftovers = report.leftovers();
    if leftovers.is_empty() {
        Ok(())
    } else {
        Err(ReleaseError::Leftovers { id, leftovers })
    }
}

/// A decision of cleanup about one object.
#[derive(Debug)]
pub struct Decision {
    /// The lease.
    pub lease: String,
    /// The object.
    pub subject: Subject,
    /// Whether it is removed, or would be with `dry_run` unset.
    pub remove: bool,
    /// The reason.
    pub reason: String,
    /// Why the removal failed.
    pub error: Option<ReleaseError>,
}

impl Decision {
    /// A decision about objects that could not be searched for; without an `error` this user can have none of
    /// this kind.
    pub fn unseen(kind: &'static str, error: Option<ReleaseError>) -> Self {
        let reason = if error.is_some() {
            NOT_LOOKED_FOR
        } else {
            "needs_cap_net_admin"
        };
        Self {
            lease: "-".to_owned(),
            subject: Subject::Object {
                kind,
                name: "*".to_owned(),
            },
            remove: false,
            reason: reason.to_owned(),
            error,
        }
    }
}

/// The kinds of object that cleanup decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A lease with a record.
    Lease {
        /// Its machine's id.
        vmid: String,
    },
    /// A lease directory with an unusable record.
    Directory,
    /// A claim without a lease.
    Claim {
        /// Its slug.
        slug: String,
    },
    /// An object on the host with our tag but without a lease.
    Object {
        /// Its kind: `process`, `link`, `table`, `cgroup`, `lock`, `entry`. For objects that could not be
        /// searched for also `network` (links and tables), `claim` and `lease`.
        kind: &'static str,
        /// Its name; `*` for all of a kind.
        name: String,
    },
}

/// Decides about every lease and claim of the provider, and removes what is no longer needed unless
/// `dry_run`.
pub fn cleanup(
    engine: &Engine,
    dry_run: bool,
    on_decision: &mut dyn FnMut(&Decision),
) -> Result<Vec<Decision>, ReleaseError> {
    let places = &engine.places;
    let listing = leases::list(&places.leases())?;
    let mut decisions = Vec::new();
    let mut decided = |mut decision: Decision, lease: Option<OwnedLease>| {
        if let Some(lease) = lease.filter(|_| decision.remove && !dry_run) {
            let extent = match leases::read(lease.dir()) {
                // The disk of a lease that was never claimed is not kept for anyone.
                Ok(stored)
                    if decision.reason != NEVER_CLAIMED && labels::pool(&stored.record.labels).is_none() =>
                {
                    Extent::of(&stored.record)
                }
                _ => Extent::Everything,
            };
            decision.error = take_back(engine, lease, extent, Who::Cli).err();
        }
        on_decision(&decision);
        decisions.push(decision);
    };
    for stored in listing.leases {
        let (decision, lease) = look_at_lease(places, &stored);
        decided(decision, lease);
    }
    for bad in listing.unreadable {
        let (decision, lease) = look_at_unreadable(places, &bad);
        decided(decision, lease);
    }
    let mut others = stale_claims(places, dry_run, on_decision);
    decisions.append(&mut others);
    let found = orphans::find(places);
    for orphan in found.orphans {
        let mut decision = Decision {
            lease: "-".to_owned(),
            subject: Subject::Object {
                kind: orphan.kind(),
                name: orphan.name(),
            },
            remove: true,
            reason: "no_lease".to_owned(),
            error: None,
        };
        if !dry_run {
            decision.error = orphans::remove(places, &orphan).err().map(ReleaseError::from);
        }
        on_decision(&decision);
        decisions.push(decision);
    }
    for unseen in found.unseen {
        let is_trouble = unseen.is_trouble();
        let decision = Decision::unseen(unseen.kind, is_trouble.then(|| unseen.error.into()));
        on_decision(&decision);
        decisions.push(decision);
    }
    Ok(decisions)
}

/// Decides about claims whose lease is gone. If one claim or all of them cannot be read, the rest of the
/// cleanup continues.
fn stale_claims(places: &Places, dry_run: bool, on_decision: &mut dyn FnMut(&Decision)) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let mut decided = |decision: Decision| {
        on_decision(&decision);
        decisions.push(decision);
    };
    let claims = match claims::list(places) {
        Ok(listing) => listing.claims,
        Err(error) => {
            decided(Decision::unseen("claim", Some(error.into())));
            return decisions;
        }
    };
    for claim in claims {
        let id = claim.lease_id.clone();
        // Only the other host knows whether a lease there still exists.
        let is_elsewhere = !claim.provider_scope.is_empty();
        if claim.provider != "firecracker" || is_elsewhere {
            continue;
        }
        let decide = |remove, reason: &str, error| Decision {
            lease: id.clone(),
            subject: Subject::Claim {
                slug: claim.slug.clone(),
            },
            remove,
            reason: reason.to_owned(),
            error,
        };
        match is_there(&places.leases().join(&id)) {
            Ok(true) => {}
            Ok(false) if dry_run => decided(decide(true, "missing_state", None)),
            Ok(false) => decided(decide(true, "missing_state", remove_claim(places, &id).err())),
            Err(error) => decided(decide(false, NOT_LOOKED_FOR, Some(error))),
        }
    }
    decisions
}

/// Whether a lease's directory exists. If that is unknown, nothing of the lease may be removed, so it is an
/// error.
fn is_there(dir: &std::path::Path) -> Result<bool, ReleaseError> {
    Ok(files::is_named(dir).map_err(|source| files::FileError::io("look for", dir, source))?)
}

/// Removes a claim and its keys, unless the lease exists after all.
fn remove_claim(places: &Places, id: &str) -> Result<(), ReleaseError> {
    let Ok(lease) = LeaseId::parse(id) else {
        claims::remove(places, id, None)?;
        return Ok(());
    };
    let Some(guard) = locks::try_lease(places, id)? else {
        return Ok(());
    };
    if is_there(&places.lease(&lease))? {
        return Ok(());
    }
    claims::remove(places, id, None)?;
    files::remove_tree(&places.keys(id))?;
    guard.remove_while_held()?;
    Ok(())
}

/// Decides about a lease with a record; returns the proof of ownership only if it may be removed.
fn look_at_lease(places: &Places, seen: &StoredLease) -> (Decision, Option<OwnedLease>) {
    let id = seen.record.lease_id.clone();
    let decide = |remove: bool, reason: &str| Decision {
        lease: id.clone(),
        subject: Subject::Lease {
            vmid: seen.record.vmid.clone(),
        },
        remove,
        reason: reason.to_owned(),
        error: None,
    };
    let lease = match own(places, &id) {
        Ok(Some(lease)) => lease,
        Ok(None) => return (decide(false, "busy"), None),
        Err(error) => {
            return (
                Decision {
                    error: Some(error),
                    ..decide(false, "not_ours")
                },
                None,
            );
        }
    };
    // The record may have changed before we got the lock, so read it again.
    let Ok(stored) = leases::read(lease.dir()) else {
        if lease.dir().is_gone() {
            // Another process has just stopped it; remove the lock file that we created by locking it.
            lease.forget().ok();
        }
        return (decide(false, "gone"), None);
    };
    let record = stored.record;
    let state = labels::state(&record.labels);
    if let Ok(Some(journal)) = journal::read(&lease.dir().journal())
        && state != LeaseState::Released
    {
        if journal.note(teardown::ENDING).is_some() {
            return (decide(true, "interrupted_release"), Some(lease));
        }
        // A maker holds the lock until the lease is claimed. We have the lock, so the maker has died. A pool
        // member stays unclaimed as long as its supervisor keeps it.
        let waits = labels::pool(&record.labels).is_some()
            && journal.process("supervisor").is_some_and(process::is_alive);
        if !journal.is_claimed() && !waits {
            return (decide(true, NEVER_CLAIMED), Some(lease));
        }
    }
    let is_running = match runs(places, &lease, &record) {
        Ok(is_running) => is_running,
        Err(error) => {
            let error = Some(error.into());
            return (
                Decision {
                    error,
                    ..decide(false, "not_looked_for")
                },
                None,
            );
        }
    };
    if is_running {
        return match labels::expired(&record.labels, clock::unix_seconds()) {
            Verdict::Remove(reason) => (decide(true, &reason), Some(lease)),
            Verdict::Skip(reason) => (decide(false, &reason), None),
        };
    }
    if state == LeaseState::Released && !record.delete_on_release {
        return (decide(false, "state=released"), None);
    }
    (decide(true, "process_exited"), Some(lease))
}

/// Whether the lease's machine runs: the process that the record names, or one that uses the lease's socket.
/// A record by another program, or a damaged one, may not name the process that runs.
fn runs(places: &Places, lease: &OwnedLease, record: &LeaseRecord) -> Result<bool, ProcessError> {
    let on_socket = || machine::running_on(&places.leases(), lease.id(), Some(record));
    Ok(find::is_running(record) || !on_socket()?.is_empty())
}

/// Decides about a lease directory with an unusable record.
fn look_at_unreadable(places: &Places, bad: &leases::Unreadable) -> (Decision, Option<OwnedLease>) {
    let decide = |remove: bool, reason: String| Decision {
        lease: bad.name.clone(),
        subject: Subject::Directory,
        remove,
        reason,
        error: None,
    };
    let RecordError::Missing { .. } = bad.error else {
        let reason = format!("unreadable_record ({})", crabbox_core::fault::chain(&bad.error));
        return (decide(false, reason), None);
    };
    match own(places, &bad.name) {
        Ok(Some(lease)) => {
            let dir = LeaseDir::at(&bad.path);
            // Its maker died between making the directory and writing the record, so only effects in the
            // journal exist.
            match leases::read(&dir) {
                Err(RecordError::Missing { .. }) => (decide(true, "no_record".to_owned()), Some(lease)),
                _ => (decide(false, "busy".to_owned()), None),
            }
        }
        Ok(None) => (decide(false, "busy".to_owned()), None),
        // A directory that is not a lease belongs to somebody else: leave it alone and report no error.
        Err(ReleaseError::Ownership(error)) => (decide(false, format!("not_ours ({error})")), None),
        Err(error) => (
            Decision {
                error: Some(error),
                ..decide(false, "not_ours".to_owned())
            },
            None,
        ),
    }
}

/// Takes a lease's lock if no other process holds it.
fn own(places: &Places, name: &str) -> Result<Option<OwnedLease>, ReleaseError> {
    let id = LeaseId::parse(name).map_err(|_| OwnershipError::NotALease {
        path: places.leases().join(name),
    })?;
    match locks::try_lease(places, name)? {
        Some(guard) => Ok(Some(OwnedLease::prove(places, &id, guard)?)),
        None => Ok(None),
    }
}
