//! The VMM of a lease: Firecracker, jailed or not, started in the lease's namespace and configured to boot or
//! restore.
//!
//! In both cases it sees the same relative paths in its directory. A VMM must never be started before its
//! journal entry, and never inherits anything except its three standard streams.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_fc::client::{Client, ClientError};
use crabbox_fc::launch::{
    Cgroup, DirectLaunch, InvalidExecFile, InvalidVmId, JailLaunch, JailLayout, ResourceLimit, VmId,
    VmmOptions,
};
use crabbox_fc::plan::{self as boot_plan, BootPlan};
use crabbox_fc::request::Request;
use crabbox_fc::types::{
    BootSource, CacheType, Drive, LogLevel, MachineConfig, MemoryBackend, MemoryBackendType,
    NetworkInterface, SnapshotCreate, SnapshotLoad, SnapshotType, VmState, Vsock,
};
use crabbox_host::clock;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::netns::{self, NetnsError};
use crabbox_host::process::{self, ProcessError, ProcessHandle, ProcessId};
use crabbox_host::unix::{self, DeadlineStream, SocketError};

use crate::lease::allocated::Allocated;
use crabbox_store::templates::{MEMORY, VMSTATE};

use crate::request::{AcquireRequest, GuestSource, Start};
use crate::resource::cgroup::CGROUPS;
use crate::resource::disk::{API, BASE, DISK, FROZEN, Home, INITRD, KERNEL, LOG, SEED, VSOCK, kernel_args};
use crate::resource::network::GuestSide;

