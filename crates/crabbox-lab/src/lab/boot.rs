//! Boots a lab: starts QEMU in its own session and waits until the lab reports that it is ready. A lab that
//! does not come up is killed, and the error has the output of QEMU and the console.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::process::{self, ProcessId};

/// The kernel's command line.
///
/// If the emulator gets no processor for a moment, timer ticks are late; without `no_timer_check` the kernel
/// then considers its timer broken, and panics. QEMU 7.2 keeps translated code by its physical and its virtual
/// address: with `norandmaps` a program that is started again has the same ones, and is not translated again.
const CMDLINE: &str = "console=ttyS0 quiet panic=0 no_timer_check norandmaps net.ifnames=0 mitigations=off";

/// How much translated code QEMU keeps, in MiB, before it drops all of it. A store into a page that held code
/// looks at every piece of that page's code: after minutes without such a drop, clearing memory for a guest
/// where other guests' kernels had been kept the lab's processor for two minutes.
const TRANSLATED_MIB: u32 = 256;

/// How much of a log an error shows, in lines.
const TAIL_LINES: usize = 25;

/// The emulated machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// The emulator; a different program only in tests.
    pub(super) program: OsString,
    pub(super) name: String,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// The lab's own copy-on-write disk.
    pub(super) disk: PathBuf,
    /// A read-only second disk.
    pub(super) artefacts: Option<PathBuf>,
    pub(super) console: PathBuf,
    /// Where QEMU writes its messages.
    pub(super) log: PathBuf,
    /// The socket of QEMU's monitor, which responds even if the guest does not.
    pub(super) monitor: PathBuf,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    /// The loopback port forwarded to its sshd.
    pub(super) port: u16,
}

impl Machine {
    /// QEMU's arguments: AMD-V emulated in software, and a network limited to this machine's loopback.
    fn argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| argv.extend([name.into(), value]);
        add("-name", format!("crabbox-lab-{}", self.name).into());
        add(
            "-accel",
            format!("tcg,thread=multi,tb-size={TRANSLATED_MIB}").into(),
        );
        add("-cpu", "EPYC-v3,+svm,+npt".into());
        add("-smp", self.cpus.to_string().into());
        add("-m", self.memory_mib.to_string().into());
        add("-kernel", self.kernel.clone().into());
        add("-initrd", self.initrd.clone().into());
        add("-append", CMDLINE.into());
        add(
            "-drive",
            drive(&self.disk, "format=qcow2,cache=unsafe,discard=unmap"),
        );
        if let Some(artefacts) = &self.artefacts {
            add("-drive", drive(artefacts, "format=raw,readonly=on"));
        }
        add(
            "-netdev",
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{}-:22", self.port).into(),
        );
        add("-device", "virtio-net-pci,netdev=net".into());
        add("-display", "none".into());
        let mut monitor = OsString::from("unix:");
        monitor.push(&self.monitor);
        monitor.push(",server=on,wait=off");
        add("-monitor", monitor);
        let mut serial = OsString::from("file:");
        serial.push(&self.console);
        add("-serial", serial);
        argv.push("-nodefaults".into());
        argv
    }

    /// Starts the machine. `setsid` gives it its own session, so that it outlives us and is not affected by
    /// our terminal's Ctrl-C.
    pub(super) fn start(&self) -> Result<Booting> {
        let log =
            fs::File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        fs::write(&self.console, "")?;
        let command = Cmd::inheriting("setsid").arg(&self.program).args(self.argv());
        let mut started = command.to_std();
        started
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/");
        let child = command.spawn(&mut started)?;
        let id = process::identify(child.id())?;
        let booting = Booting {
            child,
            id,
            console: self.console.clone(),
            log: self.log.clone(),
        };
        Ok(booting)
    }
}

/// A `-drive` value; QEMU requires commas in file names to be doubled.
fn drive(file: &Path, options: &str) -> OsString {
    format!(
        "if=virtio,file={},{options}",
        file.display().to_string().replace(',', ",,")
    )
    .into()
}

/// A machine that was started and is not ready yet.
#[derive(Debug)]
pub(super) struct Booting {
    child: Child,
    /// `None` if it had already ended when checked.
    pub(super) id: Option<ProcessId>,
    console: PathBuf,
    log: PathBuf,
}

impl Booting {
    /// Waits for the console line of `/lab-init`. If this fails, the machine has been ended.
    pub(super) fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let outcome = clock::poll_until(limit, || match self.child.try_wait() {
            Ok(Some(status)) => Some(Err(format!("QEMU ended ({status})"))),
            Err(error) => Some(Err(format!("QEMU cannot be watched: {error}"))),
            Ok(None) => judge(&read_from(&self.console, 0)),
        });
        let why = match outcome {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => format!("it was not ready within {} s", limit.as_secs()),
        };
        self.child.kill().ok();
        self.child.wait().ok();
        bail!(
            "the lab did not come up: {why} (after {:.1} s){}{}",
            started.elapsed().as_secs_f64(),
            said("QEMU", &self.log),
            said("the console", &self.console)
        )
    }
}

