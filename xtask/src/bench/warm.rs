//! `bench warm`: a lease that comes of a template beside one that boots, turn about in one run, with the page cache as it is and dropped.
//!
//! Two finishing lines: the guest's SSH server listens, so that its banner is there for whoever connects, and `true` has exited in it, in a
//! command of its own. The same machine is loaded with Firecracker alone between them. Timings never decide a test; in the lab only their ratios say something.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::site::{self, Site};
use crate::workspace;
use crabbox_lab::payload::{Build, Images};

/// How many pairs at least.
const LEAST: usize = 3;

/// After how many failures without a success there is nothing to measure.
const MOST_FAILURES: usize = 2;

/// The machine: small, and in a network that every host has.
const MACHINE: &str = "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048 --firecracker-network nat";

/// How the machine of a lease starts, as `--firecracker-warm` and `leaseSource` have it.
const WAYS: [(&str, &str); 2] = [("off", "cold"), ("auto", "restored")];

/// Milliseconds of one lease.
#[derive(Debug, Clone, Default)]
struct Lease {
    /// Until its SSH server listens.
    banner: f64,
    /// Until `true` has exited in it.
    exit: f64,
    /// Until it can be entered, an SSH connection to it open.
    whole: f64,
    /// What of that was our own work.
    ours: f64,
    /// Until the machine runs, once Firecracker is started: its API, and what it is told.
    load: f64,
}

/// Leases of one way under one condition.
#[derive(Debug, Default)]
struct Series {
    leases: Vec<Lease>,
    /// What went wrong with those that are none.
    failures: Vec<String>,
}

/// Pairs of leases, the page cache in the same state for all of them.
#[derive(Debug)]
struct Condition {
    name: &'static str,
    /// In the order of [`WAYS`].
    ways: [Series; 2],
}

/// Makes a template, then `count` pairs of leases, and `dropped` pairs for each of which the host's page cache is emptied.
pub(crate) fn main(lab: &str, count: usize, dropped: usize) -> Result<ExitCode> {
    ensure!(count >= LEAST, "figures of fewer than {LEAST} leases say nothing");
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    site.script("rm -rf \"$HOME/.config/crabbox/state/firecracker/templates\"")?;
    let made: Value = serde_json::from_str(
        &site
            .script(&format!("crabbox image warm {MACHINE} --json"))?
            .stdout_text(),
    )?;
    let idle = site.script(&format!(
        "set -- '{MACHINE}'\n{}",
        include_str!("warm/prepare.sh")
    ))?;
    let anon_kib = number(&idle.stdout_text(), "anon").context("the idle machine said no RssAnon")?;
    let mut conditions = ["as it is", "dropped"].map(|name| Condition {
        name,
        ways: Default::default(),
    });
    let mut raw = Vec::new();
    for (condition, rounds) in conditions.iter_mut().zip([count, dropped]) {
        let drop_cache = condition.name == "dropped";
        for round in 0..rounds {
            // Each of them first in turn, and Firecracker alone in between.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for (place, way) in order.into_iter().enumerate() {
                if drop_cache {
                    site.script("sync && echo 3 > /proc/sys/vm/drop_caches")?;
                }
                let series = &mut condition.ways[way];
                match lease(&site, WAYS[way]) {
                    Ok(lease) => series.leases.push(lease),
                    Err(error) => series.failures.push(format!("{error:#}")),
                }
                ensure!(
                    !series.leases.is_empty() || series.failures.len() < MOST_FAILURES,
                    "no lease came of it: {}",
                    series.failures.join("; ")
                );
                if place == 0 && !drop_cache {
                    raw.push(alone(&site)?);
                }
            }
            let [cold, restored] = condition.ways.each_ref().map(|series| series.leases.last());
            eprintln!(
                "xtask: page cache {}, pair {} of {rounds}: cold {:.0} ms, restored {:.0} ms",
                condition.name,
                round + 1,
                cold.map_or(f64::NAN, |lease| lease.exit),
                restored.map_or(f64::NAN, |lease| lease.exit)
            );
        }
    }
    site.script("ip netns del bench-warm; rm -rf \"$HOME/bench-warm\" \"$HOME/.config/crabbox/state/firecracker/templates\"")?;
    report(&site, &made, anon_kib, &conditions, &raw)
}

