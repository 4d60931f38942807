//! `bench report`: renders committed measurements (`docs/performance/*.json`) as charts and as tables of
//! `docs/performance.md`.
//!
//! The same figures give the same bytes. It must never draw anything that was not measured: each chart shows
//! one file, which says where, when, how often and on which rung it was measured.

mod chart;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::workspace;

/// The rungs of the test ladder on which times are meaningful: the emulated lab (only ratios), and hardware.
const RUNGS: std::ops::RangeInclusive<u8> = 4..=5;

/// One file of figures.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    title: String,
    /// The bench that made the document `figures`.
    kind: Kind,
    date: String,
    rung: u8,
    machine: String,
    /// The command that measured them, or the document that they are taken from.
    made: String,
    note: String,
    figures: Value,
}

/// The supported benches.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Lease,
    Boot,
    Run,
    Sync,
    Warm,
}

/// A measurement.
#[derive(Debug, Clone, PartialEq)]
struct Bar {
    name: String,
    /// The median.
    middle: f64,
    /// The 95th percentile and the maximum, or the minimum and the maximum; `None` if the bench keeps only
    /// medians.
    spread: Option<(f64, f64)>,
    /// The number of runs.
    count: u64,
}

/// Bars of one unit, drawn to one scale.
#[derive(Debug)]
struct Group {
    unit: &'static str,
    /// What the spread consists of.
    spread: &'static str,
    bars: Vec<Bar>,
}

const MS: &str = "ms";
const LEAST_AND_MOST: &str = "least and greatest";
const PERCENTILE: &str = "95th percentile and greatest";

/// Writes the charts, and the page in which `fill` has put the tables.
pub(crate) fn main(fill: impl FnOnce(&str) -> Result<String>) -> Result<ExitCode> {
    let stale = settle(true)?;
    let page = workspace::root().join("docs/performance.md");
    let old = fs::read_to_string(&page).context("cannot read docs/performance.md")?;
    let new = fill(&old)?;
    if new != old {
        fs::write(&page, new)?;
    }
    println!("charts: {} written anew in docs/performance", stale.len());
    Ok(ExitCode::SUCCESS)
}

fn home() -> PathBuf {
    workspace::root().join("docs/performance")
}

/// The charts that do not match the figures, and those without figures; with `write` they are corrected.
pub(crate) fn settle(write: bool) -> Result<Vec<String>> {
    settle_in(&home(), write)
}

fn settle_in(dir: &Path, write: bool) -> Result<Vec<String>> {
    let (mut wanted, mut kept) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => {
                wanted.insert(path.with_extension("svg"), chart_of(&path)?);
            }
            Some("svg") => {
                kept.insert(path.clone(), fs::read_to_string(&path)?);
            }
            _ => bail!("{} is neither figures nor a chart", path.display()),
        }
    }
    let mut stale = Vec::new();
    for (path, chart) in &wanted {
        if kept.get(path) != Some(chart) {
            stale.push(path.clone());
            if write {
                fs::write(path, chart)?;
            }
        }
    }
    for path in kept.keys().filter(|path| !wanted.contains_key(*path)) {
        stale.push(path.clone());
        if write {
            fs::remove_file(path)?;
        }
    }
    let root = workspace::root();
    let named = stale
        .iter()
        .map(|path| path.strip_prefix(root).unwrap_or(path).display().to_string());
    Ok(named.collect())
}

fn read(path: &Path) -> Result<(Measured, Vec<Group>)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let measured: Measured =
        serde_json::from_str(&text).with_context(|| format!("{} is no file of figures", path.display()))?;
    ensure!(
        RUNGS.contains(&measured.rung),
        "{}: nothing of rung {} feeds a figure",
        path.display(),
        measured.rung
    );
    let groups = groups(measured.kind, &measured.figures)
        .and_then(|groups| groups.iter().try_for_each(Group::judge).map(|()| groups))
        .with_context(|| format!("{} has figures that cannot be drawn", path.display()))?;
    Ok((measured, groups))
}

fn chart_of(path: &Path) -> Result<String> {
    let (measured, groups) = read(path)?;
    Ok(chart::svg(&measured.title, &measured.foot(), &groups))
}

/// The block of `docs/performance.md` about the figures `name`.
pub(crate) fn block(name: &str) -> Result<String> {
    let (measured, groups) = read(&home().join(format!("{name}.json")))?;
    let mut out = format!("![{}](performance/{name}.svg)\n", measured.title);
    for group in &groups {
        // Writing to a string cannot fail.
        writeln!(
            out,
            "\n| | median, {} | {} | n |\n|---|---|---|---|",
            group.unit, group.spread
        )
        .ok();
        for bar in &group.bars {
            let spread = bar.spread.map_or_else(
                || "not kept".to_owned(),
                |(one, other)| format!("{} / {}", number(one), number(other)),
            );
            writeln!(
                out,
                "| {} | {} | {spread} | {} |",
                bar.name,
                number(bar.middle),
                bar.count
            )
            .ok();
        }
    }
    writeln!(
        out,
        "\n{}; {}. {} The figures: [{name}.json](performance/{name}.json).",
        measured.foot(),
        measured.made,
        measured.note
    )
    .ok();
    Ok(out)
}

