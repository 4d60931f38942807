//! `bench sync`: the cost of a sync over a real sshd on loopback, compared with `git status` and `rsync -a`
//! in the same run.
//!
//! The whole command is timed, from Enter to the prompt, on provider `ssh`. Timings never decide a test; they
//! are printed for a person and kept in `target/bench/sync.json`.

pub(crate) mod lease;

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_testbase::sshd::Sshd;
use serde_json::json;

use super::median;
use crate::workspace;

/// Files per directory.
const A_DIRECTORY: usize = 100;

/// The lease id of the host.
pub(super) const HOST: &str = "static_127-0-0-1";

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_mins(30);

/// The state shared by the measurements.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    sshd: Sshd,
    binary: PathBuf,
}

impl Bench {
    /// Prepares it with a tree of so many files.
    pub(super) fn new(files: usize) -> Result<Self> {
        workspace::cargo()
            .args(["build", "--profile", "lab", "-p", "crabbox"])
            .limit(LIMIT)
            .run()?;
        let bench = Self {
            dir: tempfile::Builder::new().prefix("crabbox-bench-").tempdir()?,
            sshd: Sshd::start(),
            binary: workspace::target_dir().join("lab/crabbox"),
        };
        for dir in ["home/.config/crabbox", "run", "tree"] {
            fs::create_dir_all(bench.at(dir))?;
        }
        fs::set_permissions(
            bench.at("run"),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )?;
        let text = format!(
            "provider: ssh\nssh:\n  key: {}\nstatic:\n  host: 127.0.0.1\n  user: {}\n  port: {}\n  workRoot: {}\nsync:\n  warnFiles: 10000000\n  failFiles: 10000000\n",
            bench.sshd.client_key().display(),
            bench.sshd.user(),
            bench.sshd.port(),
            bench.work().display(),
        );
        fs::write(bench.at("home/.config/crabbox/config.yaml"), text)?;
        bench.plant(files)?;
        Ok(bench)
    }

