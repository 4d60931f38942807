//! `bench warm`: leases restored from a template and taken from a pool, compared with booted ones,
//! alternating in one run, with the page cache unchanged and dropped; many at once; and a build in a lease of
//! each kind.
//!
//! There are two finishing lines: the guest's SSH server listens, so that a client gets its banner; and
//! `true`, run by a separate command in it, has exited. In between, Firecracker alone loads the same machine.
//! A failure is counted, and ends only its own lease; figures are saved after every round. Timings never
//! decide a test; in the lab only their ratios are meaningful.

mod measure;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::measure::{Crowd, Lease, LeaseSource, alone, build, command, crowd, lease};
use crate::site::{self, Site};
use crate::workspace;
use crabbox_lab::payload::{Build, Images};

/// The minimum number of rounds.
const LEAST: usize = 3;

/// After how many failures without a success a kind of lease is no longer tried.
const MOST_FAILURES: usize = 2;

/// The machine: small, and in a network that every host has.
const MACHINE: &str = "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048 --firecracker-network nat";

/// What is measured, and how often.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Order {
    /// How many rounds with the page cache as it is
    #[arg(long = "n", visible_alias = "count", default_value_t = 20)]
    count: usize,
    /// How many rounds for each lease of which the page cache is dropped
    #[arg(long, default_value_t = 5)]
    dropped: usize,
    /// How many leases are begun at once; 0 leaves that out
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Seconds of a build in a lease that boots, which is then done in one of a template; 0 leaves that out
    #[arg(long, default_value_t = 60)]
    build: u32,
    /// After how many minutes nothing more is begun
    #[arg(long, default_value_t = 120)]
    minutes: u64,
}

/// Leases of one kind under one condition.
#[derive(Debug, Default)]
struct Series {
    leases: Vec<Lease>,
    /// The errors of the leases that failed.
    failures: Vec<String>,
}

impl Series {
    fn take(&mut self, made: Result<Lease>) {
        match made {
            Ok(lease) => self.leases.push(lease),
            Err(error) => {
                eprintln!("xtask: a lease failed: {error:#}");
                self.failures.push(format!("{error:#}"));
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.leases.is_empty() && self.failures.len() >= MOST_FAILURES
    }
}

/// Rounds of leases with the same state of the page cache.
#[derive(Debug)]
struct Condition {
    name: &'static str,
    /// In the order of [`LeaseSource::ALL`].
    ways: [Series; 3],
}

/// All measurements.
#[derive(Debug)]
struct Figures {
    host: String,
    /// The document of `image warm` about the template.
    made: Value,
    anon_kib: f64,
    conditions: [Condition; 2],
    /// Firecracker alone, see [`alone`].
    raw: Vec<[f64; 2]>,
    crowd: Option<(usize, Crowd)>,
    /// Milliseconds of the same build in a lease that boots and in one of a template.
    builds: Vec<[f64; 2]>,
    /// Other measurements that failed.
    failures: Vec<String>,
}

/// Removes what was put on the site, however the bench ends.
struct Tidy<'a>(&'a Site);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        // Leftovers are found by the next bench.
        self.0
            .run(
                "crabbox stop bench-warm; crabbox stop bench-idle; crabbox pool drain; ip netns del bench-warm; \
                 rm -rf \"$HOME/bench-warm\" \"$HOME/bench-build.sh\" \"$HOME/.config/crabbox/state/firecracker/templates\"",
            )
            .ok();
    }
}

