//! The record of one lab, `lab.json`: everything another program needs to talk to it. A record is only believed together
//! with the process it names (pid and start time); no signal is ever sent on the strength of a pid alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use crabbox_host::clock;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// One process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub(super) start_ticks: u64,
}

impl Identity {
    /// The living process `pid`; a zombie is not living.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let start_ticks = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, start_ticks })
    }

    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Asks the process to end, insists after five seconds, and returns when it is gone.
    pub(super) fn end(self) -> Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        // Looked at after the handle is held: from here on the number cannot change hands.
        if !self.is_alive() {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::KILL] {
            // It may end in between, which is what is wanted.
            rustix::process::pidfd_send_signal(&handle, signal).ok();
            if clock::poll_until(Duration::from_secs(5), || (!self.is_alive()).then_some(())).is_some() {
                return Ok(());
            }
        }
        anyhow::bail!("process {} does not end", self.pid)
    }
}

/// Start time of a process that is not a zombie. The name in brackets may hold spaces and brackets itself.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The state is field 3, so the start time (22) is the nineteenth after it.
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

/// Whether a lab has said that it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Booting, or left behind by an `up` that was killed.
    Starting,
    /// SSH answered and `/dev/kvm` was there.
    Running,
}

/// The content of `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which lab: the name of its directory.
    pub(crate) name: String,
    /// How far it came.
    pub(crate) state: State,
    /// The QEMU process.
    pub(crate) pid: u32,
    /// Field 22 of its `/proc/<pid>/stat`.
    pub(crate) start_ticks: u64,
    /// When it was started, in seconds since the unix epoch.
    pub(crate) started: i64,
    /// How long it took until SSH answered, in seconds; 0 while starting.
    pub(crate) boot_seconds: f64,
    /// The loopback port of its sshd.
    pub(crate) port: u16,
    /// The private key that opens it.
    pub(crate) key: PathBuf,
    /// The file that pins its host key.
    pub(crate) known_hosts: PathBuf,
    /// The socket of the shared SSH connection.
    pub(crate) control_path: PathBuf,
    /// ssh with all its options and the destination: append the remote command.
    pub(crate) ssh_argv: Vec<String>,
    /// The kernel it runs, as in `/lib/modules/<version>`.
    pub(crate) kernel_version: String,
    /// The unpacked Debian kernel package: `boot/vmlinuz-<version>` and `lib/modules/<version>`.
    pub(crate) kernel_dir: PathBuf,
    /// The directory of its images; the name is the digest of the recipe they were built from.
    pub(crate) images: PathBuf,
    /// The directory that is mounted at `/artefacts`, if any.
    pub(crate) artefacts: Option<PathBuf>,
    /// What the kernel and init said.
    pub(crate) console: PathBuf,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// Processors.
    pub(crate) cpus: u32,
}

impl Record {
    pub(super) fn identity(&self) -> Identity {
        Identity {
            pid: self.pid,
            start_ticks: self.start_ticks,
        }
    }

    /// The record in `dir`; `None` when there is none or it cannot be read (an older xtask's).
    pub(super) fn load(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join("lab.json")).ok()?).ok()
    }

    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        let temporary = dir.join("lab.json.new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, dir.join("lab.json")))
            .with_context(|| format!("cannot write the record in {}", dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_time_behind_a_nasty_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(&format!("7 (a) b (c) {tail}")), Some(4242));
        assert_eq!(
            parse_stat(&format!("7 (x) {}", tail.replacen('S', "Z", 1))),
            None,
            "a zombie has ended"
        );
    }

    #[test]
    fn a_later_process_with_the_same_number_is_left_alone() {
        let command = crabbox_host::command::Cmd::new("sleep").arg("60");
        let mut child = command.spawn(&mut command.to_std()).unwrap();
        let real = Identity::of(child.id()).unwrap();
        Identity {
            start_ticks: real.start_ticks + 1,
            ..real
        }
        .end()
        .unwrap();
        let ended = clock::poll_until(Duration::from_millis(300), || (!real.is_alive()).then_some(()));
        assert!(ended.is_none(), "another start time is another process");
        real.end().unwrap();
        assert!(!real.is_alive());
        child.wait().unwrap();
    }
}
