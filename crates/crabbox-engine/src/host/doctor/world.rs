//! What the doctor saw: plain values, so that every judgement can be made, and tested, without a host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crabbox_core::fault;
use crabbox_net::nat::{Filters, Passage};

use crate::host::probe::{Judged, Verdict};

/// What the system said when something could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Trouble {
    /// In its words.
    pub words: String,
}

impl Trouble {
    /// Trouble in these words.
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

/// The system's word for an error as Go prints it: lower case, without a number.
fn errno_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

/// What was seen, or why it could not be.
pub type Seen<T> = Result<T, Trouble>;

/// What a path leads to.
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
    pub kind: Seen<FileKind>,
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
    /// Its version as far as it could be read, as numbers.
    pub version: Option<Vec<u32>>,
}

impl Tool {
    /// Its version as text, `?` when it is not known.
    pub(crate) fn version_text(&self) -> String {
        self.version.as_ref().map_or_else(
            || "?".to_owned(),
            |numbers| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join("."),
        )
    }
}

/// The programs that were looked for, by name; `None` for one that is not there.
pub type Tools = BTreeMap<&'static str, Option<Tool>>;

/// `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kvm {
    /// What it is.
    pub kind: Seen<FileKind>,
    /// Whether it opens for reading and writing.
    pub open: Seen<()>,
    /// Whether it answers with the known API version.
    pub answers: Seen<()>,
    /// What the boot probe found; `None` when it was not asked for.
    pub probe: Option<Seen<Judged>>,
    /// What an earlier one found that still holds.
    pub remembered: Option<Verdict>,
}

/// Firecracker or its jailer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, without a `v`.
    pub version: Seen<String>,
    /// Its SHA-256.
    pub digest: Seen<String>,
    /// The file or directory on the way to it that somebody besides root may change.
    pub loose: Option<PathBuf>,
}

/// The programs of the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmm {
    /// Firecracker.
    pub firecracker: Seen<Binary>,
    /// The jailer that leases will use; `Ok(None)` for none.
    pub jailer: Seen<Option<Binary>>,
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
    /// Memory in all, in MiB.
    pub memory_mib: u64,
    /// Memory that can be had without swapping, in MiB.
    pub available_mib: u64,
    /// Whether `/dev/net/tun` opens.
    pub tun: Seen<()>,
    /// Controllers of the unified control group tree; `None` without such a tree.
    pub cgroup: Option<Vec<String>>,
    /// Whether this is itself a virtual machine.
    pub nested: bool,
    /// Swap areas that are in use and not encrypted.
    pub swaps: Vec<String>,
    /// Whether equal pages of different processes are merged.
    pub ksm: bool,
    /// Whether processors share their cores.
    pub smt: bool,
    /// What the kernel calls vulnerable, with its words.
    pub vulnerable: Vec<String>,
    /// The revision of the processor's microcode.
    pub microcode: String,
}

/// What a guest image offers, read without mounting it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contract {
    /// Programs that a lease needs and that are not there.
    pub missing: Vec<&'static str>,
    /// A host key that every lease would share.
    pub host_key: bool,
}

/// What leases will boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Nothing is named and there is no image of ours.
    None {
        /// What is wrong with the image store, if that is why.
        trouble: Option<Trouble>,
    },
    /// An image of ours.
    Ours {
        /// Its digest.
        digest: String,
        /// The release of its kernel.
        kernel: String,
        /// SHA-256 of its kernel, as its record has it.
        kernel_sha256: String,
        /// What is not as its record says.
        damage: Vec<String>,
        /// What it offers.
        contract: Seen<Contract>,
    },
    /// What the settings name.
    Foreign {
        /// Whether the kernel is one that Firecracker boots.
        kernel: Seen<()>,
        /// The root file system.
        rootfs: Seen<Ext4>,
        /// What it offers.
        contract: Seen<Contract>,
    },
}

/// An ext4 image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4 {
    /// Length of its file, in MiB, rounded up.
    pub mib: u64,
    /// What it occupies, in MiB, rounded up.
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
    /// The directories of CNI plugins, in the order they are looked at; the configured one first.
    pub bin_dirs: Vec<Entry>,
    /// The configured CNI network.
    pub chain: Seen<Chain>,
    /// Whether the host forwards IPv4.
    pub forwards: bool,
    /// What became of a packet that was sent as a lease would send it.
    pub passage: Seen<Passage>,
    /// What others have put in the way of forwarded packets.
    pub filters: Filters,
}

/// Where leases are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The state directory, or the nearest directory above it that is there.
    pub dir: PathBuf,
    /// Whether files in it can share blocks, by trying it.
    pub reflink: Seen<bool>,
    /// Free space in MiB.
    pub free_mib: Seen<u64>,
}

/// What leases of these settings could come of instead of booting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// Nothing: what boots is not an image of crabbox's own.
    Foreign,
    /// No template was made for them.
    Absent,
    /// There is one, and it is not used any more.
    SetAside {
        /// How many machines did not come of it, one after the other.
        failures: u64,
    },
    /// There is one, and it is not what it was.
    Unusable {
        /// What differs.
        why: String,
    },
    /// There is one.
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

/// Whether leases have to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// Whether files of the state directory can have two names; `None` where a template store is there, which could not be made without.
    pub links: Option<Seen<bool>>,
    /// Whether the network gives each guest a tap of its own.
    pub gives_tap: bool,
    /// What there is.
    pub template: Seen<Frozen>,
}

/// Everything.
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
    /// What boots.
    pub guest: Guest,
    /// The network.
    pub network: Network,
    /// The disk.
    pub storage: Storage,
    /// Templates.
    pub warm: Warm,
    /// What `cleanup` would take away, one text each.
    pub residue: Seen<Vec<String>>,
}