/// Makes a template and takes the measurements in `order`.
pub(crate) fn main(lab: &str, order: Order) -> Result<ExitCode> {
    ensure!(
        order.count >= LEAST,
        "figures of fewer than {LEAST} leases say nothing"
    );
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    let tidy = Tidy(&site);
    let until = Instant::now() + Duration::from_secs(60 * order.minutes);
    let mut figures = prepare(&site)?;
    for (at, rounds) in [order.count, order.dropped].into_iter().enumerate() {
        for number in 0..rounds {
            if Instant::now() >= until {
                figures
                    .failures
                    .push(format!("the time was over after {number} of {rounds} rounds"));
                break;
            }
            round(&site, &mut figures, at, number)?;
            eprintln!("xtask: {}", told(&figures.conditions[at], number + 1, rounds));
            keep(&figures)?;
        }
    }
    if order.at_once > 0 && Instant::now() < until {
        match crowd(&site, order.at_once) {
            Ok(crowd) => figures.crowd = Some((order.at_once, crowd)),
            Err(error) => figures
                .failures
                .push(format!("{} at once: {error:#}", order.at_once)),
        }
        keep(&figures)?;
    }
    if order.build > 0 && Instant::now() < until {
        match builds(&site, order.build) {
            Ok(builds) => figures.builds = builds,
            Err(error) => figures.failures.push(format!("the builds: {error:#}")),
        }
    }
    drop(tidy);
    report(&figures)
}

fn prepare(site: &Site) -> Result<Figures> {
    // Remove the leftovers of a bench that was killed.
    drop(Tidy(site));
    let made = command(site, &format!("crabbox image warm {MACHINE} --json"))?;
    let idle = site.script(&format!(
        "set -- '{MACHINE}'\n{}",
        include_str!("warm/prepare.sh")
    ))?;
    Ok(Figures {
        host: site.name.to_owned(),
        made: serde_json::from_str(&made).context("`image warm` printed no document")?,
        anon_kib: number(&idle.stdout_text(), "anon").context("the idle machine said no RssAnon")?,
        conditions: ["as it is", "dropped"].map(|name| Condition {
            name,
            ways: Default::default(),
        }),
        raw: Vec::new(),
        crowd: None,
        builds: Vec::new(),
        failures: Vec::new(),
    })
}

/// One lease of each kind, each of them first in turn, and Firecracker alone in between.
fn round(site: &Site, figures: &mut Figures, at: usize, number: usize) -> Result<()> {
    let condition = &mut figures.conditions[at];
    let drop_cache = condition.name == "dropped";
    for place in 0..LeaseSource::ALL.len() {
        let way = (place + number) % LeaseSource::ALL.len();
        let series = &mut condition.ways[way];
        if !series.is_given_up() {
            series.take(lease(site, LeaseSource::ALL[way], drop_cache));
        }
    }
    ensure!(
        !condition.ways.iter().all(Series::is_given_up),
        "no lease came of it: {}",
        condition
            .ways
            .iter()
            .flat_map(|series| &series.failures)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ")
    );
    if !drop_cache {
        match alone(site) {
            Ok(one) => figures.raw.push(one),
            Err(error) => figures.failures.push(format!("Firecracker alone: {error:#}")),
        }
    }
    Ok(())
}

fn told(condition: &Condition, number: usize, rounds: usize) -> String {
    let of = |(way, series): (&LeaseSource, &Series)| {
        let last = series.leases.last().map_or(f64::NAN, |lease| lease.exit);
        format!("{} {last:.0} ms", way.name())
    };
    let all: Vec<String> = LeaseSource::ALL.iter().zip(&condition.ways).map(of).collect();
    format!(
        "page cache {}, round {number} of {rounds}: {}",
        condition.name,
        all.join(", ")
    )
}

/// The same build in a booted lease and in a restored one, twice, each of them first in turn.
fn builds(site: &Site, seconds: u32) -> Result<Vec<[f64; 2]>> {
    let (cold, units) = build(site, LeaseSource::Cold, &format!("for {seconds}"))?;
    let asked = units.to_string();
    let (restored, _) = build(site, LeaseSource::Restored, &asked)?;
    let (restored_first, _) = build(site, LeaseSource::Restored, &asked)?;
    let (cold_then, _) = build(site, LeaseSource::Cold, &asked)?;
    Ok(vec![[cold, restored], [cold_then, restored_first]])
}

/// The number after `name` on a line of its own.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The percentile of `values` at this share (nearest rank); `None` without values.
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

/// Median, 95th percentile, and maximum.
fn figures(values: &[f64]) -> [f64; 3] {
    [0.5, 0.95, 1.0].map(|share| percentile(values, share))
}