/// The names of all files of figures.
pub(crate) fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(home()).context("cannot list docs/performance")? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let is_figures = path.extension().is_some_and(|ending| ending == "json");
        names.extend(name.filter(|_| is_figures).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

impl Measured {
    /// Where and when it was measured.
    fn foot(&self) -> String {
        format!("Rung {}, {}, {}", self.rung, self.date, self.machine)
    }
}

impl Group {
    /// Refuses implausible values.
    fn judge(&self) -> Result<()> {
        ensure!(!self.bars.is_empty(), "nothing was measured");
        for bar in &self.bars {
            let values = [
                Some(bar.middle),
                bar.spread.map(|both| both.0),
                bar.spread.map(|both| both.1),
            ];
            ensure!(
                values
                    .iter()
                    .flatten()
                    .all(|value| value.is_finite() && *value >= 0.0),
                "{} has a value that is none",
                bar.name
            );
            ensure!(
                bar.spread.is_none_or(|(_, most)| most >= bar.middle),
                "the greatest of {} is less than its median",
                bar.name
            );
            ensure!(bar.count > 0, "{} was never measured", bar.name);
        }
        Ok(())
    }
}

/// Formats a number for tables and charts: three significant digits, or whole.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn groups(kind: Kind, figures: &Value) -> Result<Vec<Group>> {
    match kind {
        Kind::Lease => stages(figures, "leases", |run| {
            let run = run.as_object().context("a run is no table")?;
            Ok(run.iter().map(|(name, ms)| (name.clone(), ms.clone())).collect())
        }),
        Kind::Boot => stages(figures, "boots", |run| {
            let run = run.as_array().context("a run is no list")?;
            let stage = |stage: &Value| Some((stage[0].as_str()?.to_owned(), stage[1].clone()));
            Ok(run.iter().filter_map(stage).collect())
        }),
        Kind::Run => of_run(figures),
        Kind::Sync => of_sync(figures),
        Kind::Warm => of_warm(figures),
    }
}

fn value(figures: &Value, name: &str) -> Result<f64> {
    figures[name]
        .as_f64()
        .with_context(|| format!("there is no number {name}"))
}

fn count(figures: &Value, name: &str) -> Result<u64> {
    figures[name]
        .as_u64()
        .with_context(|| format!("there is no count {name}"))
}

/// Stages with their medians, and the values of all runs.
fn stages(
    figures: &Value,
    counted: &str,
    of_run: impl Fn(&Value) -> Result<Vec<(String, Value)>>,
) -> Result<Vec<Group>> {
    let count = count(figures, counted)?;
    let medians = figures["stagesMs"].as_object().context("there are no stages")?;
    let runs = figures["runs"].as_array().context("there are no runs")?;
    ensure!(
        u64::try_from(runs.len())? == count,
        "there are {} runs of {count}",
        runs.len()
    );
    let runs = runs.iter().map(of_run).collect::<Result<Vec<_>>>()?;
    let mut bars = Vec::new();
    for (name, median) in medians {
        let times = runs.iter().flatten().filter(|(other, _)| other == name);
        let times: Vec<f64> = times.filter_map(|(_, ms)| ms.as_f64()).collect();
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        bars.push(Bar {
            name: name.clone(),
            middle: median.as_f64().with_context(|| format!("{name} has no median"))?,
            spread: Some((least, most)),
            count,
        });
    }
    Ok(vec![Group {
        unit: MS,
        spread: LEAST_AND_MOST,
        bars,
    }])
}

/// Medians, of one program or of two.
fn of_run(figures: &Value) -> Result<Vec<Group>> {
    let count = count(figures, "runs")?;
    let mut groups = Vec::new();
    for is_time in [true, false] {
        let mut bars = Vec::new();
        for (name, what, _) in super::run::ROWS.iter().filter(|row| row.2 == is_time) {
            bars.push((format!("{what}, this version"), Some(value(figures, name)?)));
            let other = figures[format!("other_{name}")].as_f64();
            bars.push((format!("{what}, the other"), other));
        }
        let bars = bars.into_iter().filter_map(|(name, middle)| {
            Some(Bar {
                name,
                middle: middle?,
                spread: None,
                count,
            })
        });
        groups.push(Group {
            unit: if is_time { MS } else { "processes" },
            spread: LEAST_AND_MOST,
            bars: bars.collect(),
        });
    }
    Ok(groups)
}

