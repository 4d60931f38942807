//! A pretended host: namespaces of this machine in which crabbox runs with a fake VMM, for tests that need
//! hundreds of leases.
//!
//! Links, rules, routes, mounts, processes and the home directory are separate and end with it; leases have
//! real namespaces, CNI plugins, rules and a real sshd. No microVM runs here, so nothing seen here is a claim
//! about one.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::process;

use crate::Host;

/// Options of a lease on a pretended host.
pub const PRETEND: &str = "--provider firecracker --firecracker-binary /srv/fake/firecracker --firecracker-user root \
     --firecracker-kernel /srv/vmlinux --firecracker-rootfs /srv/rootfs.ext4 --firecracker-disk-mib 64 --firecracker-memory-mib 128 \
     --firecracker-cpus 1 --firecracker-work-root /srv/work --firecracker-cni-conf-dir /srv/cni --firecracker-cni-bin-dir /usr/lib/cni \
     --firecracker-launch-timeout 30s";

/// Options of a lease from the image of [`Host::pretend_ours`].
pub const OURS: &str = "--provider firecracker --firecracker-binary /srv/fake/firecracker --firecracker-user root --firecracker-cpus 1 \
     --firecracker-memory-mib 128 --firecracker-disk-mib 64 --firecracker-work-root /srv/work --firecracker-network nat \
     --firecracker-launch-timeout 20s";

/// Makes the host; run in the new namespaces. `$1` is the directory with our programs.
const MAKE: &str = include_str!("pretend.sh");

/// Makes an image; its arguments are a name and a word.
const BUILD: &str = include_str!("build.sh");

/// The namespaces; they and everything in them end when this is dropped, or when the test dies.
#[derive(Debug)]
pub(crate) struct Namespaces {
    child: Child,
    /// Their first process, by its pid outside.
    first: u32,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Its first process dies with it, and everything in the namespaces with that one.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Host {
    /// A new pretended host. Needs root, and `crabbox`, `fake-firecracker` and `fake-jailer` in the directory
    /// in which this test was built: `cargo build -p crabbox -p crabbox-testkit --bins`.
    #[track_caller]
    pub fn pretend() -> Self {
        let bins = built();
        for program in ["crabbox", "fake-firecracker", "fake-jailer"] {
            assert!(
                bins.join(program).is_file(),
                "this test needs {}: cargo build -p crabbox -p crabbox-testkit --bins",
                bins.join(program).display()
            );
        }
        let cmd = Cmd::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
            ])
            .args(["sh", "-c", MAKE, "sh"])
            .arg(&bins);
        let mut command = cmd.to_std();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // No parent-death signal: the test's thread that starts it may end before the test does.
        let mut child = cmd
            .spawn(process::new_session(&mut command))
            .unwrap_or_else(|error| panic!("cannot pretend a host (root?): {error}"));
        let mut ready = [0; 6];
        let told = child
            .stdout
            .as_mut()
            .is_some_and(|out| std::io::Read::read_exact(out, &mut ready).is_ok());
        assert!(told && &ready == b"ready\n", "the pretended host was not made");
        let inner = first_process(child.id());
        let argv = [
            "nsenter",
            "-t",
            &inner.to_string(),
            "-m",
            "-n",
            "-p",
            "-i",
            "-u",
            "env",
            "-i",
            "HOME=/srv",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C",
            "sh",
            "-c",
        ];
        Self {
            argv: argv.map(str::to_owned).into(),
            prepared: None,
            pretend: Some(Namespaces { child, first: inner }),
        }
    }

    /// The first process of a pretended host, by its pid outside, through which its namespaces are found.
    #[track_caller]
    pub(crate) fn first_process(&self) -> u32 {
        let Some(namespaces) = &self.pretend else {
            panic!("a real host has a first process of its own");
        };
        namespaces.first
    }

    /// Runs `command` repeatedly and kills it a little later each time, until it ends before being killed;
    /// `between` checks what each kill leaves and gets the seconds after which it came. The undisturbed
    /// duration is measured first, and that run is undone with `undo`.
    #[track_caller]
    pub fn kill_at_every_moment(&self, command: &str, undo: &str, between: impl Fn(f64)) {
        let timed =
            format!("began=$(date +%s%N); {command} >&2 && echo $(($(date +%s%N) - began)) && {undo}");
        let time = || -> f64 { self.sh(&timed).exits(0).stdout.trim().parse().unwrap_or_default() };
        // The first run may be unusually slow.
        let mut took = time().min(time());
        let (mut killed, mut moment) = (0, 0);
        loop {
            // If the machine is slower now than when this was measured there are more kills, if it is faster,
            // fewer.
            moment += 1;
            let limit = took / 1e9 / 20.0 * f64::from(moment);
            let done = self.sh(&format!("timeout -s KILL {limit} {command}"));
            if done.code != Some(0) {
                assert_eq!(done.code, Some(137), "{done:?}");
                killed += 1;
                between(limit);
            } else if killed >= 5 {
                return;
            } else {
                // What was measured had waited for something, such as a packet to be sent again: the command
                // can end within `limit`.
                drop(self.sh(undo).exits(0));
                took = limit * 1e9;
                moment = 0;
                assert!(took > 1e6, "it is over at once");
            }
        }
    }

    /// A pretended host with one of our images, whose guests respond and report that they are ready; leases
    /// from it use [`OURS`].
    #[track_caller]
    pub fn pretend_ours() -> Self {
        let host = Self::pretend();
        host.build_image("default", "word");
        host.script(r#"{"sshd": true, "ready": true}"#);
        host
    }

    /// Makes the fake VMM of this host behave as `text` says from its next start on.
    #[track_caller]
    pub fn script(&self, text: &str) {
        drop(
            self.sh(&format!("echo '{text}' > /srv/fake/fake-vmm.json"))
                .exits(0),
        );
    }

    /// What leases could leave behind, once it no longer changes: after waiting for what ends by itself.
    #[track_caller]
    pub fn settled(&self) -> Vec<String> {
        let mut last = self.residue();
        for _ in 0..50 {
            clock::nap(Duration::from_millis(100));
            let now = self.residue();
            if now == last {
                break;
            }
            last = now;
        }
        last
    }

    /// Waits, up to 30 s, until a shell condition is true; otherwise fails the test with diagnostics.
    #[track_caller]
    pub fn until(&self, condition: &str) {
        let waited = self.sh(&format!(
            "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; exit 1"
        ));
        let seen = if waited.code == Some(0) {
            String::new()
        } else {
            self.sh("crabbox list --all; ps ax -o pid,ppid,stat,args; tail -n 40 /srv/.config/crabbox/state/firecracker/leases/*/supervisor.log")
                .stdout
        };
        assert_eq!(waited.code, Some(0), "never became true: {condition}\n{seen}");
    }

    /// Builds the image `name` from a small tree with the file `etc/word` and an invalid kernel, with which a
    /// fake guest gets ready.
    #[track_caller]
    pub fn build_image(&self, name: &str, word: &str) {
        drop(self.sh(&format!("set -- {name} {word}\n{BUILD}")).exits(0));
    }
}

/// The directory of our programs, derived from this test's own.
fn built() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// The first process in the new pid namespace: `unshare`'s only child.
#[track_caller]
fn first_process(unshare: u32) -> u32 {
    let path = format!("/proc/{unshare}/task/{unshare}/children");
    let child = || {
        std::fs::read_to_string(&path)
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    clock::poll_until(Duration::from_secs(5), child)
        .unwrap_or_else(|| panic!("no child of process {unshare}"))
}