/// The median of the leases of one kind.
fn half(leases: &[Lease], value: fn(&Lease) -> f64) -> f64 {
    percentile(&leases.iter().map(value).collect::<Vec<_>>(), 0.5)
}

/// A row for each kind of lease and finishing line that has data.
fn rows(conditions: &[Condition]) -> Vec<Value> {
    let mut rows = Vec::new();
    for condition in conditions {
        for (way, series) in LeaseSource::ALL.iter().zip(&condition.ways) {
            let of = |value: fn(&Lease) -> f64| series.leases.iter().map(value).collect::<Vec<_>>();
            for (line, values) in [
                ("banner", of(|lease| lease.banner)),
                ("true exits", of(|lease| lease.exit)),
            ] {
                if !values.is_empty() {
                    let [p50, p95, max] = figures(&values);
                    rows.push(json!({
                        "pageCache": condition.name, "start": way.name(), "until": line, "n": values.len(), "p50": p50, "p95": p95,
                        "max": max, "failures": series.failures, "values": values,
                    }));
                }
            }
        }
    }
    rows
}

/// The other kinds of leases in relation to booted ones.
fn ratios(conditions: &[Condition]) -> Vec<Value> {
    let mut ratios = Vec::new();
    for condition in conditions {
        let [cold, others @ ..] = &condition.ways;
        for (way, series) in LeaseSource::ALL[1..].iter().zip(others) {
            let ratio = |value: fn(&Lease) -> f64| half(&series.leases, value) / half(&cold.leases, value);
            if !(series.leases.is_empty() || cold.leases.is_empty()) {
                ratios.push(json!({
                    "pageCache": condition.name, "start": way.name(), "banner": ratio(|lease| lease.banner), "exit": ratio(|lease| lease.exit),
                }));
            }
        }
    }
    ratios
}

/// The document; what was not measured is null.
fn document(figures: &Figures) -> Value {
    let restored = &figures.conditions[0].ways[1].leases;
    let [whole, requests] = [0, 1].map(|at| {
        let values: Vec<f64> = figures.raw.iter().map(|one| one[at]).collect();
        percentile(&values, 0.5)
    });
    let builds = figures
        .builds
        .iter()
        .map(|[cold, restored]| json!({ "coldMs": cold, "restoredMs": restored }));
    let crowd = figures.crowd.map(|(count, crowd)| {
        let by_processors = f64::from(u32::try_from(count).unwrap_or(0)) * crowd.alone / crowd.processors;
        json!({
            "count": count, "restored": crowd.restored, "wallMs": crowd.wall, "aloneProcessorMs": crowd.alone, "processors": crowd.processors,
            "wallByProcessors": crowd.wall / by_processors,
        })
    });
    json!({
        "host": figures.host, "unit": "milliseconds", "series": rows(&figures.conditions), "ratios": ratios(&figures.conditions),
        "ourShare": half(restored, |lease| lease.ours / lease.whole), "oursMs": half(restored, |lease| lease.ours),
        "loadMs": half(restored, |lease| lease.load), "rawLoadMs": requests, "rawWholeMs": whole, "raw": figures.raw,
        "idleRssAnonKib": figures.anon_kib, "template": figures.made, "atOnce": crowd, "builds": builds.collect::<Vec<_>>(),
        "failures": figures.failures,
    })
}

/// Saves the figures so far.
fn keep(figures: &Figures) -> Result<Value> {
    let document = document(figures);
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("warm.json"), serde_json::to_vec_pretty(&document)?)?;
    Ok(document)
}

fn report(figures: &Figures) -> Result<ExitCode> {
    let document = keep(figures)?;
    table(figures, &document);
    println!();
    rest(figures, &document);
    println!(
        "  kept in {}",
        workspace::target_dir().join("bench/warm.json").display()
    );
    for failure in &figures.failures {
        eprintln!("xtask: not measured: {failure}");
    }
    Ok(ExitCode::SUCCESS)
}

fn text(row: &Value, name: &str) -> String {
    row[name].as_str().unwrap_or_default().to_owned()
}

