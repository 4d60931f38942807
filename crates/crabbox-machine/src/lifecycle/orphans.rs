//! Orphans: objects on the host that carry our tag and belong to no lease.
//!
//! A lease's directory exists before its first object and is removed after its last, so an object that was
//! seen and whose directory does not exist afterwards is an orphan. Only objects with our tag in their name
//! or path are considered, and nothing may be taken from a lease of another state directory: the host's
//! registry and mounted namespaces identify those.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::id::LeaseId;
use crabbox_host::files;
use crabbox_host::lock::LockError;
use crabbox_host::process::{self, ProcessError, ProcessId};
use crabbox_net::NatError;
use crabbox_net::nat;
use crabbox_store::locks;
use crabbox_store::places::Places;
use crabbox_store::registry::{self, RegistryError};

use crate::lease::holders::{self, HoldersError};
use crate::lease::machine;
use crate::resource::cgroup::CGROUPS;

/// Time between SIGTERM and SIGKILL for an orphaned VMM.
const GRACE: Duration = Duration::from_millis(500);

/// An object without a lease.
#[derive(Debug, Clone)]
pub enum Orphan {
    /// A process in the directory of a lease that no longer exists.
    Process {
        /// Its identity.
        id: ProcessId,
        /// The lease.
        lease: String,
    },
    /// A network link of built-in NAT.
    Link {
        /// Its tag.
        tag: String,
        /// The lease that its label names.
        lease: String,
    },
    /// An nft table of built-in NAT.
    Table {
        /// Its tag.
        tag: String,
    },
    /// A control group.
    Cgroup {
        /// Its path.
        path: PathBuf,
    },
    /// The lock file of a lease that no longer exists.
    Lock {
        /// The lease it guarded.
        lease: String,
    },
    /// A registry entry whose lease no longer exists.
    Entry {
        /// The lease.
        lease: LeaseId,
    },
}

impl Orphan {
    /// Its kind, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process { .. } => "process",
            Self::Link { .. } => "link",
            Self::Table { .. } => "table",
            Self::Cgroup { .. } => "cgroup",
            Self::Lock { .. } => "lock",
            Self::Entry { .. } => "entry",
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
            Self::Entry { lease } => lease.to_string(),
        }
    }
}

/// What was found, and which searches failed. A failed search does not suppress what the others found.
#[derive(Debug, Default)]
pub struct OrphanSearch {
    /// The orphans.
    pub orphans: Vec<Orphan>,
    /// The searches that failed or were not made.
    pub unseen: Vec<Unseen>,
}

/// A search that was not made, or failed.
#[derive(Debug)]
pub struct Unseen {
    /// The kind of object that was searched for, in one word: a kind of [`Orphan`], or a word for several of
    /// them.
    pub kind: &'static str,
    /// Why the search has no result.
    pub error: OrphanError,
}

impl Unseen {
    /// Whether objects may exist that the search missed, so that the user has to be informed.
    pub fn is_trouble(&self) -> bool {
        !matches!(self.error, OrphanError::NoRight)
    }
}

impl OrphanSearch {
    /// All orphans, or why something was not searched: for a claim that nothing is left, a missing right to
    /// search is as good as an error.
    pub fn whole(self) -> Result<Vec<Orphan>, OrphanError> {
        match self.unseen.into_iter().next() {
            Some(unseen) => Err(unseen.error),
            None => Ok(self.orphans),
        }
    }

    fn take(&mut self, kind: &'static str, searched: Result<Vec<Orphan>, OrphanError>) {
        match searched {
            Ok(orphans) => self.orphans.extend(orphans),
            Err(error) => self.unseen.push(Unseen { kind, error }),
        }
    }
}

