//! The measurements of a test run by step and by file: a table for people, JSON for programs, both in
//! `target/`, and the steps that exceed the committed budget. Timings never decide a test: a step that grew
//! is only named.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::step::Measured;
use crate::workspace;

/// How much a step may exceed its budget before it is named.
const TOLERANCE: f64 = 1.2;

/// The expected times on two cores, from scratch: `xtask/budget.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Budget {
    /// The wall-clock time of the whole run.
    pub(super) wall_seconds: f64,
    /// The processor time of each step, which other load does not affect.
    pub(super) steps: BTreeMap<String, f64>,
    /// The processor time of each test of the last rung; they are distributed longest first.
    pub(super) tests: BTreeMap<String, f64>,
}

impl Budget {
    /// The committed one.
    pub(super) fn committed() -> Result<Self> {
        let path = workspace::root().join("xtask/budget.json");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The budget of a step or a test.
    fn of(&self, name: &str) -> Option<f64> {
        self.steps.get(name).or_else(|| self.tests.get(name)).copied()
    }
}

/// All measurements of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    began: Instant,
    steps: Vec<Measured>,
    tests: Vec<Measured>,
}

/// The document `target/timings.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    wall_seconds: f64,
    steps: &'a [Measured],
    tests: &'a [Measured],
    grown: Vec<String>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            steps: Vec::new(),
            tests: Vec::new(),
        }
    }

    pub(super) fn step(&mut self, step: Measured) {
        self.steps.push(step);
    }

    pub(super) fn test(&mut self, test: Measured) {
        self.tests.push(test);
    }

    /// Prints the table and the steps that grew, and writes both to `target/timings.txt` and
    /// `target/timings.json`.
    pub(super) fn close(&self, budget: &Budget) -> Result<()> {
        let wall = self.began.elapsed().as_secs_f64();
        let grown = self.grown(budget, wall);
        let mut text = self.table(wall);
        for line in &grown {
            // Writing to a String cannot fail.
            writeln!(text, "warning: {line}").ok();
        }
        eprint!("{text}");
        let document = Document {
            wall_seconds: wall,
            steps: &self.steps,
            tests: &self.tests,
            grown,
        };
        let dir = workspace::target_dir();
        std::fs::write(dir.join("timings.json"), serde_json::to_vec_pretty(&document)?)
            .and_then(|()| std::fs::write(dir.join("timings.txt"), &text))
            .context("cannot write the timings to target/")
    }

    fn table(&self, wall: f64) -> String {
        let mut text = format!("{:>9} {:>9}\n", "wall s", "cpu s");
        let mut row = |wall: f64, processor: f64, name: &str| {
            writeln!(text, "{wall:>9.1} {processor:>9.1}  {name}").ok();
        };
        for step in &self.steps {
            row(step.wall, step.processor, &step.name);
        }
        for (file, (wall, processor)) in self.by_file() {
            row(wall, processor, &file);
        }
        let processor: f64 = self
            .steps
            .iter()
            .chain(&self.tests)
            .map(|one| one.processor)
            .sum();
        row(wall, processor, "all of it");
        text
    }

    /// The sums for each file, the longest first.
    fn by_file(&self) -> Vec<(String, (f64, f64))> {
        let mut files: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for test in &self.tests {
            let file = test
                .name
                .split_once(": ")
                .map_or(test.name.as_str(), |(file, _)| file);
            let sum = files.entry(file).or_default();
            *sum = (sum.0 + test.wall, sum.1 + test.processor);
        }
        let mut files: Vec<_> = files
            .into_iter()
            .map(|(file, sum)| (file.to_owned(), sum))
            .collect();
        files.sort_by(|(_, one), (_, other)| other.0.total_cmp(&one.0));
        files
    }

    /// A line for each step, each test and the whole run that exceeds its budget by over a fifth.
    fn grown(&self, budget: &Budget, wall: f64) -> Vec<String> {
        let mut lines = Vec::new();
        for one in self.steps.iter().chain(&self.tests) {
            if let Some(expected) = budget.of(&one.name)
                && one.processor > expected * TOLERANCE
            {
                lines.push(format!(
                    "{} took {:.0} s on a processor, and {expected:.0} s are its budget",
                    one.name, one.processor
                ));
            }
        }
        if wall > budget.wall_seconds * TOLERANCE {
            lines.push(format!(
                "all of it took {wall:.0} s, and {:.0} s are its budget",
                budget.wall_seconds
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, wall: f64, processor: f64) -> Measured {
        Measured {
            name: name.to_owned(),
            wall,
            processor,
            passed: true,
        }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new();
        ledger.step(measured("clippy", 70.0, 100.0));
        ledger.test(measured("e2e/run: one", 5.0, 4.0));
        ledger.test(measured("e2e/crash: one", 10.0, 9.0));
        ledger.test(measured("e2e/crash: two", 20.0, 18.0));
        ledger
    }

    #[test]
    fn the_table_has_each_step_each_file_and_the_sum() {
        assert_eq!(
            ledger().table(101.0),
            "   wall s     cpu s\n     70.0     100.0  clippy\n     30.0      27.0  e2e/crash\n      5.0       4.0  e2e/run\n\
             \u{20}   101.0     131.0  all of it\n"
        );
    }

    #[test]
    fn what_grew_by_more_than_a_fifth_is_named_and_nothing_else_is() {
        let mut budget = Budget {
            wall_seconds: 90.0,
            ..Budget::default()
        };
        budget.steps.insert("clippy".to_owned(), 84.0);
        budget.tests.insert("e2e/crash: two".to_owned(), 14.9);
        assert_eq!(
            ledger().grown(&budget, 101.0),
            ["e2e/crash: two took 18 s on a processor, and 15 s are its budget"]
        );
        budget.steps.insert("clippy".to_owned(), 83.0);
        assert_eq!(ledger().grown(&budget, 110.0).len(), 3);
    }

    #[test]
    fn the_committed_budget_is_one() {
        let budget = Budget::committed().unwrap();
        assert!(budget.wall_seconds <= 1800.0);
    }
}
