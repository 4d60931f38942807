//! The record of one lab, `lab.json`: everything that another program needs to talk to it. A record is only
//! trusted together with the process it names (pid and start time); no signal is ever sent on the basis of a
//! pid alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use crabbox_host::process::{self, ProcessId};
use serde::{Deserialize, Serialize};

/// How long a machine gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Whether a lab has said that it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Booting, or left behind by an `up` that was killed.
    Starting,
    /// SSH answered and `/dev/kvm` was there.
    Running,
}

/// The content of `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The name of the lab and of its directory.
    pub name: String,
    /// Its state.
    pub state: State,
    /// The QEMU process.
    pub pid: u32,
    /// Field 22 of its `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// The host's boot in which it was started.
    pub boot_id: String,
    /// When it was started, in seconds since the unix epoch.
    pub started: i64,
    /// How long it took until SSH answered, in seconds; 0 while starting.
    pub boot_seconds: f64,
    /// The loopback port of its sshd.
    pub port: u16,
    /// The private key that opens it.
    pub key: PathBuf,
    /// The file that pins its host key.
    pub known_hosts: PathBuf,
    /// The socket of the shared SSH connection.
    pub control_path: PathBuf,
    /// ssh with all its options and the destination: append the remote command.
    pub ssh_argv: Vec<String>,
    /// The kernel it runs, as in `/lib/modules/<version>`.
    pub kernel_version: String,
    /// The unpacked Debian kernel package: `boot/vmlinuz-<version>` and `lib/modules/<version>`.
    pub kernel_dir: PathBuf,
    /// The directory of its images; the name is the digest of the recipe they were built from.
    pub images: PathBuf,
    /// The directory mounted at `/artefacts`, if any.
    pub artefacts: Option<PathBuf>,
    /// The output of the kernel and init.
    pub console: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
}

impl Record {
    /// The QEMU process.
    pub(super) fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            started: self.start_ticks.to_string(),
            boot_id: self.boot_id.clone(),
        }
    }

    /// Asks the machine to end, kills it after five seconds, and returns when it is gone.
    pub(super) fn end(&self) -> Result<()> {
        if let Some(handle) = process::open(&self.process())? {
            handle.terminate(GRACE)?;
        }
        Ok(())
    }

    /// The record in `dir`; `None` if it does not exist or cannot be read.
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

    const RECORD: &str = r#"{"name":"main","state":"running","pid":7,"start_ticks":4242,"boot_id":"","started":1,"boot_seconds":1.5,"port":1,
        "key":"k","known_hosts":"h","control_path":"c","ssh_argv":[],"kernel_version":"v","kernel_dir":"d","images":"i",
        "artefacts":null,"console":"o","memory_mib":1,"cpus":1}"#;

    #[test]
    fn a_later_process_with_the_same_number_is_left_alone() {
        let command = crabbox_host::command::Cmd::inheriting("sleep").arg("60");
        let mut child = command.spawn(&mut command.to_std()).unwrap();
        let real = process::identify(child.id()).unwrap().unwrap();
        let mut record: Record = serde_json::from_str(RECORD).unwrap();
        record.pid = real.pid;
        record.boot_id.clone_from(&real.boot_id);
        record.start_ticks = real.started.parse::<u64>().unwrap() + 1;
        record.end().unwrap();
        assert!(process::is_alive(&real), "another start time is another process");
        record.start_ticks -= 1;
        record.end().unwrap();
        assert!(!process::is_alive(&real));
        child.wait().unwrap();
    }
}