/// Why an orphan could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// The network could not be inspected or changed.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Links and rules cannot be listed without `CAP_NET_ADMIN`. A user without it cannot have made any
    /// either.
    #[error(
        "searching for links and rules needs the right to change networks (CAP_NET_ADMIN): run it as root"
    )]
    NoRight,
    /// Processes could not be listed or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It is unknown what leases of other state directories hold.
    #[error(transparent)]
    Holders(#[from] HoldersError),
    /// The host's registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is unknown which leases there are.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A control group could not be removed.
    #[error("cannot remove control group {}", path.display())]
    Cgroup {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl OrphanError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Registry(error) | Self::Holders(HoldersError::Registry(error)) => error.hints(),
            // It is not proven whose processes these are, so they are not ended here.
            Self::Cgroup { path, .. } => vec![format!(
                "`cat {cgroup}/*/cgroup.procs` names the processes in it; end them if they are not in use, and run `crabbox cleanup --provider firecracker` again",
                cgroup = path.display()
            )],
            _ => Vec::new(),
        }
    }
}

/// Finds every orphan. Objects are listed first, leases afterwards.
pub fn find(places: &Places) -> OrphanSearch {
    let mut found = OrphanSearch::default();
    found.take("process", processes(places));
    if process::may_change_networks() {
        found.take("link", links());
        found.take("table", tables());
    } else {
        found.take("network", Err(OrphanError::NoRight));
    }
    found.take("cgroup", cgroups());
    found.take("lock", lock_files(places));
    let leases = match leases(places) {
        Ok(leases) => leases,
        // Without the list of leases, every object would look like an orphan.
        Err(error) => {
            found.orphans.clear();
            found.take("lease", Err(error));
            return found;
        }
    };
    found.orphans.retain(|orphan| match orphan {
        Orphan::Process { lease, .. } => !leases.contains(lease),
        // A held lock belongs to a process that is just making the lease or tearing it down.
        Orphan::Lock { lease } => !leases.contains(lease) && !locks::is_busy(places, lease).unwrap_or(true),
        Orphan::Link { .. } | Orphan::Table { .. } | Orphan::Cgroup { .. } | Orphan::Entry { .. } => true,
    });
    let held = match held(places) {
        Ok(held) => held,
        // Objects of the host may belong to leases of other state directories.
        Err(error) => {
            let is_ours = |orphan: &Orphan| matches!(orphan, Orphan::Process { .. } | Orphan::Lock { .. });
            found.orphans.retain(is_ours);
            found.take("entry", Err(error));
            return found;
        }
    };
    let mut tags: BTreeSet<String> = leases
        .iter()
        .filter_map(|id| Some(LeaseId::parse(id).ok()?.tag()))
        .collect();
    tags.extend(held.tags);
    found.orphans.retain(|orphan| match orphan {
        Orphan::Link { tag, .. } | Orphan::Table { tag } => !tags.contains(tag),
        Orphan::Cgroup { path } => !tags.contains(tag_of(path)),
        Orphan::Process { .. } | Orphan::Lock { .. } | Orphan::Entry { .. } => true,
    });
    let gone = held.gone.into_iter().map(|lease| Orphan::Entry { lease });
    found.orphans.extend(gone);
    found
}

/// What leases of all state directories hold.
fn held(places: &Places) -> Result<holders::Held, OrphanError> {
    Ok(holders::look(places, &registry::look(places)?)?)
}

fn links() -> Result<Vec<Orphan>, OrphanError> {
    let links = nat::owned_links()?.into_iter().map(|link| Orphan::Link {
        tag: link.tag,
        lease: link.lease,
    });
    Ok(links.collect())
}

fn tables() -> Result<Vec<Orphan>, OrphanError> {
    let tables = nat::owned_tables()?.into_iter();
    Ok(tables.map(|tag| Orphan::Table { tag }).collect())
}

