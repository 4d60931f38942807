//! The KVM hosts of the end-to-end tests: the labs started by `cargo xtask provision` or `cargo xtask test`.
//!
//! Every command of a test runs on one of them, to which it has exclusive access. A test that finds none
//! fails and says how to start one; it is never skipped.
#![expect(
    clippy::panic,
    reason = "all of this is test code: what fails here fails the test"
)]

pub mod afar;
pub mod fleet;
mod pretend;

pub use pretend::{OURS, PRETEND};

use std::fmt::Write as _;
use std::time::Duration;

use crabbox_core::shell::single_quoted;
use crabbox_host::clock;
use crabbox_host::command::{Captured, Cmd};
use crabbox_host::lock::FileLock;
use crabbox_lab::lab::{LAST_WORDS, SILENCE};
use crabbox_lab::site::{self, Prepared};
use crabbox_testkit::schemas;

/// How long one command on the host may take: several leases under emulation. Longer than the longest
/// `--firecracker-launch-timeout` of a test, so that the program times out first and says why.
const LIMIT: Duration = Duration::from_mins(12);
/// How long a test waits for a busy host: the time of all tests of the last rung on one emulated host.
const PATIENCE: Duration = Duration::from_hours(1);

/// The environment variable that names the prepared host for a test.
pub const HOST: &str = "CRABBOX_E2E_HOST";

/// Shell: kills command line (`$cli`) and supervisor simultaneously, and waits until both are gone. A
/// supervisor that outlived its client for even a moment would take the lease back by itself, and leave
/// nothing for a cleanup.
pub const KILL_BOTH: &str = "s=$(pgrep -f '[_]_supervise'); kill -STOP $s; kill -9 $cli $s; \
     for i in $(seq 1000); do pgrep -f '[_]_supervise' >/dev/null || break; sleep 0.01; done";

/// Options of a lease that costs an emulated host as little as possible; the plugins of a CNI network alone
/// take two seconds of processor time. A test about networks appends its own options. The long launch timeout
/// is for slow machines, where an emulated host with four simultaneous leases takes longer than any user's
/// host should.
pub const SMALL: &str = "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048 \
     --firecracker-network nat --firecracker-launch-timeout 5m";

/// Added to [`SMALL`] for a lease in a CNI network.
pub const CHAINED: &str = "--firecracker-network cni";

/// A host on which leases are made.
#[derive(Debug)]
pub struct Host {
    /// The words to put before a shell command line to run it there.
    argv: Vec<String>,
    /// The record of a host prepared for all tests; no other test uses it while the lock is held.
    prepared: Option<(Prepared, FileLock)>,
    /// The namespaces of a pretended host, which end with it.
    pretend: Option<pretend::Namespaces>,
}