/// A new lease and `true` in it, and what both took.
fn lease(site: &Site, (warm, source): (&str, &str)) -> Result<Lease> {
    let made = timings(
        site,
        &format!("crabbox warmup {MACHINE} --firecracker-warm {warm} --slug bench-warm --timing-json"),
    );
    let ran = made.as_ref().ok().map(|_| {
        timings(
            site,
            "crabbox run --id bench-warm --no-sync --timing-json -- true",
        )
    });
    site.run("crabbox stop bench-warm")?;
    let (made, ran) = (made?, ran.context("nothing was leased")??);
    ensure!(
        made["leaseSource"] == source,
        "the machine did not start as it should: {made}"
    );
    let stages = made["leaseStages"].as_array().context("no stages")?;
    let sum = |is: &dyn Fn(&Value) -> bool| -> f64 {
        let micros = stages
            .iter()
            .filter(|stage| is(stage))
            .filter_map(|stage| stage["micros"].as_f64());
        micros.sum::<f64>() / 1000.0
    };
    let lease = made["totalMs"].as_f64().context("no total")?;
    let run = ran["endToEndMs"].as_f64().context("no end to end")?;
    let of = |whose: &'static str| sum(&move |stage| stage["whose"] == whose);
    let others = of("guest") + of("firecracker") + of("ssh");
    Ok(Lease {
        banner: lease - of("ssh"),
        exit: lease + run,
        ours: (lease - others).max(0.0),
        whole: lease,
        load: sum(&|stage| stage["name"] == "vmm-boot"),
    })
}

/// The document that a command prints with `--timing-json`; it must succeed.
fn timings(site: &Site, command: &str) -> Result<Value> {
    let done = site.run(command)?;
    let said = done.stderr_text();
    ensure!(done.status.success(), "`{command}` failed: {said}");
    said.lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("`{command}` printed no timings: {said}"))
}

/// What loading the same machine takes with Firecracker alone, in milliseconds: all of it, and the two requests.
fn alone(site: &Site) -> Result<[f64; 2]> {
    let script = include_str!("warm/raw.py");
    let said = site
        .script(&format!(
            "ip netns exec bench-warm python3 - <<'PYTHON'\n{script}\nPYTHON"
        ))?
        .stdout_text();
    let of = |name| {
        number(&said, name)
            .map(|micros| micros / 1000.0)
            .with_context(|| format!("Firecracker alone said no {name}: {said}"))
    };
    Ok([of("raw")?, of("load")?])
}

/// The number behind `name` on a line of its own.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The value below which this share of `values` lies (nearest rank); none of none.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among a few dozen values"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Half, 95 of 100, and all of them are at most this.
fn figures(values: &[f64]) -> [f64; 3] {
    [0.5, 0.95, 1.0].map(|share| percentile(values, share))
}

/// Half of the leases of one kind take at most this.
fn half(leases: &[Lease], value: fn(&Lease) -> f64) -> f64 {
    percentile(&leases.iter().map(value).collect::<Vec<_>>(), 0.5)
}

/// Prints a row for each kind of lease and finishing line, and returns them.
fn table(conditions: &[Condition]) -> Vec<Value> {
    println!(
        "  {:<10} {:<9} {:<11} {:>4} {:>8} {:>8} {:>8}   failures",
        "page cache", "start", "until", "n", "p50", "p95", "max"
    );
    let mut rows = Vec::new();
    for condition in conditions {
        for ((_, source), series) in WAYS.iter().zip(&condition.ways) {
            let of = |value: fn(&Lease) -> f64| series.leases.iter().map(value).collect::<Vec<_>>();
            for (line, values) in [
                ("banner", of(|lease| lease.banner)),
                ("true exits", of(|lease| lease.exit)),
            ] {
                let [p50, p95, max] = figures(&values);
                println!(
                    "  {:<10} {source:<9} {line:<11} {:>4} {p50:>8.0} {p95:>8.0} {max:>8.0}   {}",
                    condition.name,
                    values.len(),
                    series.failures.len()
                );
                rows.push(json!({
                    "pageCache": condition.name, "start": source, "until": line, "n": values.len(), "p50": p50, "p95": p95,
                    "max": max, "failures": series.failures, "values": values,
                }));
            }
        }
    }
    println!();
    rows
}

