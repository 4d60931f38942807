//! The KVM host of the end-to-end tests: the lab that `cargo xtask lab` or `cargo xtask test` started.
//!
//! Every command of a test runs there. A test that finds no lab fails and says how to start one; it is never skipped. Tests
//! share the host, so each has its own slugs, repositories and, where it counts residue, [`Host::alone`].
#![expect(
    clippy::panic,
    reason = "all of this is test code: what fails here fails the test"
)]

mod pretend;

pub use pretend::PRETEND;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::command::{Captured, Cmd};
use crabbox_host::lock::FileLock;
use crabbox_testkit::schemas;
use serde::Deserialize;

/// How long one command on the host may take: several leases under emulation.
const LIMIT: Duration = Duration::from_mins(5);
/// How long the host may be silent before it counts as hung.
const SILENCE: Duration = Duration::from_secs(90);

/// Shell: kills command line (`$cli`) and supervisor as one, and waits until both are gone. A supervisor that outlived its client
/// for as long as the shell is off the processor would take the lease back by itself, and leave nothing for a cleanup.
pub const KILL_BOTH: &str = "s=$(pgrep -f '[_]_supervise'); kill -STOP $s; kill -9 $cli $s; \
     for i in $(seq 1000); do pgrep -f '[_]_supervise' >/dev/null || break; sleep 0.01; done";

/// Options with which a lease costs an emulated host as little as possible.
pub const SMALL: &str =
    "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048";

/// A host on which leases are made.
#[derive(Debug)]
pub struct Host {
    ssh: Vec<String>,
    lab_dir: PathBuf,
    /// The namespaces of a pretended host, which end with it.
    _pretend: Option<pretend::Namespaces>,
}

#[derive(Debug, Deserialize)]
struct Record {
    state: String,
    pid: i32,
    ssh_argv: Vec<String>,
}

/// What a command on the host did.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; `None` when it was killed.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Done {
    /// The same, after a check that it exited with `code`; anything else fails the test and shows all output.
    #[must_use]
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as JSON: exactly one document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document: {error}\n{}", self.stdout))
    }

    /// The lease id in the output.
    #[track_caller]
    pub fn lease(&self) -> String {
        let at = self
            .stdout
            .find("cbx_")
            .unwrap_or_else(|| panic!("no lease id in {:?}", self.stdout));
        self.stdout[at..at + 16].to_owned()
    }
}

impl Host {
    /// The running lab called `main`, or the one that `target/lab/current` names.
    #[track_caller]
    pub fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let lab = root.join("target/lab");
        let name = std::fs::read_to_string(lab.join("current")).unwrap_or_else(|_| "main".to_owned());
        let dir = lab.join(name.trim());
        let record = std::fs::read(dir.join("lab.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<Record>(&text).ok())
            .filter(|record| {
                record.state == "running" && Path::new(&format!("/proc/{}", record.pid)).exists()
            });
        match record {
            Some(record) => Self {
                ssh: record.ssh_argv,
                lab_dir: dir,
                _pretend: None,
            },
            None => panic!(
                "this test needs a KVM host with crabbox installed; start the lab: cargo xtask provision"
            ),
        }
    }

    /// The host for this test alone until the guard is dropped, without what a failed test may have left in it.
    #[track_caller]
    pub fn alone(&self) -> FileLock {
        let waited = FileLock::acquire_within(&self.lab_dir.join("alone.lock"), Duration::from_mins(30));
        let guard = waited.unwrap_or_else(|error| panic!("the host is not to be had: {error}"));
        if !self.answers() {
            self.reset();
        }
        drop(self.sh(
            "for id in $(ls .config/crabbox/state/firecracker/leases 2>/dev/null | grep '^cbx_'); do crabbox stop $id; done; \
             crabbox cleanup --provider firecracker",
        ));
        guard
    }

    /// Runs a shell script on the host as root, in its home directory.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Done {
        self.feed(script, &[])
    }

    /// The same with `input` on its standard input.
    #[track_caller]
    pub fn feed(&self, script: &str, input: &[u8]) -> Done {
        let (program, args) = self
            .ssh
            .split_first()
            .unwrap_or_else(|| panic!("the lab's record has no ssh command"));
        let quoted = format!("cd && sh -c '{}'", script.replace('\'', r"'\''"));
        let ran = Cmd::new(program)
            .args(args)
            .arg(quoted)
            .stdin(input)
            .limit(LIMIT)
            .capture();
        let Captured {
            status,
            stdout,
            stderr,
        } = ran.unwrap_or_else(|error| {
            self.must_answer();
            panic!("{script}: {error}")
        });
        // What ssh answers when the host does not; a program may end so, too.
        if status.code() == Some(255) {
            self.must_answer();
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(stdout), text(stderr));
        for line in stderr.lines().filter(|line| line.starts_with("{\"provider\"")) {
            hold("timing", script, line);
        }
        Done {
            code: status.code(),
            stdout,
            stderr,
        }
    }