/// The result of a command on the host.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Done {
    /// Returns itself after checking that it exited with `code`; anything else fails the test and shows all
    /// output.
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
    /// One of the prepared hosts, used exclusively until dropped, and cleaned of leftovers of failed tests.
    /// The environment variable [`HOST`] may name it; without it, the first free one is taken.
    #[track_caller]
    pub fn alone() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "libtest passes no arguments on: this is how who deals the tests says where each one goes"
        )]
        let wanted = std::env::var(HOST).ok();
        let is_wanted = |host: &Prepared| wanted.as_ref().is_none_or(|name| *name == host.name);
        assert!(
            Prepared::all().iter().any(is_wanted),
            "this test needs a KVM host with crabbox installed; start the lab: cargo xtask provision"
        );
        let free = || {
            // Look it up each time, since a task with exclusive access may rebuild it.
            let all = Prepared::all_used().unwrap_or_else(|error| panic!("no host is to be had: {error}"));
            all.into_iter().filter(is_wanted).find_map(|host| {
                let lock = FileLock::try_acquire(&host.dir.join("alone.lock"))
                    .unwrap_or_else(|error| panic!("the host is not to be had: {error}"))?;
                Some((host, lock))
            })
        };
        let (host, lock) = clock::poll_until(PATIENCE, free)
            .unwrap_or_else(|| panic!("no host was free within {} s", PATIENCE.as_secs()));
        let host = Self {
            argv: host.argv.clone(),
            prepared: Some((host, lock)),
            pretend: None,
        };
        if !host.answers() {
            host.reset();
        }
        drop(host.sh(
            "for id in $(ls .config/crabbox/state/firecracker/leases 2>/dev/null | grep '^cbx_'); do crabbox stop $id; done; \
             crabbox cleanup --provider firecracker",
        ));
        host
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
            .argv
            .split_first()
            .unwrap_or_else(|| panic!("the host has no command that gets there"));
        let quoted = format!("cd && sh -c {}", single_quoted(script));
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
            cut: _,
        } = ran.unwrap_or_else(|error| {
            self.must_answer();
            panic!("{script}: {error}")
        });
        // ssh's exit code if the host does not respond; a program may return it, too.
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

    /// The same, but a lab: for tests that affect the whole system, which must not run on a machine that
    /// someone works on.
    #[track_caller]
    pub fn lab() -> Self {
        let host = Self::alone();
        let is_lab = host
            .prepared
            .as_ref()
            .is_some_and(|(host, _)| host.name != site::LOCAL);
        assert!(
            is_lab,
            "this test changes the whole system, which it does in a lab only; this machine's KVM works, so it has none"
        );
        host
    }

    /// Resets the lab like a power cut, and waits until it responds again.
    #[track_caller]
    pub fn reset(&self) {
        let (host, _) = self
            .prepared
            .as_ref()
            .unwrap_or_else(|| panic!("a pretended host has no power to be cut"));
        if let Err(error) = host.reset() {
            panic!("the host cannot be reset: {error:#}");
        }
    }

    /// Whether the host responds over a new connection.
    fn answers(&self) -> bool {
        self.prepared
            .as_ref()
            .is_none_or(|(host, _)| host.answers(SILENCE))
    }

    /// Fails the test if the host does not respond at all.
    #[track_caller]
    fn must_answer(&self) {
        let dir = self.prepared.as_ref().map(|(host, _)| host.dir.join(LAST_WORDS));
        assert!(
            self.answers(),
            "the host hung in the middle of this test; what was to be seen of it is in {} after its reset",
            dir.unwrap_or_default().display()
        );
    }

    /// Runs `crabbox` with these words, split as by a shell. A document on standard output must match its
    /// schema.
    #[track_caller]
    pub fn crabbox(&self, words: &str) -> Done {
        let done = self.sh(&format!("exec crabbox {words}"));
        let each: Vec<&str> = words.split_whitespace().collect();
        // A command that failed before it had a result has reported that on standard error.
        if each.contains(&"--json") && !(done.stdout.is_empty() && done.code != Some(0)) {
            hold(&schemas::of(&each, &done.stdout), words, &done.stdout);
        }
        done
    }

    /// Starts a warmup with `options`, runs the shell words `kill` while its supervisor is stopped at `point`
    /// (`step:phase`), and lets the surviving processes continue, more than once: a machine that died is made
    /// again, and comes to the same step.
    #[track_caller]
    pub fn kill_at(&self, point: &str, options: &str, kill: &str) {
        let stands = "pgrep -r T -f '[_]_supervise' >/dev/null";
        let done = self.sh(&format!(
            "CRABBOX_TEST_FAILPOINT=supervisor:{point}:wait crabbox warmup {options} --slug killed >/dev/null 2>&1 & cli=$!; \
             for i in $(seq 2400); do {stands} && break; sleep 0.1; done; {stands} || {{ kill -9 $cli; exit 99; }}; \
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

    /// The directory of the image `name` in the host's store; the order of images in the store has no
    /// meaning.
    #[track_caller]
    pub fn image(&self, name: &str) -> String {
        let image = self
            .crabbox(&format!("image inspect --json {name}"))
            .exits(0)
            .json();
        let path = image["path"].as_str();
        assert!(path.is_some(), "{image}");
        path.unwrap_or_default().to_owned()
    }

    /// Makes a git repository on the host with one commit, and returns its path.
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

    /// The objects present that leases could leave behind: one line per object, sorted.
    #[track_caller]
    pub fn residue(&self) -> Vec<String> {
        let found = self.sh(site::RESIDUE).exits(0);
        let mut lines: Vec<String> = found.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

/// Fails unless `text` is one document that matches the schema `name`.
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

/// Fails unless `after` equals `before`, and lists what was added and removed.
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