fn of(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

/// A line for each kind of lease, page cache state and finishing line.
fn table(figures: &Figures, document: &Value) {
    println!(
        "\nLeases on {}, from Enter to each finishing line, in ms (1 vCPU, 256 MiB, jailed, nat)\n",
        figures.host
    );
    println!(
        "  {:<10} {:<9} {:<11} {:>4} {:>8} {:>8} {:>8}   failures",
        "page cache", "start", "until", "n", "p50", "p95", "max"
    );
    for row in document["series"].as_array().into_iter().flatten() {
        println!(
            "  {:<10} {:<9} {:<11} {:>4} {:>8.0} {:>8.0} {:>8.0}   {}",
            text(row, "pageCache"),
            text(row, "start"),
            text(row, "until"),
            of(row, "n"),
            of(row, "p50"),
            of(row, "p95"),
            of(row, "max"),
            row["failures"].as_array().map_or(0, Vec::len)
        );
    }
}

/// The comparisons and counts.
fn rest(figures: &Figures, document: &Value) {
    for row in document["ratios"].as_array().into_iter().flatten() {
        println!(
            "  {} / cold, page cache {}: banner {:.2}, `true` exits {:.2}",
            text(row, "start"),
            text(row, "pageCache"),
            of(row, "banner"),
            of(row, "exit")
        );
    }
    let all = |name: &str| of(document, name);
    println!(
        "  our own share of a restored lease: {:.0} ms, {:.1} %",
        all("oursMs"),
        100.0 * all("ourShare")
    );
    println!(
        "  load and resume: {:.0} ms in a lease, {:.0} ms by hand ({:.2}); by hand with Firecracker's start {:.0} ms",
        all("loadMs"),
        all("rawLoadMs"),
        all("loadMs") / all("rawLoadMs"),
        all("rawWholeMs")
    );
    println!(
        "  private memory of an idle restored machine: {:.1} MiB",
        figures.anon_kib / 1024.0
    );
    println!(
        "  template: {:.1} MiB on disk, made in {:.1} s",
        of(&figures.made, "allocatedBytes") / f64::from(1 << 20),
        of(&figures.made, "seconds")
    );
    if let Some((count, _)) = figures.crowd {
        let crowd = &document["atOnce"];
        println!(
            "  {count} at once: {:.0} restored, {:.0} ms by the clock, {:.2} of what the processors need for so many ({:.0} ms each, {:.0} processors)",
            of(crowd, "restored"),
            of(crowd, "wallMs"),
            of(crowd, "wallByProcessors"),
            of(crowd, "aloneProcessorMs"),
            of(crowd, "processors")
        );
    }
    for [cold, restored] in &figures.builds {
        println!(
            "  a build: {cold:.0} ms in a lease that booted, {restored:.0} ms in one of a template ({:.3})",
            restored / cold
        );
    }
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

    #[test]
    fn what_failed_is_in_no_figure_and_ends_only_its_own_kind() {
        let mut condition = Condition {
            name: "as it is",
            ways: Default::default(),
        };
        for exit in [8.0, 4.0, 6.0] {
            condition.ways[0].take(Ok(Lease {
                exit,
                ..Lease::default()
            }));
        }
        condition.ways[1].take(Err(anyhow::anyhow!("no")));
        condition.ways[1].take(Ok(Lease {
            exit: 3.0,
            ..Lease::default()
        }));
        for _ in 0..MOST_FAILURES {
            condition.ways[2].take(Err(anyhow::anyhow!("no")));
        }
        let given_up = condition.ways.each_ref().map(Series::is_given_up);
        assert_eq!(given_up, [false, false, true]);
        let conditions = [condition];
        let rows = rows(&conditions);
        let found: Vec<String> = rows
            .iter()
            .filter(|row| row["until"] == "true exits")
            .map(|row| format!("{} {} {} {}", row["start"], row["n"], row["p50"], row["failures"]))
            .collect();
        assert_eq!(found, [r#""cold" 3 6.0 []"#, r#""restored" 1 3.0 ["no"]"#]);
        let ratios = ratios(&conditions);
        assert_eq!((ratios.len(), &ratios[0]["exit"]), (1, &json!(0.5)));
    }
}