/// Removes one orphan; succeeds if it no longer exists.
pub fn remove(places: &Places, orphan: &Orphan) -> Result<(), OrphanError> {
    match orphan {
        // The lease may have come back, if its directory was moved away and back again.
        Orphan::Process { lease, .. } if is_there(places, lease)? => {}
        Orphan::Process { id, .. } => {
            if let Some(handle) = process::open(id)? {
                handle.terminate(GRACE)?;
            }
        }
        Orphan::Link { tag, lease } => {
            let _host = registry::host_network(places)?;
            nat::remove(lease, tag)?;
        }
        Orphan::Table { tag } => {
            let _host = registry::host_network(places)?;
            nat::remove("", tag)?;
        }
        Orphan::Cgroup { path } => remove_cgroup(path)?,
        Orphan::Lock { lease } => {
            // If another process is just making this lease, it holds the lock, and the lock is no orphan.
            if let Some(guard) = locks::try_lease(places, lease)? {
                guard.remove_while_held()?;
            }
        }
        Orphan::Entry { lease } => holders::reclaim(places, lease)?,
    }
    Ok(())
}

fn leases(places: &Places) -> Result<BTreeSet<String>, OrphanError> {
    Ok(names(&places.leases())?.into_iter().collect())
}

fn is_there(places: &Places, lease: &str) -> Result<bool, OrphanError> {
    let path = places.leases().join(lease);
    files::is_named(&path).map_err(|source| OrphanError::List { path, source })
}

