//! The other way of cleanup: objects on the host that bear our tag and belong to no lease.
//!
//! A lease's directory is there before its first object and goes after its last, so an object that was seen and whose directory is not
//! there afterwards belongs to nobody. Only what carries our tag in its name or place is ever looked at.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::id::LeaseId;
use crabbox_host::lock::LockError;
use crabbox_host::process::{self, ProcessError, ProcessId};
use crabbox_net::NatError;
use crabbox_net::nat;
use crabbox_store::locks;
use crabbox_store::places::Places;

use crate::vmm::CGROUPS;

/// How long an orphaned VMM gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(500);

/// An object without a lease.
#[derive(Debug, Clone)]
pub enum Orphan {
    /// A process in the directory of a lease that is gone.
    Process {
        /// Its identity.
        id: ProcessId,
        /// The lease.
        lease: String,
    },
    /// A link of built-in networking.
    Link {
        /// Its tag.
        tag: String,
        /// The lease on its label.
        lease: String,
    },
    /// An nft table of built-in networking.
    Table {
        /// Its tag.
        tag: String,
    },
    /// A control group.
    Cgroup {
        /// Its path.
        path: PathBuf,
    },
    /// The lock file of a lease that is gone.
    Lock {
        /// The lease it guarded.
        lease: String,
    },
}

impl Orphan {
    /// What it is, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process { .. } => "process",
            Self::Link { .. } => "link",
            Self::Table { .. } => "table",
            Self::Cgroup { .. } => "cgroup",
            Self::Lock { .. } => "lock",
        }
    }

    /// Its name on the host.
    pub fn name(&self) -> String {
        match self {
            Self::Process { id, .. } => id.pid.to_string(),
            Self::Link { tag, .. } => format!("cbx{tag}"),
            Self::Table { tag } => format!("crabbox_{tag}"),
            Self::Cgroup { path } => path.display().to_string(),
            Self::Lock { lease } => format!("{lease}.lock"),
        }
    }
}

/// Why an orphan could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// Networking could not be looked at or changed.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Processes could not be looked at or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A lock could not be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A control group could not be removed.
    #[error("cannot remove control group {}", path.display())]
    Cgroup {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Finds every orphan. Objects are seen first, leases afterwards.
pub fn find(places: &Places) -> Result<Vec<Orphan>, OrphanError> {
    let mut seen = processes(places)?;
    for link in nat::owned_links()? {
        seen.push(Orphan::Link {
            tag: link.tag,
            lease: link.lease,
        });
    }
    seen.extend(nat::owned_tables()?.into_iter().map(|tag| Orphan::Table { tag }));
    seen.extend(cgroups());
    seen.extend(lock_files(places));
    let leases = leases(places);
    let tags: BTreeSet<String> = leases
        .iter()
        .filter_map(|id| Some(LeaseId::parse(id).ok()?.tag()))
        .collect();
    seen.retain(|orphan| match orphan {
        Orphan::Process { lease, .. } => !leases.contains(lease),
        // Held, it belongs to somebody who is just making the lease, or giving it back.
        Orphan::Lock { lease } => !leases.contains(lease) && !locks::is_busy(places, lease).unwrap_or(true),
        Orphan::Link { tag, .. } | Orphan::Table { tag } => !tags.contains(tag),
        Orphan::Cgroup { path } => !tags.contains(tag_of(path)),
    });
    Ok(seen)
}

/// Removes one orphan; gone already is fine.
pub fn remove(places: &Places, orphan: &Orphan) -> Result<(), OrphanError> {
    match orphan {
        Orphan::Process { id, .. } => {
            if let Some(handle) = id.open()? {
                handle.terminate(GRACE)?;
            }
        }
        Orphan::Link { tag, lease } => {
            let _host = locks::allocation(places)?;
            nat::remove(lease, tag)?;
        }
        Orphan::Table { tag } => {
            let _host = locks::allocation(places)?;
            nat::remove("", tag)?;
        }
        Orphan::Cgroup { path } => remove_cgroup(path)?,
        Orphan::Lock { lease } => {
            // Somebody who is just making this lease holds it: then it is no orphan.
            if let Some(guard) = locks::try_lease(places, lease)? {
                guard.remove_while_held()?;
            }
        }
    }
    Ok(())
}

fn leases(places: &Places) -> BTreeSet<String> {
    names(&places.leases()).into_iter().collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).collect());
    let entries: Vec<std::fs::DirEntry> = entries.unwrap_or_default();
    entries
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// VMMs whose root or working directory lies in a lease directory.
fn processes(places: &Places) -> Result<Vec<Orphan>, OrphanError> {
    let base = places.leases();
    let mut found = Vec::new();
    for candidate in process::list()? {
        let lease = [&candidate.root, &candidate.cwd]
            .into_iter()
            .flatten()
            .find_map(|at| {
                let inside = at
                    .strip_prefix(&base)
                    .ok()?
                    .components()
                    .next()?
                    .as_os_str()
                    .to_string_lossy()
                    .into_owned();
                // The kernel marks a directory that is gone behind its name.
                LeaseId::parse(inside.trim_end_matches(" (deleted)")).ok()
            });
        // A user's shell may stand in a lease's directory; a VMM has the lease's tag among its arguments.
        let tagged = |tag: &str| {
            candidate
                .cmdline
                .iter()
                .any(|arg| arg.to_string_lossy().ends_with(tag))
        };
        if let Some(lease) = lease
            && tagged(&lease.tag())
        {
            found.push(Orphan::Process {
                id: candidate.id,
                lease: lease.to_string(),
            });
        }
    }
    Ok(found)
}

