//! One request of every kind that this crate can send, with every option set at least once, in an order that
//! a Firecracker that has not booted accepts. The recorder sends them to a real Firecracker; the golden test
//! compares the results.

use crabbox_fc::Request;
use crabbox_fc::types::{
    Action, Balloon, BootSource, CacheType, Drive, Entropy, HugePages, IoEngine, LogLevel, Logger,
    MachineConfig, MemoryBackend, MemoryBackendType, Metrics, NetworkInterface, NetworkOverride, RateLimiter,
    Serial, SnapshotCreate, SnapshotLoad, SnapshotType, TokenBucket, VmState, Vsock, VsockOverride,
};

/// The catalogue.
pub(crate) fn requests() -> Vec<Request> {
    let mut all = vec![
        Request::get("/"),
        Request::get("/version"),
        Request::get("/machine-config"),
    ];
    all.extend(setup());
    all.extend(devices());
    all.extend(running());
    all.extend(snapshots());
    all.extend([
        Request::get("/machine-config"),
        Request::action(Action::InstanceStart),
        Request::get("/"),
    ]);
    all
}

fn setup() -> Vec<Request> {
    let machine = |huge_pages| MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 256,
        smt: false,
        track_dirty_pages: true,
        huge_pages,
    };
    vec![
        Request::logger(&Logger {
            log_path: Some("vmm.log".into()),
            level: Some(LogLevel::Info),
            show_level: Some(true),
            show_log_origin: Some(false),
        }),
        Request::metrics(&Metrics {
            metrics_path: "metrics".into(),
        }),
        Request::serial(&Serial {
            serial_out_path: "console".into(),
        }),
        Request::machine_config(&machine(Some(HugePages::Hugetlbfs2M))),
        Request::machine_config(&machine(Some(HugePages::None))),
        Request::machine_config(&machine(None)),
        Request::boot_source(&BootSource {
            kernel_image_path: "vmlinux".into(),
            initrd_path: Some("initrd.img".into()),
            boot_args: Some("console=ttyS0 reboot=k panic=1".into()),
        }),
        Request::boot_source(&BootSource {
            kernel_image_path: "vmlinux".into(),
            initrd_path: None,
            boot_args: None,
        }),
    ]
}

fn limits() -> RateLimiter {
    RateLimiter {
        bandwidth: Some(TokenBucket {
            size: 1_000_000,
            one_time_burst: Some(5),
            refill_time: 100,
        }),
        ops: Some(TokenBucket {
            size: 1000,
            one_time_burst: None,
            refill_time: 100,
        }),
    }
}

fn devices() -> Vec<Request> {
    vec![
        Request::drive(&Drive {
            drive_id: "base".into(),
            path_on_host: "base.ext4".into(),
            is_root_device: false,
            is_read_only: true,
            cache_type: Some(CacheType::Unsafe),
            io_engine: Some(IoEngine::Sync),
            rate_limiter: Some(limits()),
        }),
        Request::drive(&Drive {
            drive_id: "disk".into(),
            path_on_host: "disk.ext4".into(),
            is_root_device: true,
            is_read_only: false,
            cache_type: Some(CacheType::Writeback),
            io_engine: None,
            rate_limiter: None,
        }),
        // Refused because the file does not exist. A user would see this message.
        Request::drive(&Drive {
            drive_id: "absent".into(),
            path_on_host: "absent.ext4".into(),
            is_root_device: false,
            is_read_only: false,
            cache_type: None,
            io_engine: None,
            rate_limiter: None,
        }),
        Request::network_interface(&NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: "tap0".into(),
            guest_mac: Some("06:00:ac:10:00:02".into()),
            rx_rate_limiter: Some(limits()),
            tx_rate_limiter: Some(limits()),
        }),
        Request::vsock(&Vsock {
            guest_cid: 3,
            uds_path: "vsock.sock".into(),
        }),
        Request::entropy(&Entropy {
            rate_limiter: Some(limits()),
        }),
        Request::entropy(&Entropy::default()),
        Request::balloon(&Balloon {
            amount_mib: 16,
            deflate_on_oom: true,
            stats_polling_interval_s: 1,
        }),
    ]
}

fn running() -> Vec<Request> {
    vec![
        Request::vm_state(VmState::Paused),
        Request::vm_state(VmState::Resumed),
        Request::action(Action::FlushMetrics),
        Request::action(Action::SendCtrlAltDel),
    ]
}

fn snapshots() -> Vec<Request> {
    let create = |snapshot_type| SnapshotCreate {
        snapshot_type,
        snapshot_path: "state.snap".into(),
        mem_file_path: "memory.snap".into(),
    };
    let plain = |backend_type| SnapshotLoad {
        snapshot_path: "state.snap".into(),
        mem_backend: MemoryBackend {
            backend_type,
            backend_path: "memory.snap".into(),
        },
        enable_diff_snapshots: None,
        track_dirty_pages: None,
        resume_vm: true,
        network_overrides: Vec::new(),
        vsock_override: None,
        clock_realtime: None,
    };
    let other_tap = SnapshotLoad {
        enable_diff_snapshots: Some(true),
        network_overrides: vec![NetworkOverride {
            iface_id: "eth0".into(),
            host_dev_name: "tap0".into(),
        }],
        ..plain(MemoryBackendType::File)
    };
    let other_socket = VsockOverride {
        uds_path: "vsock.sock".into(),
    };
    vec![
        Request::snapshot_create(&create(SnapshotType::Full)),
        Request::snapshot_create(&create(SnapshotType::Diff)),
        Request::snapshot_load(&plain(MemoryBackendType::Uffd)),
        Request::snapshot_load(&other_tap),
        Request::snapshot_load(&SnapshotLoad {
            track_dirty_pages: Some(true),
            ..plain(MemoryBackendType::File)
        }),
        Request::snapshot_load(&SnapshotLoad {
            vsock_override: Some(other_socket),
            ..plain(MemoryBackendType::File)
        }),
        Request::snapshot_load(&SnapshotLoad {
            clock_realtime: Some(true),
            ..plain(MemoryBackendType::File)
        }),
    ]
}
