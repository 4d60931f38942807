//! `bench run`: what a command in a lease costs that is there already, into a microVM of this host or of the lab.
//!
//! In the lab both sides are emulated, the guest within the emulation: only ratios and counts say something. Timings never decide a test; they are
//! printed for a person and kept in `target/bench/run.json`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde_json::{Map, Value};

use super::median;
use crate::{site, workspace};
use crabbox_lab::payload::{Build, Images};

/// Run on the host. `$1` runs, `$2` another crabbox there, or nothing.
const SCRIPT: &str = concat!(include_str!("timed.sh"), include_str!("run.sh"));

/// The other program there.
const OTHER: &str = "crabbox-other";

/// What is measured: its name in the script and in the document, for a person, whether it is a time.
pub(super) const ROWS: [(&str, &str, bool); 5] = [
    ("unchanged", "run --id, nothing changed", true),
    ("plain", "run --id --no-sync", true),
    ("trip", "ssh true, one connection", true),
    ("started", "processes in the guest, nothing changed", false),
    ("started_plain", "processes in the guest, --no-sync", false),
];

/// Measures and reports. `against` is another crabbox, turn about with ours.
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
        let beside = other.map_or_else(String::new, |other| {
            format!("   the other {other:10.0}   ratio {:.2}", ours / other)
        });
        println!("  {what:<42} {ours:10.0}{beside}");
        document.insert(name.to_owned(), ours.into());
        document.extend(other.map(|other| (format!("other_{name}"), Value::from(other))));
    }
    let out = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("run.json"), serde_json::to_vec_pretty(&document)?)?;
    println!("{}", out.join("run.json").display());
    Ok(ExitCode::SUCCESS)
}
