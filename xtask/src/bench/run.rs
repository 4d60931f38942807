//! `bench run`: the cost of a command in an existing lease, in a microVM of this host or of the lab.
//!
//! In the lab both sides are emulated, the guest inside the emulation: only ratios and counts are meaningful.
//! Timings never decide a test; they are printed for a person and kept in `target/bench/run.json`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value};

use super::median;
use super::sync::{Bench, HOST, pause, turns};
use crate::{site, workspace};
use crabbox_lab::payload::{Build, Images};

/// Run on the host. `$1` is the number of runs, `$2` another crabbox there, or empty.
const SCRIPT: &str = concat!(include_str!("timed.sh"), include_str!("run.sh"));

/// The name of the other program there.
const OTHER: &str = "crabbox-other";

/// The number of files in the tree for loopback.
const LOOPBACK_FILES: usize = 100;

/// The measurements: the name in the script and in the document, the name for a person, whether it is a time.
pub(super) const ROWS: [(&str, &str, bool); 5] = [
    ("unchanged", "run --id, nothing changed", true),
    ("plain", "run --id --no-sync", true),
    ("trip", "ssh true, one connection", true),
    ("started", "processes in the guest, nothing changed", false),
    ("started_plain", "processes in the guest, --no-sync", false),
];

/// The same over a real sshd on loopback. It has only times: counts would include other processes of this
/// machine.
pub(crate) fn loopback(runs: usize, against: Option<&Path>) -> Result<ExitCode> {
    ensure!(runs >= 3, "a median of fewer than 3 runs says nothing");
    let bench = Bench::new(LOOPBACK_FILES)?;
    bench.crabbox(&["warmup"])?;
    bench.round_trip()?;
    let unchanged = ["run", "--id", HOST, "--", "true"];
    let plain = ["run", "--id", HOST, "--no-sync", "--", "true"];
    // Wait until no file was touched recently, and everything is in place.
    bench.crabbox(&unchanged)?;
    pause(Duration::from_secs(1));
    bench.crabbox(&unchanged)?;
    let [ours_unchanged, ours_plain, trip, other_unchanged, other_plain] = turns(runs, || {
        let mut all = [
            bench.crabbox(&unchanged)?,
            bench.crabbox(&plain)?,
            bench.round_trip()?,
            0.0,
            0.0,
        ];
        if let Some(other) = against {
            all[3] = bench.other(other, &unchanged)?;
            all[4] = bench.other(other, &plain)?;
        }
        Ok(all)
    })?;
    println!("A command over sshd on loopback, medians of {runs}, ms\n");
    let mut document = Map::new();
    document.insert("runs".to_owned(), runs.into());
    for ((name, what, _), ours, other) in [
        (ROWS[0], ours_unchanged, Some(other_unchanged)),
        (ROWS[1], ours_plain, Some(other_plain)),
        (ROWS[2], trip, None),
    ] {
        let other = other.filter(|_| against.is_some());
        row(&mut document, (name, what), ours, other);
    }
    write(document, "run-loopback.json")
}

/// Measures and reports. `against` is another crabbox, measured alternately with ours.
pub(crate) fn main(lab: &str, runs: usize, against: Option<&Path>) -> Result<ExitCode> {
    ensure!(runs >= 3, "a median of fewer than 3 runs says nothing");
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    let other = match against {
        Some(program) => {
            site.put_program(program, OTHER)?;
            format!("\"$HOME/{OTHER}\"")
        }
        None => String::new(),
    };
    let done = site.script(&format!("set -- {runs} {other}\n{SCRIPT}"))?;
    let text = done.stdout_text();
    let measured = |name: &str, is_time: bool| -> Result<Option<f64>> {
        let values = text
            .lines()
            .filter_map(|line| line.split_once(' ').filter(|(other, _)| *other == name))
            .map(|(_, value)| {
                value
                    .parse::<f64>()
                    .map(|value| if is_time { value / 1000.0 } else { value })
            })
            .collect::<Result<Vec<f64>, _>>()?;
        Ok((!values.is_empty()).then(|| median(values)))
    };
    println!("A command in a lease on {}, medians of {runs}, ms\n", site.name);
    let mut document = Map::new();
    document.insert("runs".to_owned(), runs.into());
    for (name, what, is_time) in ROWS {
        let ours = measured(name, is_time)?;
        ensure!(ours.is_some(), "nothing was measured for {name}: {text}");
        let (ours, other) = (
            ours.unwrap_or_default(),
            measured(&format!("other_{name}"), is_time)?,
        );
        row(&mut document, (name, what), ours, other);
    }
    write(document, "run.json")
}

fn row(document: &mut Map<String, Value>, (name, what): (&str, &str), ours: f64, other: Option<f64>) {
    let beside = other.map_or_else(String::new, |other| {
        format!("   the other {other:10.1}   ratio {:.2}", ours / other)
    });
    println!("  {what:<42} {ours:10.1}{beside}");
    document.insert(name.to_owned(), ours.into());
    document.extend(other.map(|other| (format!("other_{name}"), Value::from(other))));
}

fn write(document: Map<String, Value>, name: &str) -> Result<ExitCode> {
    let out = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&out)?;
    std::fs::write(
        out.join(name),
        serde_json::to_vec_pretty(&Value::Object(document))?,
    )?;
    println!("{}", out.join(name).display());
    Ok(ExitCode::SUCCESS)
}
