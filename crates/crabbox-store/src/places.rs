//! The paths of all files of crabbox. They are the Go program's, so that both programs find each other's
//! leases and claims; nothing here may create one.

use std::path::{Path, PathBuf};

use crabbox_core::id::LeaseId;
use crabbox_host::files;

/// Prefix of the name of a pool's lock.
const POOL_LOCK: &str = "pool-";

/// The root directories of crabbox's files, and the paths in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `$XDG_STATE_HOME/crabbox`, or `state` in the configuration directory.
    pub state: PathBuf,
    /// `$XDG_CONFIG_HOME/crabbox`, or `~/.config/crabbox`.
    pub config: PathBuf,
    /// `$XDG_CACHE_HOME/crabbox`, or `~/.cache/crabbox`: images and fetched programs.
    pub cache: PathBuf,
    /// `/var/lib/crabbox/registry` for root: the registry of the leases of all state directories on this
    /// host.
    pub registry: PathBuf,
}

impl Places {
    /// Separate places in `root` for tests: no files of the user, and no other lease of this host.
    pub fn below(root: &Path) -> Self {
        Self {
            state: root.join("state"),
            config: root.join("config"),
            cache: root.join("cache"),
            registry: root.join("registry"),
        }
    }

    /// The directory that holds the lease directories.
    pub fn leases(&self) -> PathBuf {
        self.state.join("firecracker/leases")
    }

    /// The directory of one lease.
    pub fn lease(&self, id: &LeaseId) -> PathBuf {
        self.leases().join(id.as_str())
    }

    /// The lock of one lease. It is outside the lease directory, so that it outlives the directory.
    pub fn lease_lock(&self, id: &str) -> PathBuf {
        self.state.join("firecracker/locks").join(format!("{id}.lock"))
    }

    /// The directory of the sockets at which jobs of a scheduler wait for the requests for their leases.
    pub fn jobs(&self) -> PathBuf {
        self.state.join("firecracker/jobs")
    }

    /// The socket of the job with this number.
    pub fn job_socket(&self, job: u32) -> PathBuf {
        self.jobs().join(format!("{job}.sock"))
    }

    /// The lock under which ids, slugs, addresses and uids are allocated.
    pub fn allocation_lock(&self) -> PathBuf {
        self.state.join("firecracker/allocation.lock")
    }

    /// The lock of the process that fills the pool with this key.
    pub fn pool_lock(&self, key: &str) -> PathBuf {
        self.state.join(format!("firecracker/{POOL_LOCK}{key}.lock"))
    }

    /// The locks of existing pools.
    pub fn pool_locks(&self) -> Vec<PathBuf> {
        let is_one = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(POOL_LOCK))
                && path.extension().is_some_and(|extension| extension == "lock")
        };
        let entries = std::fs::read_dir(self.state.join("firecracker"));
        let paths = entries.into_iter().flatten().filter_map(Result::ok);
        paths.map(|entry| entry.path()).filter(is_one).collect()
    }

    /// The directory of the volumes that outlive their leases: beside the leases, so that their images can be
    /// linked into those.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("firecracker/volumes")
    }

    /// The lock under which room is promised to volumes.
    pub fn volumes_lock(&self) -> PathBuf {
        self.volumes().with_extension("lock")
    }

    /// The directory of the claim files.
    pub fn claims(&self) -> PathBuf {
        self.state.join("claims")
    }

    /// The lock of one claim file, at the Go program's path.
    pub(crate) fn claim_lock(&self, id: &str) -> PathBuf {
        self.state.join("claim-locks").join(format!("{id}.json.lock"))
    }

    /// The SSH key directory of one lease.
    pub fn keys(&self, id: &str) -> PathBuf {
        self.config.join("testboxes").join(id)
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// The memories of working trees.
    pub fn trees(&self) -> PathBuf {
        self.cache.join("trees")
    }

    /// Firecracker and jailer as downloaded by `setup`.
    pub fn firecracker(&self) -> PathBuf {
        self.cache.join("firecracker")
    }
}

/// The files of one lease directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseDir(PathBuf);

impl LeaseDir {
    /// The lease directory at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether nothing has its name any more: the lease was torn down. False if that is unknown, such as for a
    /// directory that cannot be searched, because whoever finds a lease gone forgets it.
    pub fn is_gone(&self) -> bool {
        files::is_named(&self.0).is_ok_and(|is_named| !is_named)
    }

    /// The record, which the Go program reads too.
    pub fn metadata(&self) -> PathBuf {
        self.0.join("metadata.json")
    }

    /// Our journal.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    /// The bind-mounted network namespace.
    pub fn netns(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// Cache directory of the CNI attachment.
    pub fn cni_cache(&self) -> PathBuf {
        self.0.join("cni-cache")
    }

    /// The guest's serial console, limited in size.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// Firecracker's log.
    pub fn vmm_log(&self) -> PathBuf {
        self.0.join("firecracker.log")
    }

    /// The supervisor's log, limited in size.
    pub fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// The supervisor's control socket.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.0.join("supervisor.sock")
    }

    /// The directory in which the jailer makes its chroots.
    pub fn jails(&self) -> PathBuf {
        self.0.join("jail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_gone_only_if_nothing_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| LeaseDir::at(dir.path().join(name));
        assert!(at("none").is_gone());
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("link")).unwrap();
        // The last one cannot be looked for.
        for name in ["file", "link", "file/lease"] {
            assert!(!at(name).is_gone(), "{name}");
        }
    }
}
