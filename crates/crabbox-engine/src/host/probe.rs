//! The boot probe: tests whether KVM really works by booting a tiny guest under a time limit.
//!
//! `/dev/kvm` may open, answer and create machines, and guests may still die in it; only a boot proves KVM.
//! The probe needs no network, no disk and no privilege beyond opening the device. It must never leave a
//! process or a file behind.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crabbox_fc::log::{self, LogCause};
use crabbox_fc::types::{BootSource, MachineConfig};
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::process::{self, ProcessError};
use crabbox_host::{clock, console, digest};
use crabbox_image::cpio::Writer;
use crabbox_image::guest;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// How long the guest may take to print its line. Under nested emulation (the lab) it takes five seconds.
pub const LIMIT: Duration = Duration::from_secs(20);
/// The kernel argument by which `crabbox-guest` knows that it is being probed.
const WORD: &str = "crabbox.probe";
/// The line that `crabbox-guest` prints then; it is defined there, too.
const SPOKEN: &str = "crabbox-guest: probe ok";
/// The device.
const KVM: &str = "/dev/kvm";
/// Memory of the guest, in MiB.
const MEMORY_MIB: u32 = 128;
/// How much of the console is kept, in bytes; a probe usually prints a few hundred.
const CONSOLE_LIMIT: u64 = 256 * 1024;
/// How many lines of the console go into a verdict.
const CONSOLE_LINES: usize = 15;
/// The working directory of a probe, in the cache. A killed probe's directory is removed by the next probe.
const SCRATCH: &str = "kvm-probe";
/// The file of the last verdict, in the cache.
const VERDICT: &str = "kvm-verdict.json";

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A guest ran.
    Works {
        /// The time from starting Firecracker to the guest's line, in milliseconds.
        millis: u64,
    },
    /// There is a KVM, but no guest ran in it.
    Broken {
        /// What happened.
        reason: String,
        /// The end of the console, including Firecracker's own log.
        console: Vec<String>,
    },
    /// We cannot use any KVM.
    Absent {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// Whether leases can be made with it.
    pub fn works(&self) -> bool {
        matches!(self, Self::Works { .. })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works { millis } => write!(out, "KVM works: a guest responded after {millis} ms"),
            Self::Broken { reason, .. } => write!(out, "KVM does not work: {reason}"),
            Self::Absent { reason } => write!(out, "there is no KVM: {reason}"),
        }
    }
}

/// A verdict, and whether it was remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether an earlier probe found it, since this boot and with the same parts.
    pub remembered: bool,
}

/// What a verdict depends on: it does not hold for another kernel or Firecracker, or after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// SHA-256 of the Firecracker program.
    pub firecracker: String,
    /// SHA-256 of the guest kernel.
    pub kernel: String,
}

impl Key {
    /// The key for these two files in this boot.
    pub fn of(firecracker: &Path, kernel: &Path) -> Result<Self, ProbeError> {
        Ok(Self {
            boot_id: process::boot_id()?,
            firecracker: digest::sha256_file(firecracker)?,
            kernel: digest::sha256_file(kernel)?,
        })
    }
}

/// A verdict as stored in the cache.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: Key,
    /// The limit of the probe, in milliseconds: a longer one may lead to another verdict.
    limit_millis: u64,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Why there is no verdict: a problem of our own that says nothing about KVM.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A file is missing or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Firecracker could not be started.
    #[error("cannot start Firecracker for the probe")]
    Spawn(#[from] CommandError),
    /// The boot id cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Another probe has not ended in time.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The machine's description could not be serialized.
    #[error("cannot encode the machine of the probe")]
    Config(#[from] serde_json::Error),
}

/// The parts of a probe.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The directory for scratch files and the verdict.
    pub cache: &'a Path,
    /// The Firecracker program.
    pub firecracker: &'a Path,
    /// A guest kernel, ELF.
    pub kernel: &'a Path,
    /// The program `crabbox-guest`, which is the whole guest.
    pub guest: &'a [u8],
    /// How long the guest may take; usually [`LIMIT`].
    pub limit: Duration,
}

