//! The request from the command line to the supervisor: a complete description of a lease.
//!
//! Everything is resolved before the request is written: absolute paths, chosen images, network mode. The
//! supervisor must never read configuration or the environment.

use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::admission::{Asker, Limits, Quota, VMM_OVERHEAD_MIB};
use crabbox_core::external::External;
use crabbox_core::network::NetworkMode;
use crabbox_core::volume::Volume;
use serde::{Deserialize, Serialize};

use crate::context::SavedPlaces;

/// A lease to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcquireRequest {
    /// Where state is kept.
    pub places: SavedPlaces,
    /// Where the control socket of the lease's shared SSH connection is made.
    pub control_dir: PathBuf,
    /// The lease id, chosen by the caller so that the caller can clean up after a dead supervisor.
    pub lease_id: String,
    /// The requested slug, normalised.
    pub slug: Option<String>,
    /// The identity that another program gives the lease, if another program has it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// Whether the user asked to keep the lease.
    pub keep: bool,
    /// Time to live.
    pub ttl: Duration,
    /// Idle timeout.
    pub idle: Duration,
    /// Configuration profile; a label.
    pub profile: String,
    /// Machine class; a label.
    pub class: String,
    /// Machine type; a label.
    pub server_type: String,
    /// Ports that the lease is declared to offer; a label, empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub exposed: String,
    /// User to make in the guest and to log in as.
    pub ssh_user: String,
    /// Port of the guest's sshd.
    pub ssh_port: u16,
    /// Directory in the guest under which trees are synced.
    pub work_root: String,
    /// Size of the machine.
    pub machine: Machine,
    /// The limits for admission.
    pub limits: Limits,
    /// Programs that run on the host.
    pub programs: Programs,
    /// The image or kernel that boots.
    pub guest: GuestSource,
    /// How its machine starts.
    #[serde(default, skip_serializing_if = "Start::is_boot")]
    pub start: Start,
    /// How it reaches the network.
    pub network: NetworkRequest,
    /// The requested volumes, in the order of their drives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// The pool that the lease belongs to, or would; `None` if pools are off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// The owner, if the lease was requested from another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The scheduler's job that the lease belongs to, if a scheduler placed it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Time limit for start and readiness together.
    pub launch_timeout: Duration,
    /// Whether releasing the lease deletes its directory.
    pub delete_on_release: bool,
    /// The armed failpoint; empty for none.
    pub failpoint: String,
}

/// Additional memory for a VMM while it writes its guest's memory to a file, in MiB: the file's pages are
/// charged to its control group until they are on the disk.
const FREEZING_MIB: u64 = 256;

impl AcquireRequest {
    /// Who requested the lease, for the hints when there is no room.
    pub(crate) fn asker(&self) -> Asker {
        match self.owner {
            Some(_) => Asker::Afar,
            None => Asker::Here,
        }
    }

    /// The pool for which this lease is made ahead of its use.
    pub(crate) fn member_of(&self) -> Option<&Pool> {
        self.pool.as_ref().filter(|pool| pool.member)
    }

    /// The memory limit of the lease's control group, in MiB.
    pub(crate) fn most_memory_mib(&self) -> u64 {
        let freezing = match self.start {
            Start::Freeze { .. } => FREEZING_MIB,
            Start::Boot | Start::Restore { .. } => 0,
        };
        u64::from(self.machine.memory_mib) + VMM_OVERHEAD_MIB + freezing
    }
}

/// A remote owner of leases on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name, in the form that a label can hold ([`crabbox_core::labels::is_owner_name`]).
    pub name: String,
    /// The public login key for the guest, in OpenSSH format. The private key stays with its owner.
    pub public_key: String,
    /// The quota of one owner.
    pub quota: Quota,
}

/// A job of the scheduler that places leases on hosts. Its one process is the lease's supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: u32,
    /// The scheduler's name of the host on which it runs.
    pub node: String,
}

/// A pool: leases made before they are needed, identical except for what is set when one is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The key of the pool: identifies the common properties, in the form that a label can hold.
    pub key: String,
    /// The image of its leases as requested, empty for the default one, which may change while a request to
    /// fill the pool waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The number of members.
    pub size: u32,
    /// The maximum age of a member.
    pub max_age: Duration,
    /// Whether members may be restored from a template.
    pub warm: bool,
    /// Launch timeout of a member.
    pub launch_timeout: Duration,
    /// The path of this program, which makes new members.
    pub exe: PathBuf,
    /// Whether the requested lease becomes a member. Otherwise it is claimed, and causes a refill afterwards.
    pub member: bool,
}

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Virtual CPUs, from 1 to 32 (Firecracker's limit).
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB.
    pub disk_mib: u32,
}

/// Programs that run on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Programs {
    /// The VMM, absolute.
    pub firecracker: PathBuf,
    /// The jailer, absolute; `None` runs the VMM without a jail.
    pub jailer: Option<Jail>,
}

/// How the VMM is jailed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jail {
    /// The jailer, absolute.
    pub jailer: PathBuf,
    /// First uid (and gid) of the range from which leases get theirs.
    pub first_uid: u32,
    /// Number of uids in the range.
    pub uid_count: u32,
}

/// What boots in the machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestSource {
    /// One of our images: a shared read-only base with a private layer above it.
    Ours {
        /// Its directory in the image store.
        dir: PathBuf,
        /// Its digest or name, for the record.
        digest: String,
    },
    /// A foreign kernel and root file system, seeded through NoCloud.
    Foreign {
        /// An ELF kernel.
        kernel: PathBuf,
        /// An ext4 image.
        rootfs: PathBuf,
        /// Our initrd, for a kernel with its disk drivers as modules.
        initrd: Option<PathBuf>,
    },
}

/// How a machine starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Start {
    /// Its kernel boots.
    #[default]
    Boot,
    /// It boots, and is snapshotted before it has an identity: the result is the parts of a template, not a
    /// lease.
    Freeze {
        /// The empty directory for the parts, on the file system of the leases.
        dir: PathBuf,
        /// The token by which its guest identifies the template.
        token: String,
    },
    /// It is restored from a template.
    Restore {
        /// The template's directory.
        dir: PathBuf,
        /// The token by which its guest identifies the template.
        token: String,
    },
}

impl Start {
    /// Whether it is an ordinary boot.
    pub fn is_boot(&self) -> bool {
        matches!(self, Self::Boot)
    }
}

/// The network mode and its settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// The mode; `auto` is resolved before a request is written.
    pub mode: NetworkMode,
    /// CNI configuration directory.
    pub cni_conf_dir: PathBuf,
    /// CNI plugin directories, first match wins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// CNI network name.
    pub cni_network: String,
    /// Range from which built-in NAT takes its /30s.
    pub nat_range: ipnet::Ipv4Net,
}
