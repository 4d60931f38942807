//! What the command line asks the supervisor to make: a lease, described completely.
//!
//! Everything is resolved before the request is written: absolute paths, chosen images, network mode. The supervisor must
//! never read configuration or the environment.

use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::admission::{Limits, Quota, VMM_OVERHEAD_MIB};
use crabbox_core::external::External;
use crabbox_core::network::NetworkMode;
use serde::{Deserialize, Serialize};

use crate::context::SavedPlaces;

/// A lease to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcquireRequest {
    /// Where state is kept.
    pub places: SavedPlaces,
    /// Where the control socket of the lease's shared SSH connection goes.
    pub control_dir: PathBuf,
    /// The lease id, drawn by the caller so that it can clean up after a dead supervisor.
    pub lease_id: String,
    /// The slug the user asked for, normalised.
    pub slug: Option<String>,
    /// What the program calls it that has it made, where that is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// Whether the user asked to keep the lease.
    pub keep: bool,
    /// Time to live.
    pub ttl: Duration,
    /// Idle limit.
    pub idle: Duration,
    /// Configuration profile; a label.
    pub profile: String,
    /// Machine class; a label.
    pub class: String,
    /// Machine type; a label.
    pub server_type: String,
    /// Ports that it is said to offer; a label, empty for none.
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
    /// When it is refused for want of room.
    pub limits: Limits,
    /// Programs that run on the host.
    pub programs: Programs,
    /// What boots in it.
    pub guest: GuestSource,
    /// How its machine starts.
    #[serde(default, skip_serializing_if = "Start::is_boot")]
    pub start: Start,
    /// How it reaches the network.
    pub network: NetworkRequest,
    /// The pool that it is of, or would be; `None` where none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Whose it is, where that is somebody who came from another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// How long start and readiness may take together.
    pub launch_timeout: Duration,
    /// Whether releasing the lease deletes its directory.
    pub delete_on_release: bool,
    /// The failpoint that is armed; empty for none.
    pub failpoint: String,
}

/// What a VMM takes beyond what it may have otherwise while it writes its guest's memory to a file, in MiB: the file's pages count as its own
/// until they are on the disk.
const FREEZING_MIB: u64 = 256;

impl AcquireRequest {
    /// The pool for which this lease is made ahead of its use.
    pub(crate) fn member_of(&self) -> Option<&Pool> {
        self.pool.as_ref().filter(|pool| pool.member)
    }

    /// The most memory that its lease takes up, in MiB: its control group's limit.
    pub(crate) fn most_memory_mib(&self) -> u64 {
        let freezing = match self.start {
            Start::Freeze { .. } => FREEZING_MIB,
            Start::Boot | Start::Restore { .. } => 0,
        };
        u64::from(self.machine.memory_mib) + VMM_OVERHEAD_MIB + freezing
    }
}

/// Somebody who came from another machine and has leases here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name, as a label holds it ([`crabbox_core::labels::is_owner_name`]).
    pub name: String,
    /// The public key that opens the guest, in OpenSSH's form. The private one stays with its owner.
    pub public_key: String,
    /// What one owner may have.
    pub quota: Quota,
}

/// Leases that are made ahead of their use, all alike but for what is given to each when it is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// What its leases have alike, as a word that a label can hold.
    pub key: String,
    /// The image of its leases as it was asked for, empty for the usual one: what that is may change while an order waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// How many there are to be.
    pub size: u32,
    /// How long one of them waits to be taken.
    pub max_age: Duration,
    /// Whether they may come of a template.
    pub warm: bool,
    /// How long each of them may take to be made.
    pub launch_timeout: Duration,
    /// This program's own file, which makes new ones.
    pub exe: PathBuf,
    /// Whether the lease that is asked for is made to wait in it. Otherwise it is somebody's, and has the pool filled up once it is.
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
    /// First uid (and gid) of the range that leases draw from.
    pub first_uid: u32,
    /// How many uids the range has.
    pub uid_count: u32,
}

/// What boots in the machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestSource {
    /// An image of ours: a shared read-only base with a private layer above it.
    Ours {
        /// Its directory in the image store.
        dir: PathBuf,
        /// Its digest or name, for the record.
        digest: String,
    },
    /// Anyone's kernel and root file system, seeded through NoCloud.
    Foreign {
        /// An ELF kernel.
        kernel: PathBuf,
        /// An ext4 image.
        rootfs: PathBuf,
        /// The initrd of ours that a kernel with its disk drivers as modules needs.
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
    /// It boots, and is frozen before it is anybody's: no lease comes of it but the parts of a template.
    Freeze {
        /// The empty directory for the parts, on the file system of the leases.
        dir: PathBuf,
        /// What its guest knows the template by.
        token: String,
    },
    /// It goes on from a template.
    Restore {
        /// The template's directory.
        dir: PathBuf,
        /// What its guest knows the template by.
        token: String,
    },
}

impl Start {
    /// Whether its kernel boots, and that is all.
    pub fn is_boot(&self) -> bool {
        matches!(self, Self::Boot)
    }
}

/// The network mode and what it needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Which mode; `auto` is decided before a request is written.
    pub mode: NetworkMode,
    /// CNI configuration directory.
    pub cni_conf_dir: PathBuf,
    /// CNI plugin directories, first match wins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// CNI network name.
    pub cni_network: String,
    /// Range that built-in networking takes its /30s from.
    pub nat_range: ipnet::Ipv4Net,
}