/// Prints how a restored lease compares with one that boots, and returns it.
fn ratios(conditions: &[Condition]) -> Vec<Value> {
    let ratio = |condition: &Condition, value: fn(&Lease) -> f64| {
        let [cold, restored] = &condition.ways;
        half(&restored.leases, value) / half(&cold.leases, value)
    };
    let of = |condition: &Condition| {
        let (banner, exit) = (
            ratio(condition, |lease| lease.banner),
            ratio(condition, |lease| lease.exit),
        );
        println!(
            "  restored / cold, page cache {}: banner {banner:.2}, `true` exits {exit:.2}",
            condition.name
        );
        json!({ "pageCache": condition.name, "banner": banner, "exit": exit })
    };
    conditions.iter().map(of).collect()
}

fn report(
    site: &Site,
    made: &Value,
    anon_kib: f64,
    conditions: &[Condition],
    raw: &[[f64; 2]],
) -> Result<ExitCode> {
    println!(
        "\nLeases on {}, from Enter to each finishing line, in ms (1 vCPU, 256 MiB, jailed, nat)\n",
        site.name
    );
    let rows = table(conditions);
    let ratios = ratios(conditions);
    let restored = &conditions[0].ways[1].leases;
    let share = half(restored, |lease| lease.ours / lease.whole);
    let ours = half(restored, |lease| lease.ours);
    let load = half(restored, |lease| lease.load);
    let [whole, requests] = [0, 1].map(|at| {
        let values: Vec<f64> = raw.iter().map(|one| one[at]).collect();
        percentile(&values, 0.5)
    });
    let bytes = made["allocatedBytes"]
        .as_f64()
        .context("the template has no size")?;
    println!(
        "  our own share of a restored lease: {ours:.0} ms, {:.1} %",
        100.0 * share
    );
    println!(
        "  load and resume: {load:.0} ms in a lease, {requests:.0} ms by hand ({:.2}); by hand with Firecracker's start {whole:.0} ms",
        load / requests
    );
    println!(
        "  private memory of an idle restored machine: {:.1} MiB",
        anon_kib / 1024.0
    );
    println!(
        "  template: {:.1} MiB on disk, made in {:.1} s",
        bytes / f64::from(1 << 20),
        made["seconds"].as_f64().unwrap_or(f64::NAN)
    );
    let document = json!({
        "host": site.name, "unit": "milliseconds", "series": rows, "ratios": ratios, "ourShare": share, "oursMs": ours,
        "loadMs": load, "rawLoadMs": requests, "rawWholeMs": whole, "raw": raw, "idleRssAnonKib": anon_kib, "template": made,
    });
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let out = dir.join("warm.json");
    std::fs::write(&out, serde_json::to_vec_pretty(&document)?)?;
    println!("  kept in {}", out.display());
    let ways = conditions.iter().flat_map(|condition| &condition.ways);
    for failure in ways.flat_map(|series| &series.failures) {
        eprintln!("xtask: a lease failed: {failure}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_nearly_all_are_counted_by_rank() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(
            figures(&values).map(|value| format!("{value}")),
            ["10", "19", "20"]
        );
        assert_eq!(figures(&[7.0]).map(|value| format!("{value}")), ["7", "7", "7"]);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_number_stands_behind_its_own_name_alone() {
        let said = "noise\nrawish 1\nraw 5\nload 3\n";
        assert_eq!(
            number(said, "load").map(|value| format!("{value}")),
            Some("3".to_owned())
        );
        assert_eq!(
            number(said, "raw ").map(|value| format!("{value}")),
            Some("5".to_owned())
        );
        assert!(number(said, "anon").is_none());
    }
}