fn of_sync(figures: &Value) -> Result<Vec<Group>> {
    const ROWS: [(&str, &str); 8] = [
        ("first", "first sync"),
        ("rsyncWithGit", "rsync -a, .git too"),
        ("rsync", "rsync -a without .git"),
        ("gitStatus", "git status"),
        ("roundTrip", "one round trip"),
        ("nothingToBring", "sync with nothing to bring"),
        ("oneEdit", "sync of one edit"),
        ("oneEditRsync", "rsync -a of the same edit"),
    ];
    let (files, runs) = (count(figures, "files")?, count(figures, "runs")?);
    let mut bars = Vec::new();
    for (at, (key, what)) in ROWS.into_iter().enumerate() {
        bars.push(Bar {
            name: format!("{what}, {files} files"),
            middle: value(figures, key)?,
            spread: None,
            // The first three are slow, so they are repeated only three times.
            count: if at < 3 { 3 } else { runs },
        });
    }
    Ok(vec![Group {
        unit: MS,
        spread: LEAST_AND_MOST,
        bars,
    }])
}

fn of_warm(figures: &Value) -> Result<Vec<Group>> {
    let series = figures["series"].as_array().context("there is no series")?;
    let text = |row: &Value, name: &str| {
        row[name]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("a series has no {name}"))
    };
    let bars = series.iter().map(|row| {
        let name = format!(
            "{}, {}, page cache {}",
            text(row, "until")?,
            text(row, "start")?,
            text(row, "pageCache")?
        );
        Ok(Bar {
            name,
            middle: value(row, "p50")?,
            spread: Some((value(row, "p95")?, value(row, "max")?)),
            count: count(row, "n")?,
        })
    });
    Ok(vec![Group {
        unit: MS,
        spread: PERCENTILE,
        bars: bars.collect::<Result<_>>()?,
    }])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(dir: &Path, rung: u8, kind: &str, figures: &Value) -> PathBuf {
        let path = dir.join("one.json");
        let text = json!({
            "title": "A <title> & more", "kind": kind, "date": "2026-01-02", "rung": rung, "machine": "a lab", "made": "by hand", "note": "",
            "figures": figures,
        });
        fs::write(&path, text.to_string()).unwrap();
        path
    }

    fn warm(p50: f64, max: f64) -> Value {
        let row = json!({ "until": "banner", "start": "cold", "pageCache": "dropped", "n": 5, "p50": p50, "p95": 2.0, "max": max });
        json!({ "series": [row] })
    }

    #[test]
    fn charts_are_what_the_figures_say_and_stale_ones_are_found() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), 4, "warm", &warm(1.0, 3.0));
        fs::write(dir.path().join("gone.svg"), "").unwrap();
        assert_eq!(settle_in(dir.path(), true).unwrap().len(), 2);
        assert!(settle_in(dir.path(), false).unwrap().is_empty());
        let chart = fs::read_to_string(dir.path().join("one.svg")).unwrap();
        assert!(chart.contains("A &lt;title&gt; &amp; more"), "{chart}");
        file(dir.path(), 4, "warm", &warm(1.5, 3.0));
        assert_eq!(
            settle_in(dir.path(), false).unwrap().len(),
            1,
            "other figures, another chart"
        );
    }

    #[test]
    fn the_charts_that_are_committed_are_those_of_their_figures() {
        assert!(!names().unwrap().is_empty());
        assert_eq!(settle(false).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_no_run_measured_is_not_drawn() {
        let dir = tempfile::tempdir().unwrap();
        for (rung, kind, figures, why) in [
            (2, "warm", warm(1.0, 3.0), "rung 2"),
            (4, "warm", warm(4.0, 3.0), "less than its median"),
            (4, "warm", warm(-1.0, 3.0), "a value that is none"),
            (4, "warm", json!({ "series": [] }), "nothing was measured"),
            (4, "guess", json!({}), "no file of figures"),
            (4, "sync", json!({ "files": 1, "runs": 3 }), "no number first"),
            (
                4,
                "lease",
                json!({ "leases": 2, "stagesMs": { "a": 1 }, "runs": [{ "a": 1 }] }),
                "1 runs of 2",
            ),
        ] {
            let error = read(&file(dir.path(), rung, kind, &figures)).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }

    #[test]
    fn the_spread_of_stages_is_that_of_their_runs() {
        let lease = json!({ "leases": 3, "stagesMs": { "ours/a": 2.0 }, "runs": [{ "ours/a": 1.0 }, { "ours/a": 2.0 }, { "ours/a": 5.0 }] });
        let boot = json!({ "boots": 3, "stagesMs": { "ours/a": 2.0 }, "runs": [[["ours/a", 1.0]], [["ours/a", 2.0]], [["ours/a", 5.0]]] });
        let bar = Bar {
            name: "ours/a".to_owned(),
            middle: 2.0,
            spread: Some((1.0, 5.0)),
            count: 3,
        };
        for (kind, figures) in [(Kind::Lease, lease), (Kind::Boot, boot)] {
            assert_eq!(
                groups(kind, &figures).unwrap()[0].bars.as_slice(),
                std::slice::from_ref(&bar)
            );
        }
    }
}
