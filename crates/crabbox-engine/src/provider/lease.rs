//! A lease as commands see it, whichever provider made it.

use std::path::{Path, PathBuf};

use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
pub use crabbox_ssh::target::Target;

use crate::fleet::address::KvmHost;

/// A leased machine.
#[derive(Debug, Clone)]
pub struct Lease {
    /// `cbx_…`, or the static lease's id.
    pub id: String,
    /// Its slug.
    pub slug: String,
    /// The provider's name for the machine.
    pub name: String,
    /// The provider's id of the machine; users see it as the server.
    pub cloud_id: String,
    /// The provider that made it.
    pub provider: &'static str,
    /// Machine type.
    pub server_type: String,
    /// State: the label's, or `stopped` if the machine is not running any more.
    pub state: LeaseState,
    /// Its labels.
    pub labels: Labels,
    /// The KVM host that it is on; `None` if that is this machine.
    pub kvm_host: Option<KvmHost>,
    /// The address for reaching it from this host, or its id if only a KVM host can reach it; empty while it
    /// has no address.
    pub address: String,
    /// How to enter it; `None` while it has no address.
    pub target: Option<Target>,
    /// Other ports that are tried if nothing answers at the target's.
    pub fallback_ports: Vec<u16>,
    /// Directory under which trees are synced.
    pub work_root: String,
    /// Whether it was seen with a claim when it was resolved. Such a lease is not claimed anew once its claim
    /// is gone: somebody has released it since. A listing does not look for claims.
    pub is_claimed: bool,
    /// Whether its VMM runs as root, without a jail.
    pub unjailed: bool,
}

impl Lease {
    /// The server id that users see.
    pub fn display_id(&self) -> &str {
        &self.cloud_id
    }

    /// Idle limit in seconds.
    pub fn idle_seconds(&self) -> i64 {
        labels::idle_seconds(&self.labels)
    }

    /// When it expires, unix seconds.
    pub fn expires_at(&self) -> Option<i64> {
        labels::time(&self.labels, "expires_at")
    }

    /// Whether the user asked to keep it.
    pub fn is_kept(&self) -> bool {
        labels::keep(&self.labels)
    }

    /// The directory that a repository called `name` is synced to.
    pub fn workdir(&self, name: &str) -> PathBuf {
        Path::new(&self.work_root).join(&self.id).join(name)
    }
}
