//! `bench sync --lease`: the same with a microVM of this host or of the lab.
//!
//! In the lab both sides are emulated, the guest inside the emulation: only ratios are meaningful.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use super::report;
use crate::bench::median;
use crate::site;
use crabbox_lab::payload::{Build, Images};

/// Run on the host. `$1` is the number of files, `$2` of runs.
const SCRIPT: &str = concat!(include_str!("../timed.sh"), include_str!("lease.sh"));

/// Measures and reports.
pub(crate) fn main(lab: &str, files: usize, runs: usize) -> Result<ExitCode> {
    ensure!(runs >= 3, "a median of fewer than 3 runs says nothing");
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    let done = site.script(&format!("set -- {files} {runs}\n{SCRIPT}"))?;
    let text = done.stdout_text();
    let measured = |name: &str| -> Result<f64> {
        let times = text
            .lines()
            .filter_map(|line| line.split_once(' ').filter(|(other, _)| *other == name))
            .map(|(_, micros)| micros.parse::<f64>().map(|micros| micros / 1000.0))
            .collect::<Result<Vec<f64>, _>>()?;
        ensure!(!times.is_empty(), "nothing was measured for {name}: {text}");
        Ok(median(times))
    };
    report(
        &format!("{files} files into a microVM on {}", site.name),
        "sync-lease.json",
        (files, runs),
        [measured("first")?, measured("whole")?, measured("bare")?],
        [measured("status")?, measured("noop")?, measured("trip")?],
        [measured("edit")?, measured("edit_rsync")?],
    )
    .context("cannot keep what was measured")
}
