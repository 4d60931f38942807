//! What the doctor observed, as plain values, so that every judgement can be tested without a host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crabbox_core::fault;
use crabbox_net::nat::{Filters, Passage};

use crate::host::probe::{Judged, Verdict};

/// The system's error message when something could not be observed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct ObserveError {
    /// The message.
    pub words: String,
}

impl ObserveError {
    /// Trouble with this message.
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into() }
    }

    /// A failed system call in the Go program's words: `stat /x: no such file or directory`.
    pub fn call(call: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(format!("{call} {}: {}", path.display(), errno_words(error)))
    }

    /// An error and its causes in one line.
    pub fn chain(error: &dyn std::error::Error) -> Self {
        Self::new(fault::messages(error).join(": ").replace('\n', " "))
    }
}

/// The system's error message as Go prints it: lower case, without the number.
fn errno_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

/// An observation, or why it could not be made.
pub type Observed<T> = Result<T, ObserveError>;

/// The kind of file that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A device, socket or pipe.
    Other,
}

/// A path and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path.
    pub path: PathBuf,
    /// What it leads to.
    pub kind: Observed<FileKind>,
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Ok(FileKind::Directory)
    }
}

/// A program of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Where it is.
    pub path: PathBuf,
    /// Its version as numbers, as far as it could be read.
    pub version: Option<Vec<u32>>,
}

impl Tool {
    /// Its version as text, or `?`.
    pub(crate) fn version_text(&self) -> String {
        self.version.as_ref().map_or_else(
            || "?".to_owned(),
            |numbers| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join("."),
        )
    }
}

/// The programs that were looked for, by name; `None` for a missing one.
pub type Tools = BTreeMap<&'static str, Option<Tool>>;

/// `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kvm {
    /// What it is.
    pub kind: Observed<FileKind>,
    /// Whether it opens for reading and writing.
    pub open: Observed<()>,
    /// Whether it answers with the known API version.
    pub answers: Observed<()>,
    /// The result of the boot probe; `None` if it was not requested.
    pub probe: Option<Observed<Judged>>,
    /// The verdict of an earlier probe, if it is still valid.
    pub remembered: Option<Verdict>,
}

/// Firecracker or its jailer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, without a `v`.
    pub version: Observed<String>,
    /// Its SHA-256.
    pub digest: Observed<String>,
    /// The first file or directory on its path that a user other than root may change.
    pub loose: Option<PathBuf>,
}

/// The programs of the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmm {
    /// Firecracker.
    pub firecracker: Observed<Binary>,
    /// The jailer that leases will use; `Ok(None)` if they use none.
    pub jailer: Observed<Option<Binary>>,
    /// SHA-256 of the pinned Firecracker and its jailer.
    pub pinned: [String; 2],
}

/// The machine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The system, as Go names it.
    pub os: String,
    /// Our effective user id.
    pub euid: u32,
    /// Our effective capabilities, as bits.
    pub capabilities: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Total memory, in MiB.
    pub memory_mib: u64,
    /// Memory available without swapping, in MiB.
    pub available_mib: u64,
    /// Whether `/dev/net/tun` opens.
    pub tun: Observed<()>,
    /// Controllers of the cgroup v2 hierarchy; `None` without it.
    pub cgroup: Option<Vec<String>>,
    /// Whether this host is itself a virtual machine.
    pub nested: bool,
    /// Swap areas that are in use and not encrypted.
    pub swaps: Vec<String>,
    /// Whether the kernel merges equal pages of different processes (KSM).
    pub ksm: bool,
    /// Whether logical processors share cores (SMT).
    pub smt: bool,
    /// The vulnerabilities that the kernel reports, in its words.
    pub vulnerable: Vec<String>,
    /// The revision of the processor's microcode.
    pub microcode: String,
}

/// What a guest image offers, read without mounting it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contract {
    /// Programs that a lease needs and that are missing.
    pub missing: Vec<&'static str>,
    /// Whether it has a host key, which all leases would share.
    pub host_key: bool,
}

/// What leases will boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Nothing is configured and there is no image of ours.
    None {
        /// The error of the image store, if that is the reason.
        trouble: Option<ObserveError>,
    },
    /// An image of ours.
    Ours {
        /// Its digest.
        digest: String,
        /// The release of its kernel.
        kernel: String,
        /// SHA-256 of its kernel, as its record has it.
        kernel_sha256: String,
        /// Differences from its record.
        damage: Vec<String>,
        /// What it offers.
        contract: Observed<Contract>,
    },
    /// The configured kernel and root file system.
    Foreign {
        /// Whether the kernel is one that Firecracker boots.
        kernel: Observed<()>,
        /// The root file system.
        rootfs: Observed<Ext4>,
        /// What it offers.
        contract: Observed<Contract>,
    },
}

/// An ext4 image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4 {
    /// Length of its file, in MiB, rounded up.
    pub mib: u64,
    /// The space that it occupies, in MiB, rounded up.
    pub used_mib: u64,
}

/// What leases will boot, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The kernel.
    pub kernel: Entry,
    /// The root file system.
    pub rootfs: Entry,
    /// What they are.
    pub image: Image,
}

/// A CNI network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The file that holds it.
    pub file: PathBuf,
    /// Its plugins with the programs found for them.
    pub plugins: Vec<(String, Option<PathBuf>)>,
}

/// The host's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The directory of CNI configurations.
    pub conf_dir: Entry,
    /// The directories of CNI plugins in search order, the configured one first.
    pub bin_dirs: Vec<Entry>,
    /// The configured CNI network.
    pub chain: Observed<Chain>,
    /// Whether the host forwards IPv4.
    pub forwards: bool,
    /// The result of sending a packet as a lease would.
    pub passage: Observed<Passage>,
    /// Other programs' filters for forwarded packets.
    pub filters: Filters,
}

/// Where leases are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The state directory, or its nearest existing parent directory.
    pub dir: PathBuf,
    /// Whether files in it can share blocks (reflink), found by trying.
    pub reflink: Observed<bool>,
    /// Free space in MiB.
    pub free_mib: Observed<u64>,
}

/// The template that leases with these settings could be restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// None, because the configured image is not crabbox's own.
    Foreign,
    /// None has been made for them.
    Absent,
    /// A template exists, but it is no longer used.
    SetAside {
        /// How many restores failed in a row.
        failures: u64,
    },
    /// A template exists, but it no longer matches.
    Unusable {
        /// What differs.
        why: String,
    },
    /// A template is ready.
    Ready {
        /// Its key.
        key: String,
        /// Its directory.
        dir: PathBuf,
        /// When it was made, in seconds since 1970.
        made_at: i64,
        /// How long ago that was, in seconds.
        age: u64,
        /// Bytes that it takes up.
        bytes: u64,
    },
}

/// Whether leases must boot instead of being restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// Whether the state directory supports hard links; `None` if a template store exists, since making one
    /// requires them.
    pub links: Option<Observed<bool>>,
    /// Whether the network makes each guest's tap itself.
    pub gives_tap: bool,
    /// The template.
    pub template: Observed<Frozen>,
}

/// Everything that was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// The machine.
    pub host: Host,
    /// The programs.
    pub tools: Tools,
    /// KVM.
    pub kvm: Kvm,
    /// The programs of the VMM.
    pub vmm: Vmm,
    /// The guest image.
    pub guest: Guest,
    /// The network.
    pub network: Network,
    /// The disk.
    pub storage: Storage,
    /// Templates.
    pub warm: Warm,
    /// What `cleanup` would remove, one text per object.
    pub residue: Observed<Vec<String>>,
}
