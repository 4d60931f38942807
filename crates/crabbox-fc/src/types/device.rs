//! Bodies that describe the devices of a machine.
//!
//! A device is named by its id, which stands in the path of the request and must be the same in the body.

use serde::{Deserialize, Serialize};

/// `PUT /drives/<drive_id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Letters, digits and `_`.
    pub drive_id: String,
    /// The backing file or block device.
    pub path_on_host: String,
    /// Whether Firecracker adds `root=/dev/vda` and this drive is the first.
    pub is_root_device: bool,
    /// Whether the guest may not write.
    #[serde(default)]
    pub is_read_only: bool,
    /// Whether the guest's flushes reach the host's disk; Firecracker's default is [`CacheType::Unsafe`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// How the host's file is read and written; Firecracker's default is [`IoEngine::Sync`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// The effect of a guest's flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// None: the host writes the data when it likes.
    Unsafe,
    /// The data reaches the host's disk.
    Writeback,
}

/// How the host's file is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// By ordinary system calls.
    Sync,
    /// By io_uring.
    Async,
}

/// `PUT /network-interfaces/<iface_id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Letters, digits and `_`.
    pub iface_id: String,
    /// The tap device, in the network namespace of the VMM.
    pub host_dev_name: String,
    /// The guest's hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Rate limits for what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Rate limits for what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Rate limits; a missing bucket does not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Limit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Limit in operations or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A token bucket: `size` tokens per `refill_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Its size, in bytes or operations.
    pub size: u64,
    /// An additional amount that may be spent once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// How long an empty bucket takes to fill, in milliseconds.
    pub refill_time: u64,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// The socket that Firecracker makes for connections to the guest; a guest's connection to port N of the
    /// host goes to the socket of this name with `_N` appended.
    pub uds_path: String,
}

/// `PUT /entropy`: a virtio source of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entropy {
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How much memory the guest gives back at first, in MiB.
    pub amount_mib: u32,
    /// Whether the guest gets memory back before it kills a process because it is out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics of the guest; 0 for none.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
}