/// The names in `dir`, which need not exist. A directory that cannot be listed is an error: without the list
/// of leases, everything would look like an orphan.
fn names(dir: &Path) -> Result<Vec<String>, OrphanError> {
    let failed = |source| OrphanError::List {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// VMMs whose root, working directory or socket is in a lease directory.
fn processes(places: &Places) -> Result<Vec<Orphan>, OrphanError> {
    let base = places.leases();
    let spellings = machine::spellings(&base);
    let mut found = Vec::new();
    for candidate in process::list()? {
        let lease = [&candidate.root, &candidate.cwd]
            .into_iter()
            .flatten()
            .find_map(|at| machine::named(at, &spellings));
        // A user's shell may have its working directory in a lease's directory; only a VMM has the lease's
        // tag among its arguments.
        let tagged = |tag: &str| {
            candidate
                .cmdline
                .iter()
                .any(|arg| arg.to_string_lossy().ends_with(tag))
        };
        let lease = lease
            .filter(|lease| tagged(&lease.tag()))
            .or_else(|| machine::lease_of(&candidate, &base));
        if let Some(lease) = lease {
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

/// Control groups named `crabbox-<8 hex>` at the root of the hierarchy, which is the name that we pass to the
/// jailer.
fn cgroups() -> Result<Vec<Orphan>, OrphanError> {
    let root = Path::new(CGROUPS);
    let ours = |name: &String| {
        name.strip_prefix("crabbox-")
            .is_some_and(|tag| tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let groups = names(root)?.into_iter().filter(ours).map(|name| Orphan::Cgroup {
        path: root.join(name),
    });
    Ok(groups.collect())
}

fn remove_cgroup(path: &Path) -> Result<(), OrphanError> {
    let failed = |source| OrphanError::Cgroup {
        path: path.to_owned(),
        source,
    };
    for inner in names(path)?
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

fn lock_files(places: &Places) -> Result<Vec<Orphan>, OrphanError> {
    let dir = places
        .lease_lock("x")
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default();
    let lease = |name: String| LeaseId::parse(name.strip_suffix(".lock")?).ok();
    let locks = names(&dir)?.into_iter().filter_map(lease).map(|id| Orphan::Lock {
        lease: id.to_string(),
    });
    Ok(locks.collect())
}

#[cfg(test)]
mod tests {
    use crabbox_host::netns;
    use crabbox_net::NatSpec;
    use crabbox_store::places::LeaseDir;

    use super::*;

    #[test]
    fn a_lock_without_a_lease_is_an_orphan_and_one_that_is_held_stays() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let ids = ["cbx_000000000001", "cbx_000000000002", "cbx_000000000003"];
        drop(locks::try_lease(&places, ids[0]).unwrap());
        let held = locks::try_lease(&places, ids[1]).unwrap();
        drop(locks::try_lease(&places, ids[2]).unwrap());
        std::fs::create_dir_all(places.leases().join(ids[2])).unwrap();
        let locks: Vec<Orphan> = find(&places)
            .whole()
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
    fn a_search_without_the_right_to_make_it_is_none_that_found_nothing() {
        let unseen = Unseen {
            kind: "link",
            error: OrphanError::NoRight,
        };
        assert!(!unseen.is_trouble());
        let search = OrphanSearch {
            unseen: vec![unseen],
            ..OrphanSearch::default()
        };
        assert!(matches!(search.whole(), Err(OrphanError::NoRight)));
    }

    #[test]
    fn what_another_state_directory_has_is_no_orphan_with_an_entry_or_a_mounted_namespace() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let places = |name: &str| Places {
            registry: root.join("registry"),
            ..Places::below(&root.join(name))
        };
        let (here, there) = (places("here"), places("there"));
        // A random id, so that no process or mount of another test has it.
        let id = LeaseId::from_random(crabbox_host::random::bytes().unwrap());
        let dir = LeaseDir::at(there.lease(&id));
        std::fs::create_dir_all(dir.path()).unwrap();
        let spec = NatSpec {
            lease: id.to_string(),
            tag: id.tag(),
            netns: dir.netns(),
            ifname: "veth0".to_owned(),
            subnet: "10.213.0.0/30".parse().unwrap(),
        };
        // The lease's namespace is at its usual path first, and later at one where no search looks.
        let hidden = root.join("hidden");
        let host = root.join("host");
        netns::create(&host).unwrap();
        netns::create(&dir.netns()).unwrap();
        netns::create(&hidden).unwrap();
        let kinds = |places: &Places| -> Vec<&'static str> {
            let found = find(places).whole().unwrap();
            let theirs = |orphan: &&Orphan| orphan.name().contains(&id.tag());
            found.iter().filter(theirs).map(Orphan::kind).collect()
        };
        let looked = netns::within(&host, || {
            nat::attach_nat(&spec).unwrap();
            let by_namespace = kinds(&here);
            // Move the namespace out of sight, as in another mount namespace: now only the registry entry
            // shows the lease. Detach first, because the kernel ends a namespace with a delay.
            nat::detach_nat(&spec).unwrap();
            netns::remove(&dir.netns()).unwrap();
            let moved = NatSpec {
                netns: hidden.clone(),
                ..spec.clone()
            };
            nat::attach_nat(&moved).unwrap();
            let by_nothing = kinds(&here);
            let registry = registry::Registry::lock(&there).unwrap();
            let holding = crabbox_core::holding::Holding {
                lease: id.clone(),
                owner: holders::owner(&there).unwrap(),
                uid: None,
                block: None,
            };
            registry.put(&holding).unwrap();
            drop(registry);
            let by_entry = kinds(&here);
            nat::detach_nat(&moved).unwrap();
            (by_namespace, by_nothing, by_entry)
        });
        for path in [&hidden, &dir.netns(), &host] {
            netns::remove(path).unwrap();
        }
        let (by_namespace, by_nothing, by_entry) = looked.unwrap();
        assert_eq!(by_namespace, Vec::<&str>::new());
        assert_eq!(by_nothing, ["link", "table"]);
        assert_eq!(by_entry, Vec::<&str>::new());
        // Once the lease is gone, its entry is an orphan.
        std::fs::remove_dir_all(dir.path()).unwrap();
        let found = netns::create(&host).and_then(|()| netns::within(&host, || find(&here).whole().unwrap()));
        netns::remove(&host).unwrap();
        let entries: Vec<String> = found.unwrap().iter().map(Orphan::name).collect();
        assert!(entries.contains(&id.to_string()), "{entries:?}");
    }

    #[test]
    fn only_names_with_our_tag_are_control_groups_of_ours() {
        assert_eq!(tag_of(Path::new("/sys/fs/cgroup/crabbox-0a1b2c3d")), "0a1b2c3d");
        assert_eq!(tag_of(Path::new("/sys/fs/cgroup/system.slice")), "");
    }
}