/// The smallest initrd that works for a probe: the init and the nodes that it needs.
fn initrd(guest: &[u8]) -> Vec<u8> {
    let mut archive = Writer::new();
    for directory in ["dev", "proc", "sys"] {
        archive.directory(directory, 0o755);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, guest);
    archive.finish()
}

/// The verdict stored in `cache` for `key`, if any.
pub fn remembered(cache: &Path, key: &Key) -> Option<Verdict> {
    kept(cache, key).map(|kept| kept.verdict)
}

fn kept(cache: &Path, key: &Key) -> Option<Kept> {
    // An unreadable verdict counts as absent.
    let text = std::fs::read(cache.join(VERDICT)).ok()?;
    serde_json::from_slice(&text)
        .ok()
        .filter(|kept: &Kept| kept.key == *key)
}

/// The stored verdict if it is still valid, otherwise a new one.
pub fn verdict(probe: &Probe<'_>) -> Result<Judged, ProbeError> {
    // A missing device is noticed at once and may be there next time, so that verdict is never stored.
    if let Some(verdict) = absent() {
        return Ok(Judged {
            verdict,
            remembered: false,
        });
    }
    let key = Key::of(probe.firecracker, probe.kernel)?;
    let holds =
        |kept: &Kept| kept.verdict.works() || u128::from(kept.limit_millis) >= probe.limit.as_millis();
    if let Some(kept) = kept(probe.cache, &key).filter(holds) {
        return Ok(Judged {
            verdict: kept.verdict,
            remembered: true,
        });
    }
    boot_and_keep(probe, &holds)
}

/// Boots the guest regardless of stored verdicts, and stores the new verdict.
pub fn boot(probe: &Probe<'_>) -> Result<Verdict, ProbeError> {
    match absent() {
        Some(verdict) => Ok(verdict),
        None => Ok(boot_and_keep(probe, &|_| false)?.verdict),
    }
}

/// Boots, unless another probe stored a verdict that `holds` while we waited for the lock.
fn boot_and_keep(probe: &Probe<'_>, holds: &dyn Fn(&Kept) -> bool) -> Result<Judged, ProbeError> {
    files::create_private_dir(probe.cache)?;
    let patience = probe.limit * 2 + Duration::from_secs(10);
    let lock = FileLock::acquire_within(&probe.cache.join(format!("{SCRATCH}.lock")), patience)?;
    let key = Key::of(probe.firecracker, probe.kernel)?;
    if let Some(kept) = kept(probe.cache, &key).filter(holds) {
        return Ok(Judged {
            verdict: kept.verdict,
            remembered: true,
        });
    }
    let scratch = Scratch::make(&probe.cache.join(SCRATCH))?;
    let verdict = try_boot(probe, &scratch.0)?;
    drop(scratch);
    let limit_millis = u64::try_from(probe.limit.as_millis()).unwrap_or(u64::MAX);
    let kept = Kept {
        key,
        limit_millis,
        verdict,
    };
    files::write_atomic(
        &probe.cache.join(VERDICT),
        &serde_json::to_vec_pretty(&kept)?,
        0o600,
    )?;
    drop(lock);
    Ok(Judged {
        verdict: kept.verdict,
        remembered: false,
    })
}

fn absent() -> Option<Verdict> {
    let opened = File::options().read(true).write(true).open(KVM);
    opened.err().map(|error| Verdict::Absent {
        reason: format!("cannot open {KVM}: {error}"),
    })
}

/// The working directory of a probe, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn make(path: &Path) -> Result<Self, FileError> {
        if path.exists() {
            files::remove_tree(path)?;
        }
        files::create_private_dir(path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next probe removes whatever remains.
        files::remove_tree(&self.0).ok();
    }
}

