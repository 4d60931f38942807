//! `bench lease`: where the time of a lease goes: our own code, Firecracker, the guest, SSH. Medians, a
//! table, a JSON file.
//!
//! Timings never decide a test; they are printed for a person and kept in `target/bench/lease.json`.

pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod remote;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod sync;
pub(crate) mod warm;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::site::{self, Site};
use crate::workspace;
use crabbox_lab::payload::{Build, Images, Payload};

/// The minimum number of leases.
const LEAST: usize = 5;

/// Measures `count` leases in sequence.
pub(crate) fn lease(lab: &str, count: usize) -> Result<ExitCode> {
    ensure!(
        count >= LEAST,
        "a median of fewer than {LEAST} leases says nothing"
    );
    let (payload, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    // Alternate, so that a busy moment of this machine affects both.
    let (mut runs, mut unjailed) = (Vec::new(), Vec::new());
    for number in 1..=count {
        let run = measure(&site, "")?;
        eprintln!("xtask: lease {number} of {count}: {:.2} s", total(&run) / 1000.0);
        runs.push(run);
        unjailed.push(measure(&site, "--firecracker-jailer none")?);
    }
    report(&site, &runs, &unjailed, &payload)
}

/// Makes a small lease, gives it back, and returns its timing document.
fn timing(site: &Site, more: &str) -> Result<Value> {
    let words = "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --timing-json";
    let done = site.script(&format!(
        "crabbox warmup {words} --slug bench {more} && crabbox stop bench"
    ))?;
    let text = done.stderr_text();
    text.lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("warmup printed no timings: {text}"))
}

/// Measures one lease: milliseconds by stage, each named `owner/stage`.
fn measure(site: &Site, more: &str) -> Result<BTreeMap<String, f64>> {
    let timing = timing(site, more)?;
    let stages = timing["leaseStages"]
        .as_array()
        .context("the timings have no stages")?;
    let mut run = BTreeMap::new();
    for stage in stages {
        let (whose, name) = (
            stage["whose"].as_str().unwrap_or("?"),
            stage["name"].as_str().unwrap_or("?"),
        );
        let micros = stage["micros"].as_f64().unwrap_or(0.0);
        *run.entry(format!("{whose}/{name}")).or_insert(0.0) += micros / 1000.0;
    }
    let accounted = total(&run);
    let all = timing["totalMs"].as_f64().context("the timings have no total")?;
    run.insert("ours/rest".to_owned(), (all - accounted).max(0.0));
    Ok(run)
}

/// The sum of the stages, without work done in parallel to the guest's boot.
fn total(run: &BTreeMap<String, f64>) -> f64 {
    run.iter()
        .filter(|(name, _)| !name.starts_with("meanwhile/"))
        .map(|(_, ms)| ms)
        .sum()
}

/// The median of `values`.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

fn report(
    site: &Site,
    runs: &[BTreeMap<String, f64>],
    unjailed: &[BTreeMap<String, f64>],
    payload: &Payload,
) -> Result<ExitCode> {
    let names: Vec<&String> = runs[0].keys().collect();
    let of = |name: &str| {
        median(
            runs.iter()
                .map(|run| run.get(name).copied().unwrap_or(0.0))
                .collect(),
        )
    };
    let all = median(runs.iter().map(total).collect());
    let share = |whose: &str| {
        let sum = |run: &BTreeMap<String, f64>| {
            run.iter()
                .filter(|(name, _)| name.starts_with(whose))
                .map(|(_, ms)| ms)
                .sum()
        };
        median(runs.iter().map(sum).collect())
    };
    println!(
        "\nA lease on {}, median of {} (1 vCPU, 256 MiB, jailed):\n",
        site.name,
        runs.len()
    );
    println!("  {:<28} {:>10}", "stage", "ms");
    for name in &names {
        println!("  {name:<28} {:>10.1}", of(name));
    }
    println!("  {:<28} {all:>10.1}", "whole");
    let mut shares = serde_json::Map::new();
    println!();
    for whose in ["ours", "firecracker", "guest", "ssh"] {
        let ms = share(&format!("{whose}/"));
        println!("  {whose:<28} {ms:>10.1}   {:>5.1} %", 100.0 * ms / all);
        shares.insert(whose.to_owned(), json!({ "ms": ms, "share": ms / all }));
    }
    let without = median(unjailed.iter().map(total).collect());
    let bytes = std::fs::metadata(&payload.crabbox)?.len();
    println!(
        "\n  without a jail {without:.1} ms (median of {}), so the jail costs {:.1} %",
        unjailed.len(),
        100.0 * (all - without) / without
    );
    println!(
        "  the crabbox binary, stripped: {:.1} MB",
        f64::from(u32::try_from(bytes)?) / 1e6
    );
    let stages: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| ((*name).clone(), json!(of(name))))
        .collect();
    let document = json!({
        "host": site.name, "leases": runs.len(), "wholeMs": all, "stagesMs": stages, "shares": shares,
        "withoutJailMs": without, "binaryBytes": bytes, "runs": runs,
    });
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("lease.json"), serde_json::to_vec_pretty(&document)?)?;
    println!("  kept in {}", dir.join("lease.json").display());
    Ok(ExitCode::SUCCESS)
}
