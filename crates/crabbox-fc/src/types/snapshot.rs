//! Bodies that save and restore a machine.
//!
//! Fields that are newer than version 1.12 say so; a Firecracker that does not know one refuses the request.

use serde::{Deserialize, Serialize};

/// `PUT /snapshot/create`, on a paused machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCreate {
    /// How much is saved.
    pub snapshot_type: SnapshotType,
    /// The file for the state of the machine and its devices.
    pub snapshot_path: String,
    /// The file for the guest's memory.
    pub mem_file_path: String,
}

/// The extent of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// The whole memory.
    Full,
    /// The pages written since the last snapshot.
    Diff,
}

/// `PUT /snapshot/load`, on a Firecracker that has not been configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLoad {
    /// The file with the state of the machine.
    pub snapshot_path: String,
    /// Where the memory comes from.
    pub mem_backend: MemoryBackend,
    /// Before 1.13: whether written pages are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_diff_snapshots: Option<bool>,
    /// Since 1.13: whether written pages are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Whether the virtual CPUs resume at once.
    pub resume_vm: bool,
    /// Other taps for the interfaces of the snapshot, since 1.12.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket for the vsock device, since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock is set forward, since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_realtime: Option<bool>,
}

/// Where a restored guest's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBackend {
    /// The kind of source at the path.
    pub backend_type: MemoryBackendType,
    /// The memory file, or the socket of a page fault handler.
    pub backend_path: String,
}

/// The process that serves the page faults of a restored guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryBackendType {
    /// The kernel, from the memory file, copy on write.
    File,
    /// A process behind a unix socket.
    Uffd,
}

/// Another tap for an interface of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// The tap device.
    pub host_dev_name: String,
}

/// Another socket for the vsock device of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockOverride {
    /// The socket.
    pub uds_path: String,
}
