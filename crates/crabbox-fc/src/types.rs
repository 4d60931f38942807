//! The bodies of Firecracker's API, named as its specification names them.
//!
//! Firecracker refuses unknown fields, so an absent option is left out and never sent as null. Responses,
//! however, may have fields that we do not know yet. All paths are as the VMM sees them: relative to its own
//! directory.

use serde::{Deserialize, Serialize};

mod device;
mod snapshot;

pub use device::{
    Balloon, CacheType, Drive, Entropy, IoEngine, NetworkInterface, RateLimiter, TokenBucket, Vsock,
};
pub use snapshot::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};

/// `PUT /machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32; with `smt` 1 or an even number.
    pub vcpu_count: u8,
    /// Memory of the guest in MiB.
    pub mem_size_mib: u32,
    /// Whether the guest sees pairs of CPUs as threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Whether written pages are recorded, for snapshots that contain only the changes.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Size of the pages that back the guest's memory; Firecracker's default is [`HugePages::None`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// The pages that back the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The host's ordinary pages.
    None,
    /// Pages of 2 MiB from the host's hugetlbfs pool.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel, an uncompressed ELF file.
    pub kernel_image_path: String,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// `PUT /logger`: Firecracker's own log, once, before the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logger {
    /// An existing file or named pipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// The least severe level that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether each line names its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether each line names the source line that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
}

/// Firecracker's log levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// Also warnings.
    Warning,
    /// Also every request.
    Info,
    /// Everything.
    Debug,
}

impl LogLevel {
    /// Its name in the API and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Info => "Info",
            Self::Debug => "Debug",
        }
    }
}

/// `PUT /metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// An existing file or named pipe.
    pub metrics_path: String,
}

/// `PUT /serial`, from 1.14 on: the console into a file instead of standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    /// An existing file or named pipe.
    pub serial_out_path: String,
}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Boots the configured machine, once.
    InstanceStart,
    /// Writes the metrics now.
    FlushMetrics,
    /// Sends Ctrl-Alt-Del to the guest's keyboard (x86 only), which a Linux guest takes as a request to
    /// restart.
    SendCtrlAltDel,
}

/// `PATCH /vm`: pauses or resumes the virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// The virtual CPUs are paused.
    Paused,
    /// The virtual CPUs run.
    Resumed,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultMessage {
    /// Why it was refused, in Firecracker's own message.
    pub fault_message: String,
}