    /// Resets the lab as a power cut would, and waits until it answers again.
    #[track_caller]
    pub fn reset(&self) {
        let name = self.lab_dir.file_name().unwrap_or_default();
        let reset = Cmd::new(env!("CARGO"))
            .args(["xtask", "lab", "--name"])
            .arg(name)
            .arg("reset")
            .cwd(Path::new(env!("CARGO_MANIFEST_DIR")))
            .limit(LIMIT)
            .run();
        if let Err(error) = reset {
            panic!("the host cannot be reset: {error}");
        }
    }

    /// Whether it is the lab, and not this machine or a part of it.
    fn emulated(&self) -> bool {
        self.ssh.first().is_some_and(|program| program == "ssh")
    }

    /// Whether the host answers over a connection of its own.
    fn answers(&self) -> bool {
        let [program, options @ .., destination] = self.ssh.as_slice() else {
            return false;
        };
        if !self.emulated() {
            return true;
        }
        let asked = Cmd::new(program)
            .args(["-o", "ControlPath=none", "-o", "ControlMaster=no"])
            .args(options)
            .args([destination.as_str(), "--", "true"])
            .limit(SILENCE)
            .capture();
        asked.is_ok_and(|captured| captured.status.success())
    }

    /// Fails the test when the host does not answer at all.
    #[track_caller]
    fn must_answer(&self) {
        assert!(
            self.answers(),
            "the host hung in the middle of this test; what was to be seen of it is in {} after its reset",
            self.lab_dir.join("last-words").display()
        );
    }

    /// Runs `crabbox` with these words, as a shell would split them. A document on standard output must be as its schema says.
    #[track_caller]
    pub fn crabbox(&self, words: &str) -> Done {
        let done = self.sh(&format!("exec crabbox {words}"));
        let each: Vec<&str> = words.split_whitespace().collect();
        // A command that failed before it had a result has said so on standard error.
        if each.contains(&"--json") && !(done.stdout.is_empty() && done.code != Some(0)) {
            hold(&schemas::of(&each, &done.stdout), words, &done.stdout);
        }
        done
    }

    /// Starts a warmup with `options`, runs the shell words `kill` while its supervisor stands still at `point` (`step:phase`), and has
    /// whoever is left go on, more than once: a machine that died is made anew, and comes to the same step.
    #[track_caller]
    pub fn kill_at(&self, point: &str, options: &str, kill: &str) {
        let stands = "pgrep -r T -f '[_]_supervise' >/dev/null";
        let done = self.sh(&format!(
            "CRABBOX_TEST_FAILPOINT=supervisor:{point}:wait crabbox warmup {options} --slug killed >/dev/null 2>&1 & cli=$!; \
             for i in $(seq 600); do {stands} && break; sleep 0.1; done; {stands} || {{ kill -9 $cli; exit 99; }}; \
             {kill}; pkill -CONT -f '[_]_supervise'; \
             (while sleep 0.1; do pkill -CONT -f '[_]_supervise'; done) & on=$!; wait $cli; kill $on"
        ));
        drop(done.exits(0));
    }

    /// Leases a small machine under `slug`, for the repository at `dir`.
    #[track_caller]
    pub fn warmup(&self, dir: &str, slug: &str, more: &str) -> Done {
        self.sh(&format!(
            "cd {dir} && exec crabbox warmup {SMALL} --slug {slug} {more}"
        ))
        .exits(0)
    }

    /// Makes a git repository on the host with one commit, and answers its path.
    #[track_caller]
    pub fn repository(&self, name: &str) -> String {
        let dir = format!("$HOME/e2e/{name}");
        let made = self.sh(&format!(
            "rm -rf {dir} && mkdir -p {dir} && cd {dir} && git init -q && echo one > tracked && mkdir sub && echo sub > sub/file && \
             git add -A && git commit -qm one"
        ));
        drop(made.exits(0));
        dir
    }

    /// What leases could leave behind, as it stands now: one line an object, sorted.
    #[track_caller]
    pub fn residue(&self) -> Vec<String> {
        let found = self.sh(include_str!("residue.sh")).exits(0);
        let mut lines: Vec<String> = found.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

/// Fails unless `text` is one document that follows the schema `name`.
#[track_caller]
fn hold(name: &str, words: &str, text: &str) {
    let document = serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("{words}: not one JSON document: {error}\n{text}"));
    let problems = schemas::problems(name, &document);
    assert!(
        problems.is_empty(),
        "{words} against {name}: {problems:#?}\n{text}"
    );
}

/// Fails unless `after` is `before`, and names what came and what went.
#[track_caller]
pub fn assert_nothing_left(before: &[String], after: &[String]) {
    let mut told = String::new();
    for line in after.iter().filter(|line| !before.contains(line)) {
        // Writing to a String cannot fail.
        writeln!(told, "left behind: {line}").ok();
    }
    for line in before.iter().filter(|line| !after.contains(line)) {
        writeln!(told, "taken away:  {line}").ok();
    }
    assert!(told.is_empty(), "\n{told}");
}
