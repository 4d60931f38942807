//! Where things are kept: the Go program's directories, so that both find each other's leases and claims.

use std::path::{Path, PathBuf};

use crabbox_core::id::LeaseId;

/// How the name of a pool's lock begins.
const POOL_LOCK: &str = "pool-";

/// The roots of crabbox's files and the paths below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `$XDG_STATE_HOME/crabbox`, or `state` in the configuration directory.
    pub state: PathBuf,
    /// `$XDG_CONFIG_HOME/crabbox`, or `~/.config/crabbox`.
    pub config: PathBuf,
    /// `$XDG_CACHE_HOME/crabbox`, or `~/.cache/crabbox`: images and fetched programs.
    pub cache: PathBuf,
    /// `/var/lib/crabbox/registry` for root: what leases of all state directories on this host hold.
    pub registry: PathBuf,
}

impl Places {
    /// Places of their own below `root`, as tests have them: nothing of the user's, and no other lease of this host.
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

    /// The lock of one lease. It stands beside the lease directories, so that it outlives the one it guards.
    pub fn lease_lock(&self, id: &str) -> PathBuf {
        self.state.join("firecracker/locks").join(format!("{id}.lock"))
    }

    /// The lock under which ids, slugs, addresses and uids are handed out.
    pub fn allocation_lock(&self) -> PathBuf {
        self.state.join("firecracker/allocation.lock")
    }

    /// The lock of whoever fills the pool with this key.
    pub fn pool_lock(&self, key: &str) -> PathBuf {
        self.state.join(format!("firecracker/{POOL_LOCK}{key}.lock"))
    }

    /// The locks of pools that are there.
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

    /// The directory of the claim files.
    pub fn claims(&self) -> PathBuf {
        self.state.join("claims")
    }

    /// The lock of one claim file, where the Go program has it.
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

    /// What is remembered of working trees.
    pub fn trees(&self) -> PathBuf {
        self.cache.join("trees")
    }

    /// Firecracker and jailer as fetched by us.
    pub fn firecracker(&self) -> PathBuf {
        self.cache.join("firecracker")
    }
}

/// Files of one lease directory.
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

    /// The record that the Go program reads too.
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

    /// The guest's serial console, bounded.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// What Firecracker logs.
    pub fn vmm_log(&self) -> PathBuf {
        self.0.join("firecracker.log")
    }

    /// What its supervisor logs, bounded.
    pub fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Where its supervisor can be asked.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.0.join("supervisor.sock")
    }

    /// Where the jailer builds its chroots.
    pub fn jails(&self) -> PathBuf {
        self.0.join("jail")
    }
}