/// The tag at the end of a control group's name.
fn tag_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("crabbox-"))
        .unwrap_or_default()
}

/// Control groups named `crabbox-<8 hex>` at the root, as the jailer is told to make them.
fn cgroups() -> Vec<Orphan> {
    let root = Path::new(CGROUPS);
    let ours = |name: &String| {
        name.strip_prefix("crabbox-")
            .is_some_and(|tag| tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    names(root)
        .into_iter()
        .filter(ours)
        .map(|name| Orphan::Cgroup {
            path: root.join(name),
        })
        .collect()
}

fn remove_cgroup(path: &Path) -> Result<(), OrphanError> {
    let failed = |source| OrphanError::Cgroup {
        path: path.to_owned(),
        source,
    };
    for inner in names(path)
        .into_iter()
        .map(|name| path.join(name))
        .filter(|inner| inner.is_dir())
    {
        std::fs::remove_dir(&inner).map_err(failed)?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

fn lock_files(places: &Places) -> Vec<Orphan> {
    let dir = places
        .lease_lock("x")
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default();
    let lease = |name: String| LeaseId::parse(name.strip_suffix(".lock")?).ok();
    names(&dir)
        .into_iter()
        .filter_map(lease)
        .map(|id| Orphan::Lock {
            lease: id.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_without_a_lease_is_an_orphan_and_one_that_is_held_stays() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            state: root.path().join("state"),
            config: root.path().join("config"),
            cache: root.path().join("cache"),
        };
        let ids = ["cbx_000000000001", "cbx_000000000002", "cbx_000000000003"];
        drop(locks::try_lease(&places, ids[0]).unwrap());
        let held = locks::try_lease(&places, ids[1]).unwrap();
        drop(locks::try_lease(&places, ids[2]).unwrap());
        std::fs::create_dir_all(places.leases().join(ids[2])).unwrap();
        let locks: Vec<Orphan> = find(&places)
            .unwrap()
            .into_iter()
            .filter(|orphan| matches!(orphan, Orphan::Lock { .. }))
            .collect();
        let names: Vec<String> = locks.iter().map(Orphan::name).collect();
        assert_eq!(names, ["cbx_000000000001.lock"]);
        for orphan in &locks {
            remove(&places, orphan).unwrap();
        }
        let there = |id: &str| places.lease_lock(id).exists();
        assert_eq!((there(ids[0]), there(ids[1]), there(ids[2])), (false, true, true));
        drop(held);
    }

    #[test]
    fn only_names_with_our_tag_are_control_groups_of_ours() {
        assert_eq!(tag_of(Path::new("/sys/fs/cgroup/crabbox-0a1b2c3d")), "0a1b2c3d");
        assert_eq!(tag_of(Path::new("/sys/fs/cgroup/system.slice")), "");
    }
}