/// Time limit from Firecracker's start to its API socket.
const API_LIMIT: Duration = Duration::from_secs(20);
/// Time limit for one API request.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// Time limit for Firecracker to write its guest's memory to a file: several GiB on a slow disk.
pub(crate) const FREEZE_LIMIT: Duration = Duration::from_mins(5);
/// The context id of the guest's vsock; each Firecracker has its own vsock, so it need not be unique on the
/// host.
const GUEST_CID: u32 = 3;
/// One more than the VMM's highest descriptor: each vsock connection of the guest uses one. The jailer's own
/// default.
const OPEN_FILES: u64 = 2048;
/// Threads and processes in the control group: one thread per vCPU, the API thread, the VMM thread, and a
/// reserve.
const PIDS_BEYOND_CPUS: u32 = 32;
/// Why the machine was not started.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The program could not be started.
    #[error(transparent)]
    Spawn(#[from] CommandError),
    /// The machine's name is not a valid Firecracker id.
    #[error(transparent)]
    Id(#[from] InvalidVmId),
    /// The jailer would refuse the program.
    #[error(transparent)]
    ExecFile(#[from] InvalidExecFile),
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The process could not be inspected.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The console pipe could not be passed on.
    #[error("cannot pass the console to the VMM")]
    Console(#[source] std::io::Error),
    /// It ended before it answered.
    #[error("{} ended before its API answered", program.display())]
    Ended {
        /// The program.
        program: PathBuf,
    },
    /// Its API socket did not appear.
    #[error("its API socket {} did not appear within {API_LIMIT:?}", socket.display())]
    NoApi {
        /// The socket.
        socket: PathBuf,
    },
    /// Its API socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its disk could not be measured.
    #[error("cannot inspect {}", path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It refused a request.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// It has another file open than the intended one.
    #[error("it did not open {} where it was placed", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
    },
    /// The lease's launch timeout passed before it had started the guest.
    #[error("it had not started the guest when the launch timeout expired")]
    TimedOut,
    /// Writing the memory of a snapshot took too long.
    #[error("it had not written the guest's memory to the state directory after {FREEZE_LIMIT:?}")]
    FreezeTimedOut,
    /// The command that asked for the lease is gone or was interrupted.
    #[error("the command that requested it gave up")]
    Cancelled,
}

impl Fault for VmmError {
    fn kind(&self) -> Kind {
        match self {
            Self::Spawn(_) | Self::Id(_) | Self::ExecFile(_) => Kind::Usage,
            _ => Kind::Unavailable,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Spawn(_) => vec![
                "firecracker.binary must be an executable Firecracker; `crabbox setup firecracker` fetches one".to_owned(),
            ],
            Self::Ended { .. } | Self::Api(_) => {
                vec!["`crabbox doctor --provider firecracker` checks KVM, Firecracker and the image".to_owned()]
            }
            Self::TimedOut => {
                vec!["a slow host needs a larger firecracker.launchTimeout".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// The limits of an acquisition in progress.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// The deadline.
    pub deadline: Instant,
    /// Whether to give up now.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Patience<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// How the VMM is started and configured.
#[derive(Debug)]
pub struct Plan {
    cmd: Cmd,
    program: PathBuf,
    netns: PathBuf,
    /// Whether the program enters the namespace itself (the jailer does).
    enters: bool,
    api: PathBuf,
    told: StartCommand,
    /// The control groups that the jailer makes, the lease's own first.
    pub cgroup: Option<PathBuf>,
}

/// What the VMM is told once its API is up.
#[derive(Debug)]
enum StartCommand {
    /// Boot.
    Boot(Box<BootPlan>),
    /// Restore from a snapshot, provided that these are the files that the VMM has open.
    Load(SnapshotLoad, Vec<PathBuf>),
}

impl StartCommand {
    fn of(request: &AcquireRequest, home: &Home, side: &GuestSide) -> Self {
        if !matches!(request.start, Start::Restore { .. }) {
            return Self::Boot(Box::new(boot(request, home, side)));
        }
        let load = SnapshotLoad {
            snapshot_path: VMSTATE.to_owned(),
            mem_backend: MemoryBackend {
                backend_type: MemoryBackendType::File,
                backend_path: MEMORY.to_owned(),
            },
            enable_diff_snapshots: None,
            track_dirty_pages: None,
            resume_vm: false,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: None,
        };
        Self::Load(load, [MEMORY, BASE, DISK].map(|name| home.join(name)).to_vec())
    }
}

/// Plans the VMM of a lease.
pub fn plan(
    request: &AcquireRequest,
    made: &Allocated,
    home: &Home,
    side: &GuestSide,
) -> Result<Plan, VmmError> {
    let vmid = &made.stored.record.vmid;
    let netns = made.lease.dir().netns();
    let firecracker = &request.programs.firecracker;
    let told = StartCommand::of(request, home, side);
    let options = VmmOptions {
        log_path: Some(LOG.to_owned()),
        level: Some(LogLevel::Info),
        ..VmmOptions::new(API)
    };
    let id: VmId = vmid.parse()?;
    let (argv, cgroup, enters) = match (&request.programs.jailer, made.uid) {
        (Some(jail), Some(uid)) => {
            let parent = format!("crabbox-{}", made.lease.id().tag());
            let launch = JailLaunch {
                jailer: jail.jailer.clone(),
                layout: JailLayout::new(&made.lease.dir().jails(), firecracker, id)?,
                uid,
                gid: uid,
                netns: Some(netns.clone()),
                cgroup: Cgroup {
                    parent: Some(parent.clone()),
                    values: limits(request),
                },
                resource_limits: file_limits(request, home)?,
                options,
            };
            (
                launch.argv(),
                Some(PathBuf::from(CGROUPS).join(parent).join(vmid)),
                true,
            )
        }
        _ => (
            DirectLaunch {
                binary: firecracker.clone(),
                id,
                options,
            }
            .argv(),
            None,
            false,
        ),
    };
    let (program, args) = argv.split_first().ok_or(VmmError::Ended {
        program: firecracker.clone(),
    })?;
    Ok(Plan {
        program: program.into(),
        cmd: Cmd::new(program).args(args).cwd(&home.dir),
        netns,
        enters,
        api: home.join(API),
        told,
        cgroup,
    })
}

/// The size limits on the VMM's files: the length of its longest disk. There is one limit for all files, so a
/// compromised VMM can make any of its files as long as its largest volume.
fn file_limits(request: &AcquireRequest, home: &Home) -> Result<Vec<(ResourceLimit, u64)>, VmmError> {
    // No VMM has run in the directory yet, so these are the disk that we made and the volumes that we placed.
    let mut longest = 0;
    for name in std::iter::once(DISK).chain(home.drives.iter().map(String::as_str)) {
        let path = home.join(name);
        let facts = std::fs::metadata(&path).map_err(|source| VmmError::Disk { path, source })?;
        longest = facts.len().max(longest);
    }
    // A VMM that is frozen writes its memory to a file.
    let memory = match request.start {
        Start::Freeze { .. } => u64::from(request.machine.memory_mib) << 20,
        Start::Boot | Start::Restore { .. } => 0,
    };
    Ok(vec![
        (ResourceLimit::FileSize, longest.max(memory)),
        (ResourceLimit::NoFile, OPEN_FILES),
    ])
}

/// The limits of the lease's control group: the requested size and a reserve for the VMM.
fn limits(request: &AcquireRequest) -> Vec<(String, String)> {
    let machine = request.machine;
    let memory = request.most_memory_mib() * 1024 * 1024;
    vec![
        ("memory.max".to_owned(), memory.to_string()),
        ("memory.swap.max".to_owned(), "0".to_owned()),
        // Quota and period in microseconds: one CPU per vCPU, and one more for the VMM's own threads.
        (
            "cpu.max".to_owned(),
            format!("{} 100000", (u64::from(machine.cpus) + 1) * 100_000),
        ),
        (
            "pids.max".to_owned(),
            (machine.cpus + PIDS_BEYOND_CPUS).to_string(),
        ),
    ]
}

fn boot(request: &AcquireRequest, home: &Home, side: &GuestSide) -> BootPlan {
    let drive = |id: &str, file: &str, read_only: bool, root: bool| Drive {
        drive_id: id.to_owned(),
        path_on_host: file.to_owned(),
        is_root_device: root,
        is_read_only: read_only,
        cache_type: None,
        io_engine: None,
        rate_limiter: None,
    };
    let (initrd, mut drives) = match &request.guest {
        GuestSource::Ours { .. } => (
            Some(INITRD.to_owned()),
            vec![
                drive("base", BASE, true, false),
                drive("disk", DISK, false, false),
            ],
        ),
        GuestSource::Foreign { initrd, .. } => (
            initrd.as_ref().map(|_| INITRD.to_owned()),
            vec![
                drive("rootfs", DISK, false, true),
                drive("cidata", SEED, true, false),
            ],
        ),
    };
    drives.extend(home.drives.iter().enumerate().map(|(index, name)| Drive {
        // With writeback, the guest's flushes reach the host's disk: a volume must survive a power cut of the
        // host.
        cache_type: Some(CacheType::Writeback),
        ..drive(&format!("volume{index}"), name, false, false)
    }));
    let machine = MachineConfig {
        // The settings allow no more than Firecracker's limit of 32.
        vcpu_count: u8::try_from(request.machine.cpus).unwrap_or(u8::MAX),
        mem_size_mib: request.machine.memory_mib,
        smt: false,
        track_dirty_pages: false,
        huge_pages: None,
    };
    let boot = BootSource {
        kernel_image_path: KERNEL.to_owned(),
        initrd_path: initrd,
        boot_args: Some(kernel_args(request, side)),
    };
    BootPlan {
        drives,
        network: vec![NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: side.tap.clone(),
            guest_mac: Some(side.seed.mac.clone()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }],
        vsock: Some(Vsock {
            guest_cid: GUEST_CID,
            uds_path: VSOCK.to_owned(),
        }),
        ..BootPlan::new(machine, boot)
    }
}

/// A running VMM.
#[derive(Debug)]
pub struct Running {
    handle: ProcessHandle,
    id: ProcessId,
}

impl Running {
    /// Its identity.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// A handle that becomes readable when it ends.
    pub(crate) fn handle(&self) -> &ProcessHandle {
        &self.handle
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.handle.wait_exit(Duration::ZERO).unwrap_or(false)
    }

    /// Kills it at once.
    pub(crate) fn kill(&self) -> Result<(), VmmError> {
        self.handle.terminate(Duration::ZERO)?;
        Ok(())
    }

    /// The handle, for the watch.
    pub(crate) fn into_handle(self) -> ProcessHandle {
        self.handle
    }
}

/// Starts the VMM with its console on `pipe`.
pub fn start(plan: &Plan, pipe: &File) -> Result<Running, VmmError> {
    let stream = || pipe.try_clone().map(Stdio::from).map_err(VmmError::Console);
    let mut command = plan.cmd.to_std();
    command.stdin(Stdio::null()).stdout(stream()?).stderr(stream()?);
    process::new_session(&mut command);
    // The child is not waited for: the pidfd shows its end, and it is reaped when the supervisor ends.
    let child = if plan.enters {
        plan.cmd.spawn(&mut command)?
    } else {
        netns::within(&plan.netns, || plan.cmd.spawn(&mut command))??
    };
    let ended = || VmmError::Ended {
        program: plan.program.clone(),
    };
    let id = process::identify(child.id())?.ok_or_else(ended)?;
    let handle = process::open(&id)?.ok_or_else(ended)?;
    Ok(Running { handle, id })
}

/// Waits for the API and starts the guest, by boot or by restore.
pub(crate) fn start_guest(plan: &Plan, vmm: &Running, patience: Patience<'_>) -> Result<(), VmmError> {
    match &plan.told {
        StartCommand::Boot(boot) => ask(plan, vmm, patience, REQUEST_LIMIT, |client| {
            boot_plan::boot(client, boot)
        }),
        StartCommand::Load(load, files) => {
            ask(plan, vmm, patience, REQUEST_LIMIT, |client| {
                client.send(&Request::snapshot_load(load)).map(drop)
            })?;
            check_files(vmm.id().pid, files)?;
            ask(plan, vmm, patience, REQUEST_LIMIT, |client| {
                client.send(&Request::vm_state(VmState::Resumed)).map(drop)
            })
        }
    }
}

/// Pauses the guest for good and writes its memory and device state to the VMM's directory.
pub(crate) fn freeze_guest(plan: &Plan, vmm: &Running, patience: Patience<'_>) -> Result<(), VmmError> {
    let [(memory, _), (state, _)] = FROZEN;
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: state.to_owned(),
        mem_file_path: memory.to_owned(),
    };
    ask(plan, vmm, patience, FREEZE_LIMIT, |client| {
        client.send(&Request::vm_state(VmState::Paused))?;
        client.send(&Request::snapshot_create(&create)).map(drop)
    })
    .map_err(|error| match error {
        // The deadline that passed is that of a freeze, not of a start.
        VmmError::TimedOut => VmmError::FreezeTimedOut,
        error => error,
    })
}

/// Whether a VMM that has loaded a snapshot, but not resumed it, has `files` open: the paths in the snapshot
/// are its template's.
fn check_files(pid: u32, files: &[PathBuf]) -> Result<(), VmmError> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let entries = std::fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    let held: Vec<(u64, u64)> = entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .filter(std::fs::Metadata::is_file)
        .map(|facts| (facts.dev(), facts.ino()))
        .collect();
    for path in files {
        let facts = std::fs::metadata(path).map_err(|source| VmmError::Disk {
            path: path.clone(),
            source,
        })?;
        if !held.contains(&(facts.dev(), facts.ino())) {
            return Err(VmmError::OtherFile { path: path.clone() });
        }
    }
    Ok(())
}

/// Calls `act` with the API once it is up. However a VMM that its guest controls answers, the call ends when
/// the VMM ends, at a cancellation, at the lease's deadline or after `limit`.
fn ask(
    plan: &Plan,
    vmm: &Running,
    patience: Patience<'_>,
    limit: Duration,
    act: impl FnOnce(&mut Client<&mut DeadlineStream<'_>>) -> Result<(), ClientError>,
) -> Result<(), VmmError> {
    let given_up = || {
        if vmm.has_ended() {
            return Some(VmmError::Ended {
                program: plan.program.clone(),
            });
        }
        if (patience.cancelled)() {
            return Some(VmmError::Cancelled);
        }
        (Instant::now() >= patience.deadline).then_some(VmmError::TimedOut)
    };
    let connected = clock::poll_until(API_LIMIT, || match given_up() {
        Some(error) => Some(Err(error)),
        None => match unix::connect(&plan.api) {
            Ok(stream) => Some(Ok(stream)),
            Err(error) if error.is_absent() => None,
            Err(error) => Some(Err(error.into())),
        },
    });
    let stream = connected.unwrap_or_else(|| {
        Err(VmmError::NoApi {
            socket: plan.api.clone(),
        })
    })?;
    let why = Cell::new(None);
    let stop = || {
        let error = given_up();
        let stopped = error.is_some();
        why.set(error);
        stopped
    };
    let mut stream = DeadlineStream::new(stream).stopped_by(&stop);
    stream.set_limit(limit);
    act(&mut Client::new(&mut stream)).map_err(|error| why.take().unwrap_or_else(|| error.into()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Boots a guest with a VMM that sends `answers` after a connection, then nothing until it is closed.
    fn boot_at(
        answers: impl FnOnce(&mut std::os::unix::net::UnixStream) + Send,
        patience: Patience<'_>,
    ) -> Result<(), VmmError> {
        let dir = tempfile::tempdir().unwrap();
        let api = dir.path().join(API);
        let listener = unix::bind(&api).unwrap();
        let id = process::identify(std::process::id()).unwrap().unwrap();
        // The test's own process stands for the VMM, so it stays alive.
        let vmm = Running {
            handle: process::open(&id).unwrap().unwrap(),
            id,
        };
        let machine = MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: None,
        };
        let source = BootSource {
            kernel_image_path: KERNEL.to_owned(),
            initrd_path: None,
            boot_args: None,
        };
        let plan = Plan {
            cmd: Cmd::new("firecracker"),
            program: "firecracker".into(),
            netns: PathBuf::new(),
            enters: false,
            api,
            told: StartCommand::Boot(Box::new(BootPlan::new(machine, source))),
            cgroup: None,
        };
        std::thread::scope(|threads| {
            threads.spawn(move || {
                if let Ok((mut stream, _)) = listener.accept() {
                    answers(&mut stream);
                    stream.read_to_end(&mut Vec::new()).ok();
                }
            });
            start_guest(&plan, &vmm, patience)
        })
    }

    /// The beginning of a response, followed by more of one header for as long as the client reads.
    fn drip(stream: &mut std::os::unix::net::UnixStream) {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").ok();
        while stream.write_all(b"x").is_ok() {
            clock::nap(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_vmm_that_drips_or_is_silent_holds_nobody_past_a_cancellation() {
        for answers in [drip, |_: &mut std::os::unix::net::UnixStream| ()] {
            let asked = Cell::new(0);
            let cancelled = || {
                asked.set(asked.get() + 1);
                asked.get() > 4
            };
            let patience = Patience {
                deadline: Instant::now() + Duration::from_hours(1),
                cancelled: &cancelled,
            };
            let error = boot_at(answers, patience).unwrap_err();
            assert!(matches!(error, VmmError::Cancelled), "{error:?}");
        }
    }

    #[test]
    fn a_vmm_that_drips_holds_nobody_past_the_launch_timeout() {
        let patience = Patience {
            deadline: Instant::now() + Duration::from_millis(200),
            cancelled: &|| false,
        };
        let outcome = boot_at(drip, patience);
        assert!(matches!(outcome, Err(VmmError::TimedOut)), "{outcome:?}");
    }
}
