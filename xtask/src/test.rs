//! `test`: everything that CI runs: format, lints, walls, unit and integration tests, end to end on real microVMs.
//!
//! Cargo runs the tests; this task only prepares what they need and never decides that one may be left out.

use std::process::{Child, ExitCode};

use anyhow::{Result, ensure};
use crabbox_host::command::Cmd;
use tempfile::NamedTempFile;

use crate::lab::packages;
use crate::payload;
use crate::site::{self, Site};
use crate::stage::stage;
use crate::workspace;

/// Tests for which the host is reset as a power cut would: nothing to be done to a machine that somebody works on.
const RESETS: &str = "after_a_power_cut_one_cleanup_is_enough";

/// Files with tests on pretended hosts only, which have nothing to do with the lab.
const PRETENDED: [&str; 3] = ["fake", "image_store", "room"];

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Which {
    /// All.
    All,
    /// Those that need no KVM host.
    Local,
    /// Those on real microVMs, and on pretended hosts with a fake VMM.
    E2e,
    /// Of these the ones about deaths at the worst moments.
    Crash,
}

/// Runs them.
pub(crate) fn main(which: Which, lab: &str) -> Result<ExitCode> {
    packages::ensure_test_tools()?;
    if matches!(which, Which::All | Which::Local) {
        cargo("checking the format", &["fmt", "--all", "--check"])?;
        cargo(
            "linting",
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        )?;
        stage("checking the walls of the house", || {
            crate::arch::main().map(drop)
        })?;
        stage("checking the licences", || crate::licences::main().map(drop))?;
        cargo(
            "testing all but the end",
            &[
                "test",
                "--workspace",
                "--exclude",
                "crabbox-e2e",
                "--no-fail-fast",
            ],
        )?;
        // About a minute: what reads bytes of others, on many more damaged samples than in a developer's loop.
        longer("looking longer at damaged bytes", 12_000)?;
        // The tests have just built the program; it lies beside this one.
        let crabbox = std::env::current_exe()?.with_file_name("crabbox");
        stage("checking the documents", || crate::docs::check(crabbox))?;
    }
    if which != Which::Local {
        let payload = payload::ensure()?;
        let site = site::choose(&payload, lab)?;
        eprintln!("xtask: end to end on {}", site.name);
        let targets: &[&str] = match which {
            Which::Crash => &["crash", "fake", "room"],
            _ => &[],
        };
        end_to_end(&site, targets)?;
        crate::lab::down(lab)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs those in the files `targets`, or all, on `site`.
fn end_to_end(site: &Site, targets: &[&str]) -> Result<()> {
    stage("building what a pretended host needs", pretended)?;
    let mut wanted = test_files()?;
    wanted.retain(|name| targets.is_empty() || targets.contains(&name.as_str()));
    let only = |names: &[String]| -> Vec<String> {
        let mut args = ["test", "--package", "crabbox-e2e", "--no-fail-fast"]
            .map(str::to_owned)
            .to_vec();
        args.extend(names.iter().flat_map(|name| ["--test".to_owned(), name.clone()]));
        args
    };
    if !site.is_lab() {
        eprintln!("xtask: left out on this host, which cannot be reset: {RESETS}");
        let rest = ["--", "--skip", RESETS].map(str::to_owned);
        return cargo("testing end to end", &[only(&wanted), rest.to_vec()].concat());
    }
    // The lab keeps one processor busy and no more; what is found on this machine after a test is not looked at there.
    let (beside, inside): (Vec<String>, Vec<String>) = wanted
        .into_iter()
        .partition(|name| PRETENDED.contains(&name.as_str()));
    cargo(
        "building the tests",
        &[only(&[]), vec!["--no-run".to_owned()]].concat(),
    )?;
    // No name at all would be all of them.
    let named = |names: &[String]| (!names.is_empty()).then(|| only(names));
    let beside = named(&beside)
        .map(|args| Beside::start("testing on pretended hosts meanwhile", &args))
        .transpose()?;
    let inside = named(&inside).map_or(Ok(()), |args| cargo("testing end to end", &args));
    let beside = beside.map_or(Ok(()), Beside::end);
    inside.and(beside)
}

/// The names of the files with tests of the last rung.
fn test_files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in workspace::root().join("e2e/tests").read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// A cargo whose words are kept until it has ended, so that they do not mix with those of another.
struct Beside {
    what: &'static str,
    child: Child,
    words: NamedTempFile,
}

impl Beside {
    fn start(what: &'static str, args: &[String]) -> Result<Self> {
        eprintln!("xtask: {what}: cargo {}", args.join(" "));
        let words = NamedTempFile::new()?;
        let cmd = Cmd::new(env!("CARGO")).args(args).cwd(workspace::root());
        let mut command = cmd.to_std();
        // One place in the file for both.
        let both = words.reopen()?;
        command.stdout(both.try_clone()?).stderr(both);
        let child = cmd.spawn(&mut command)?;
        Ok(Self { what, child, words })
    }

    fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        eprintln!("xtask: {}: what it said:", self.what);
        std::io::copy(&mut self.words.reopen()?, &mut std::io::stderr())?;
        ensure!(status.success(), "{} failed", self.what);
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Ended long ago, as a rule.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The programs of a pretended host, as the tests look for them: unoptimised, beside the tests.
fn pretended() -> Result<()> {
    let build = Cmd::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "crabbox",
            "--package",
            "crabbox-testkit",
            "--bins",
        ])
        .cwd(workspace::root());
    build.run()?;
    Ok(())
}

/// Runs the tests of what reads bytes of others with `cases` samples each.
fn longer(what: &str, cases: u32) -> Result<()> {
    let args = ["test", "--package", "crabbox-testkit", "--test", "untrusted"];
    eprintln!("xtask: {what}: PROPTEST_CASES={cases} cargo {}", args.join(" "));
    let cmd = Cmd::new(env!("CARGO"))
        .args(args)
        .env("PROPTEST_CASES", cases.to_string())
        .cwd(workspace::root());
    let mut command = cmd.to_std();
    let status = cmd.spawn(&mut command)?.wait()?;
    ensure!(status.success(), "{what} failed: cargo {}", args.join(" "));
    Ok(())
}

/// Runs cargo with its output on ours.
fn cargo<S: AsRef<str>>(what: &str, args: &[S]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    eprintln!("xtask: {what}: cargo {}", args.join(" "));
    let cmd = Cmd::new(env!("CARGO")).args(&args).cwd(workspace::root());
    let mut command = cmd.to_std();
    let status = cmd.spawn(&mut command)?.wait()?;
    ensure!(status.success(), "{what} failed: cargo {}", args.join(" "));
    Ok(())
}
