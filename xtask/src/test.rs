//! `test`: everything that CI runs: format, lints, walls, unit and integration tests, end to end on real microVMs.
//!
//! Cargo runs the tests; this task only prepares what they need and never decides that one may be left out.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use crabbox_host::command::Cmd;

use crate::lab::packages;
use crate::payload;
use crate::site::{self, Site};
use crate::stage::stage;
use crate::workspace;

/// Tests for which the host is reset as a power cut would: nothing to be done to a machine that somebody works on.
const RESETS: &str = "after_a_power_cut_one_cleanup_is_enough";

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
    let mut args = vec!["test", "--package", "crabbox-e2e", "--no-fail-fast"];
    for target in targets {
        args.extend(["--test", target]);
    }
    if !site.is_lab() {
        eprintln!("xtask: left out on this host, which cannot be reset: {RESETS}");
        args.extend(["--", "--skip", RESETS]);
    }
    cargo("testing end to end", &args)
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
fn cargo(what: &str, args: &[&str]) -> Result<()> {
    eprintln!("xtask: {what}: cargo {}", args.join(" "));
    let cmd = Cmd::new(env!("CARGO")).args(args).cwd(workspace::root());
    let mut command = cmd.to_std();
    let status = cmd.spawn(&mut command)?.wait()?;
    ensure!(status.success(), "{what} failed: cargo {}", args.join(" "));
    Ok(())
}
