//! `bench boot`: where the time of a guest goes, from the kernel's first instruction to `ready`, by stage.
//!
//! Each stage is the guest's clock at its end, minus the previous one. Timings never decide a test; they are
//! printed for a person and kept in `target/bench/boot.json`.

pub(crate) mod args;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{median, timing};
use crate::site::{self, Site};
use crate::workspace;
use crabbox_lab::payload::{Build, Images};

/// The minimum number of boots.
const LEAST: usize = 5;

/// How many of the slowest stages to name.
const SLOWEST: usize = 3;

/// A stage and how long it took, in milliseconds.
type Stage = (String, f64);

/// Boots `count` guests in sequence.
pub(crate) fn main(lab: &str, count: usize) -> Result<ExitCode> {
    ensure!(
        count >= LEAST,
        "a median of fewer than {LEAST} boots says nothing"
    );
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    let mut boots = Vec::new();
    for number in 1..=count {
        let boot = boot(&site)?;
        let whole: f64 = boot.iter().map(|(_, ms)| ms).sum();
        eprintln!("xtask: boot {number} of {count}: {:.2} s", whole / 1000.0);
        boots.push(boot);
    }
    report(&site, &boots)
}

fn boot(site: &Site) -> Result<Vec<Stage>> {
    let timing = timing(site, "")?;
    let stages = timing["guestStages"]
        .as_array()
        .context("the guest reported no stages")?;
    let mut before = 0.0;
    let mut boot = Vec::new();
    for stage in stages {
        let name = stage[0].as_str().context("a stage has no name")?;
        let uptime = stage[1].as_f64().context("a stage has no time")?;
        boot.push((name.to_owned(), uptime - before));
        before = uptime;
    }
    Ok(boot)
}

fn report(site: &Site, boots: &[Vec<Stage>]) -> Result<ExitCode> {
    let medians: Vec<Stage> = boots[0]
        .iter()
        .map(|(name, _)| {
            let times = boots.iter().flatten().filter(|(other, _)| other == name);
            (name.clone(), median(times.map(|(_, ms)| *ms).collect()))
        })
        .collect();
    let whole = median(
        boots
            .iter()
            .map(|boot| boot.iter().map(|(_, ms)| ms).sum())
            .collect(),
    );
    let mut slowest: Vec<&Stage> = medians.iter().collect();
    slowest.sort_by(|one, other| other.1.total_cmp(&one.1));
    slowest.truncate(SLOWEST);
    println!(
        "\nA guest on {}, from its kernel's first instruction to `ready`, median of {} (1 vCPU, 256 MiB):\n",
        site.name,
        boots.len()
    );
    println!("  {:<12} {:>10}", "stage", "ms");
    for stage in &medians {
        let place = slowest.iter().position(|slow| slow.0 == stage.0);
        let mark = place.map_or_else(String::new, |place| format!("   slowest {}", place + 1));
        println!("  {:<12} {:>10.1}{mark}", stage.0, stage.1);
    }
    println!("  {:<12} {whole:>10.1}", "whole");
    let stages: serde_json::Map<String, Value> = medians
        .iter()
        .map(|(name, ms)| (name.clone(), json!(ms)))
        .collect();
    let slowest: Vec<&String> = slowest.iter().map(|(name, _)| name).collect();
    let document = json!({
        "host": site.name, "boots": boots.len(), "wholeMs": whole, "stagesMs": stages, "slowest": slowest, "runs": boots,
    });
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let out = dir.join("boot.json");
    std::fs::write(&out, serde_json::to_vec_pretty(&document)?)?;
    println!("  kept in {}", out.display());
    Ok(ExitCode::SUCCESS)
}