    fn at(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    fn work(&self) -> PathBuf {
        self.sshd.dir().join("work")
    }

    /// Makes a committed tree of small text files: git makes the pack and the files from one stream, which is
    /// much faster than adding them.
    fn plant(&self, files: usize) -> Result<()> {
        let path = self.at("stream");
        let mut stream = BufWriter::new(File::create(&path)?);
        let what = "commit refs/heads/main\ncommitter b <b@b> 1700000000 +0000\ndata 0\n";
        stream.write_all(what.as_bytes())?;
        for number in 0..files {
            let dir = number / A_DIRECTORY;
            let line = format!("line of file {number}, which is like no other\n");
            let text = line.repeat(1 + number % 60);
            writeln!(
                stream,
                "M 100644 inline d{}/s{}/f{number}.txt\ndata {}\n{text}",
                dir / 50,
                dir % 50,
                text.len()
            )?;
        }
        stream.flush()?;
        drop(stream);
        // A single pack, like a clone; git must not start maintenance by itself during a measurement.
        let script = "git init -q -b main && git config gc.auto 0 && git config maintenance.auto false && \
                      git -c pack.compression=1 fast-import --quiet <../stream && git reset -q --hard main";
        self.local("sh", &["-ec", script]).run()?;
        fs::remove_file(&path)?;
        Ok(())
    }

    fn local(&self, program: &str, words: &[&str]) -> Cmd {
        Cmd::inheriting(program)
            .args(words)
            .cwd(self.at("tree"))
            .env("HOME", self.at("home"))
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .limit(LIMIT)
    }

    pub(super) fn crabbox(&self, words: &[&str]) -> Result<f64> {
        self.other(&self.binary, words)
    }

    /// The same with another program.
    pub(super) fn other(&self, program: &Path, words: &[&str]) -> Result<f64> {
        let program = program.to_str().context("a path that is no text")?;
        timed(&self.local(program, words))
    }

    fn sync(&self) -> Result<f64> {
        self.crabbox(&["run", "--id", HOST, "--sync-only"])
    }

    /// Options of an ssh with a shared connection, as crabbox uses it.
    fn ssh(&self) -> Vec<String> {
        let mut words: Vec<String> = ["-F", "none", "-o", "BatchMode=yes", "-o", "ControlMaster=auto"]
            .map(str::to_owned)
            .to_vec();
        for (name, path) in [
            ("ControlPath", self.at("master")),
            ("UserKnownHostsFile", self.sshd.known_hosts()),
            ("IdentityFile", self.sshd.client_key()),
        ] {
            words.extend(["-o".to_owned(), format!("{name}={}", path.display())]);
        }
        words.extend(["-o".to_owned(), "ControlPersist=1h".to_owned()]);
        words.extend(["-p".to_owned(), self.sshd.port().to_string()]);
        words
    }

    /// A command over an open connection.
    pub(super) fn round_trip(&self) -> Result<f64> {
        let words = self.ssh();
        let host = format!("{}@127.0.0.1", self.sshd.user());
        timed(
            &Cmd::inheriting("ssh")
                .args(words)
                .args([host.as_str(), "true"])
                .limit(LIMIT),
        )
    }

    fn rsync(&self, to: &Path, more: &[&str]) -> Result<f64> {
        let shell = format!("ssh {}", self.ssh().join(" "));
        let to = format!("{}@127.0.0.1:{}/", self.sshd.user(), to.display());
        let words = [&["-a", "-e", shell.as_str()], more, &["./", to.as_str()]].concat();
        timed(&self.local("rsync", &words))
    }
}

/// Waits the whole time, where a nap would be cut.
pub(super) fn pause(time: Duration) {
    poll_until(time, || None::<()>);
}

/// Milliseconds.
fn timed(cmd: &Cmd) -> Result<f64> {
    let started = Instant::now();
    cmd.run()?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Medians of alternating measurements, so that a busy moment of this machine affects all of them.
pub(super) fn turns<const N: usize>(
    runs: usize,
    mut turn: impl FnMut() -> Result<[f64; N]>,
) -> Result<[f64; N]> {
    let mut all = Vec::new();
    for _ in 0..runs {
        all.push(turn()?);
    }
    Ok(std::array::from_fn(|at| {
        median(all.iter().map(|turn| turn[at]).collect())
    }))
}

/// Measures and reports.
pub(crate) fn main(files: usize, runs: usize) -> Result<ExitCode> {
    ensure!(runs >= 3, "a median of fewer than 3 runs says nothing");
    let bench = Bench::new(files)?;
    bench.crabbox(&["warmup"])?;
    bench.round_trip()?;
    let plain = bench.sshd.dir().join("plain");
    let first = turns(3, || {
        fs::remove_dir_all(bench.work()).ok();
        let ours = bench.sync()?;
        fs::remove_dir_all(&plain).ok();
        let whole = bench.rsync(&plain, &[])?;
        fs::remove_dir_all(&plain).ok();
        Ok([ours, whole, bench.rsync(&plain, &["--exclude=/.git"])?])
    })?;
    // Wait until no file was touched recently.
    pause(Duration::from_secs(1));
    bench.sync()?;
    let again = turns(runs, || {
        let status = timed(&bench.local("git", &["status", "--porcelain"]))?;
        Ok([status, bench.sync()?, bench.round_trip()?])
    })?;
    let mut number = 0;
    let edit = turns(runs, || {
        number += 1;
        fs::write(bench.at("tree/d0/s0/f0.txt"), format!("edit {number}\n"))?;
        pause(Duration::from_millis(300));
        let ours = bench.sync()?;
        Ok([ours, bench.rsync(&plain, &["--exclude=/.git"])?])
    })?;
    report(
        &format!("{files} files over sshd on loopback"),
        "sync.json",
        (files, runs),
        first,
        again,
        edit,
    )
}

fn report(
    what: &str,
    name: &str,
    (files, runs): (usize, usize),
    first: [f64; 3],
    again: [f64; 3],
    edit: [f64; 2],
) -> Result<ExitCode> {
    let [first, whole, bare] = first;
    let [status, noop, trip] = again;
    let [edit, edit_rsync] = edit;
    println!("{what}, medians (first sync of 3, the others of {runs}), ms\n");
    println!("  first sync                   {first:10.0}");
    println!(
        "  rsync -a, .git too           {whole:10.0}   first sync / that {:.2}",
        first / whole
    );
    println!(
        "  rsync -a without .git        {bare:10.0}   first sync / that {:.2}",
        first / bare
    );
    println!("  git status                   {status:10.0}");
    println!("  one round trip               {trip:10.0}");
    println!(
        "  sync with nothing to bring   {noop:10.0}   (that - round trip) / git status {:.2}; {:.1} % of the first sync",
        (noop - trip) / status,
        100.0 * noop / first
    );
    println!(
        "  sync of one edit             {edit:10.0}   {:.0} % of rsync -a of the same edit, {:.1} % of rsync -a of the tree",
        100.0 * edit / edit_rsync,
        100.0 * edit / bare
    );
    println!("  rsync -a of the same edit    {edit_rsync:10.0}");
    let document = json!({
        "files": files, "runs": runs, "unit": "milliseconds", "first": first, "rsyncWithGit": whole, "rsync": bare,
        "gitStatus": status, "roundTrip": trip, "nothingToBring": noop, "oneEdit": edit, "oneEditRsync": edit_rsync,
    });
    let out = workspace::target_dir().join("bench").join(name);
    fs::create_dir_all(workspace::target_dir().join("bench"))?;
    fs::write(&out, serde_json::to_vec_pretty(&document)?)?;
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}