fn try_boot(probe: &Probe<'_>, dir: &Path) -> Result<Verdict, ProbeError> {
    let real =
        |path: &Path| std::fs::canonicalize(path).map_err(|source| FileError::io("find", path, source));
    let link = dir.join("vmlinux");
    std::os::unix::fs::symlink(real(probe.kernel)?, &link)
        .map_err(|source| FileError::io("link", &link, source))?;
    let initrd_file = dir.join("initrd.img");
    std::fs::write(&initrd_file, initrd(probe.guest))
        .map_err(|source| FileError::io("write", &initrd_file, source))?;
    let config = dir.join("machine.json");
    std::fs::write(&config, machine()?).map_err(|source| FileError::io("write", &config, source))?;
    let console = dir.join("console");
    let output = File::create_new(&console).map_err(|source| FileError::io("create", &console, source))?;
    let again = output
        .try_clone()
        .map_err(|source| FileError::io("open again", &console, source))?;

    let cmd = Cmd::new(real(probe.firecracker)?)
        .args([
            "--no-api",
            "--config-file",
            "machine.json",
            "--id",
            "crabbox-probe",
        ])
        .cwd(dir)
        .own_group();
    let mut command = cmd.to_std();
    process::die_with_us(&mut command)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(again);
    let started = Instant::now();
    let mut vmm = Vmm {
        child: cmd.spawn(&mut command)?,
        reaped: false,
    };
    let outcome = watch(&mut vmm, &console, probe.limit);
    let took = started.elapsed();
    drop(vmm);
    Ok(judge(&outcome, took, probe.limit, &read(&console)))
}

/// The machine's configuration for `--config-file`.
fn machine() -> Result<Vec<u8>, serde_json::Error> {
    let boot = BootSource {
        kernel_image_path: "vmlinux".to_owned(),
        initrd_path: Some("initrd.img".to_owned()),
        boot_args: Some(format!("{} {WORD}", guest::kernel_args())),
    };
    let size = MachineConfig {
        vcpu_count: 1,
        mem_size_mib: MEMORY_MIB,
        smt: false,
        track_dirty_pages: false,
        huge_pages: None,
    };
    serde_json::to_vec(&serde_json::json!({ "boot-source": boot, "machine-config": size, "drives": [] }))
}

/// A Firecracker process, killed with its process group and reaped on drop.
struct Vmm {
    child: Child,
    reaped: bool,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // After reaping, the process group id may be reused.
        if !self.reaped {
            kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
            self.child.wait().ok();
        }
    }
}

/// The result of waiting for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Spoke,
    Ended { code: Option<i32>, signal: Option<i32> },
    Silent,
}

fn watch(vmm: &mut Vmm, console: &Path, limit: Duration) -> Outcome {
    clock::poll_until(limit, || {
        let ended = vmm.child.try_wait().ok().flatten();
        vmm.reaped |= ended.is_some();
        // Read the console after checking the process, so that its last output is included.
        if read(console).contains(SPOKEN) {
            return Some(Outcome::Spoke);
        }
        ended.map(|status| Outcome::Ended {
            code: status.code(),
            signal: status.signal(),
        })
    })
    .unwrap_or(Outcome::Silent)
}

fn read(console: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(console) {
        // Use what was read before an error.
        file.take(CONSOLE_LIMIT).read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn judge(outcome: &Outcome, took: Duration, limit: Duration, console: &str) -> Verdict {
    let because = log::first_cause(console).map(|(cause, _)| cause);
    let what = match outcome {
        Outcome::Spoke => {
            return Verdict::Works {
                millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            };
        }
        Outcome::Silent => format!("the guest said nothing within {} s", limit.as_secs_f32()),
        Outcome::Ended {
            signal: Some(signal), ..
        } => format!("Firecracker was killed by signal {signal}"),
        Outcome::Ended { code, .. } => format!(
            "Firecracker ended with exit code {} after {:.1} s, before the guest responded",
            code.unwrap_or_default(),
            took.as_secs_f32()
        ),
    };
    let cause = match because {
        Some(LogCause::KvmUnusable) => "; it cannot use KVM",
        Some(LogCause::KvmInternalError) => "; KVM gave up on the guest (KVM_EXIT_INTERNAL_ERROR)",
        Some(LogCause::KvmEntryFailed) => "; KVM could not enter the guest",
        Some(LogCause::BadKernel) => "; it cannot load the kernel",
        _ => "",
    };
    let lines: Vec<String> = console
        .lines()
        .map(console::harmless)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].to_vec();
    Verdict::Broken {
        reason: format!("{what}{cause}"),
        console: tail,
    }
}

#[cfg(test)]
mod tests;
