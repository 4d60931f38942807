//! The end-to-end tests, and a second try for those that were cut short because the emulated host, or an emulated machine in it, stood
//! still: QEMU's software emulation of AMD-V does that now and then. A test that failed for any other reason is never repeated.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, bail, ensure};
use crabbox_host::command::Cmd;

use crate::lab::{self, Lab, Options};
use crate::site::Site;
use crate::stage::stage;
use crate::workspace;

/// Where the harness (`e2e/src/lib.rs`) names the tests that were cut short, in the lab's directory.
const HUNG: &str = "hung";

/// Tests for which the host is reset as a power cut would: nothing to be done to a machine that somebody works on.
const RESETS: &str = "after_a_power_cut_one_cleanup_is_enough";

/// Runs those in the files `targets`, or all, on `site`.
pub(crate) fn main(site: &Site, lab: &str, targets: &[&str]) -> Result<()> {
    stage("building what a pretended host needs", pretended)?;
    let mut own = Vec::new();
    for target in targets {
        own.extend(["--test", target]);
    }
    own.push("--");
    if !site.is_lab() {
        eprintln!("xtask: left out on this host, which cannot be reset: {RESETS}");
        own.extend(["--skip", RESETS]);
    }
    let dir = lab::dir_of(lab)?;
    let hung = dir.join(HUNG);
    std::fs::remove_file(&hung).ok();
    let failed = cargo_test(&own)?;
    if failed.is_empty() {
        return Ok(());
    }
    let cut_short = names(&hung);
    let own: Vec<_> = failed.difference(&cut_short).cloned().collect();
    ensure!(own.is_empty(), "testing end to end failed: {}", own.join(", "));
    eprintln!(
        "xtask: THE EMULATOR STOOD STILL during {} (what a hung host left to see is in {}). These tests, and only these, are repeated once.",
        failed.iter().cloned().collect::<Vec<_>>().join(", "),
        dir.join(lab::LAST_WORDS).display()
    );
    let host = Lab::find(lab)?;
    if !host.answers(lab::SILENCE) {
        host.reset(Options::default().limit)?;
    }
    let mut again = vec!["--", "--exact"];
    again.extend(failed.iter().map(String::as_str));
    let failed = cargo_test(&again)?;
    ensure!(
        failed.is_empty(),
        "testing end to end failed, the second time too: {}",
        failed.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The lines of a file; none is none.
fn names(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
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

/// Runs the tests that `words` choose, with their output on ours, and answers which failed.
fn cargo_test(words: &[&str]) -> Result<BTreeSet<String>> {
    let cmd = Cmd::new(env!("CARGO"))
        .args(["test", "--package", "crabbox-e2e", "--no-fail-fast"])
        .args(words)
        .cwd(workspace::root());
    let mut command = cmd.to_std();
    command.stdout(Stdio::piped());
    let mut child = cmd.spawn(&mut command)?;
    let mut failed = BTreeSet::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            failed.extend(failed_test(&line));
            writeln!(std::io::stdout(), "{line}")?;
        }
    }
    let status = child.wait()?;
    if failed.is_empty() && !status.success() {
        bail!("testing end to end failed: cargo test --package crabbox-e2e");
    }
    Ok(failed)
}

/// The name of the test of which this line of libtest says that it failed.
fn failed_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_test_counts() {
        assert_eq!(failed_test("test a::b ... FAILED").as_deref(), Some("a::b"));
        for line in [
            "test a ... ok",
            "test result: FAILED. 2 passed",
            "test a has been running for over 60 seconds",
        ] {
            assert_eq!(failed_test(line), None, "{line}");
        }
    }
}