/// Waits until a reset machine reports that it is ready, in its console output from byte `from` on.
pub(super) fn wait_ready_again(
    machine: &ProcessId,
    console: &Path,
    from: u64,
    limit: Duration,
) -> Result<()> {
    let outcome = clock::poll_until(limit, || {
        if process::is_alive(machine) {
            judge(&read_from(console, from))
        } else {
            Some(Err("QEMU has ended".to_owned()))
        }
    });
    match outcome {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => bail!("the lab did not come back: {why}{}", said("the console", console)),
        None => bail!(
            "the lab did not come back within {} s{}",
            limit.as_secs(),
            said("the console", console)
        ),
    }
}

/// A log from byte `from` on; empty if there is nothing yet.
fn read_from(log: &Path, from: u64) -> Vec<u8> {
    let bytes = fs::read(log).unwrap_or_default();
    usize::try_from(from)
        .ok()
        .and_then(|from| bytes.get(from..))
        .unwrap_or_default()
        .to_owned()
}

/// What the console shows so far: ready, failed, or nothing yet.
fn judge(console: &[u8]) -> Option<Result<(), String>> {
    let text = String::from_utf8_lossy(console);
    for line in text.lines() {
        if line.contains("crabbox-lab ready") {
            return Some(if line.contains("kvm=yes") {
                Ok(())
            } else {
                Err("it has no /dev/kvm (kvm-amd did not load)".to_owned())
            });
        }
        for hopeless in ["Kernel panic", "crabbox-lab failed"] {
            if line.contains(hopeless) {
                return Some(Err(line.trim().to_owned()));
            }
        }
    }
    None
}

/// The end of a log, with a heading and its path, without QEMU's warnings about emulating an EPYC in
/// software.
pub(super) fn said(who: &str, log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.contains("TCG doesn't support"))
        .collect();
    if lines.is_empty() {
        return format!("\n{who} said nothing");
    }
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    format!("\n{who} said ({}):\n  {tail}", log.display())
}

/// A loopback port that is free now. If it is taken before QEMU binds it, QEMU fails and another is tried.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free loopback port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A machine whose emulator is `script`; it finds the console's path as `$CONSOLE`.
    fn machine(home: &Path, script: &str) -> Machine {
        let (program, console) = (home.join("emulator"), home.join("console.log"));
        fs::write(
            &program,
            format!("#!/bin/sh\nCONSOLE={}\n{script}\n", console.display()),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Machine {
            program: program.into(),
            name: "test".into(),
            kernel: "/k".into(),
            initrd: "/i".into(),
            disk: "/d".into(),
            artefacts: None,
            console,
            log: home.join("qemu.log"),
            monitor: home.join("monitor"),
            memory_mib: 1,
            cpus: 1,
            port: 1,
        }
    }

    #[test]
    fn an_emulator_that_fails_is_quoted() {
        let home = tempfile::tempdir().unwrap();
        let mut booting = machine(home.path(), "echo 'no such cpu' >&2; exit 1")
            .start()
            .unwrap();
        let error = booting
            .wait_ready(Duration::from_secs(20))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("QEMU ended") && error.contains("no such cpu"),
            "{error}"
        );
    }

    #[test]
    fn a_panic_is_quoted_at_once_and_the_machine_ended() {
        let home = tempfile::tempdir().unwrap();
        let script = "echo 'Kernel panic - not syncing: no root' > $CONSOLE; exec sleep 60";
        let mut booting = machine(home.path(), script).start().unwrap();
        let started = Instant::now();
        let error = booting
            .wait_ready(Duration::from_secs(50))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no root") && started.elapsed() < Duration::from_secs(40),
            "{error}"
        );
        assert!(!process::is_alive(&booting.id.unwrap()));
    }

    #[test]
    fn a_silent_machine_is_given_up_and_ended() {
        let home = tempfile::tempdir().unwrap();
        let mut booting = machine(home.path(), "exec sleep 60").start().unwrap();
        let error = booting
            .wait_ready(Duration::from_millis(300))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not ready within") && error.contains("the console said nothing"),
            "{error}"
        );
        assert!(!process::is_alive(&booting.id.unwrap()));
    }

    #[test]
    fn the_line_of_an_earlier_boot_does_not_count() {
        let home = tempfile::tempdir().unwrap();
        let console = home.path().join("console.log");
        let first = "crabbox-lab ready uptime=4 kvm=yes\n";
        fs::write(&console, first).unwrap();
        let this = &process::identify(std::process::id()).unwrap().unwrap();
        let limit = Duration::from_millis(50);
        wait_ready_again(this, &console, 0, limit).unwrap();
        assert!(wait_ready_again(this, &console, first.len() as u64, limit).is_err());
    }

    #[test]
    fn ready_counts_only_with_kvm() {
        assert_eq!(judge(b"boot\n"), None);
        assert_eq!(
            judge(b"x\r\ncrabbox-lab ready uptime=4.2 kvm=yes\r\n"),
            Some(Ok(()))
        );
        assert!(judge(b"crabbox-lab ready uptime=4.2 kvm=no\n").unwrap().is_err());
    }

    #[test]
    fn the_machine_is_closed_to_the_outside() {
        let home = tempfile::tempdir().unwrap();
        let argv = machine(home.path(), "").argv();
        let netdev = argv
            .iter()
            .map(|word| word.to_string_lossy())
            .find(|word| word.starts_with("user,"))
            .unwrap();
        assert!(netdev.contains("restrict=on") && netdev.contains("hostfwd=tcp:127.0.0.1:"));
    }
}
