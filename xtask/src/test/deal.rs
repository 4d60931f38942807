//! The compiled tests, and how those of the last rung are distributed: one test at a time to each host, the
//! longest first, so that no host waits long for the last one. It never leaves a test out, unless the run is
//! given up.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use crabbox_lab::site::Prepared;
use serde_json::Value;

use super::ledger::Budget;
use super::step::{Ended, Started};

/// The environment variable that tells a test its host; `crabbox-e2e` reads it.
const HOST: &str = "CRABBOX_E2E_HOST";

/// How tests ask for a prepared host.
const PREPARED: [&str; 2] = ["Host::alone()", "Host::lab()"];

/// The package of the last rung.
pub(super) const END_TO_END: &str = "crabbox-e2e";

/// A compiled test file.
#[derive(Debug, Clone)]
pub(super) struct Executable {
    pub(super) package: String,
    /// The test file; for unit tests their target.
    pub(super) target: String,
    /// Whether it contains the unit tests of its target.
    unit: bool,
    path: PathBuf,
    /// The directory of the package, where cargo runs its tests.
    dir: PathBuf,
}

impl Executable {
    /// Its name in the table.
    pub(super) fn name(&self) -> String {
        let unit = if self.unit { " (unit)" } else { "" };
        let package = self.package.strip_prefix("crabbox-").unwrap_or(&self.package);
        format!("{package}/{}{unit}", self.target)
    }

    /// Whether its tests make their own hosts, and so do not use the lab: it never asks for a prepared one.
    pub(super) fn pretends(&self) -> Result<bool> {
        if self.unit {
            return Ok(true);
        }
        let source = self.dir.join("tests").join(&self.target).with_extension("rs");
        let text =
            std::fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))?;
        Ok(!PREPARED.iter().any(|had| text.contains(had)))
    }

    /// Its command line with `args` for libtest, as cargo would run it.
    pub(super) fn cmd<S: AsRef<str>>(&self, args: &[S]) -> Cmd {
        Cmd::inheriting(&self.path)
            .args(args.iter().map(AsRef::as_ref))
            .env("CARGO_MANIFEST_DIR", &self.dir)
            .cwd(&self.dir)
            .dies_with_us()
    }

    /// The names of its tests.
    fn tests(&self) -> Result<Vec<String>> {
        let listed = self.cmd(&["--list", "--format", "terse"]).run()?;
        let text = listed.stdout_text();
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// The test files among the artifacts that cargo reports (`--message-format=json`), in order.
pub(super) fn executables(messages: &str) -> Result<Vec<Executable>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cannot read what cargo built")?;
        let Some(path) = message["executable"]
            .as_str()
            .filter(|_| message["profile"]["test"] == true)
        else {
            continue;
        };
        let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest
            .parent()
            .context("a package without a directory")?
            .to_owned();
        let package = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unit = message["target"]["kind"] != serde_json::json!(["test"]);
        found.push(Executable {
            package: if package == "e2e" {
                END_TO_END.to_owned()
            } else {
                package
            },
            target: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
            unit,
            path: path.into(),
            dir,
        });
    }
    ensure!(!found.is_empty(), "cargo built no tests");
    found.sort_by_key(Executable::name);
    Ok(found)
}

/// Called at the end of a unit, with its host.
pub(super) type Said<'a> = &'a (dyn Fn(Option<&Prepared>, &Ended) + Sync);

/// A piece of work for one worker.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    name: String,
    executable: Executable,
    args: Vec<String>,
}

impl Unit {
    /// A whole file.
    pub(super) fn file(executable: &Executable) -> Self {
        Self {
            name: executable.name(),
            executable: executable.clone(),
            args: Vec::new(),
        }
    }

    /// Each test of a file, except for those named in `without`.
    pub(super) fn tests(executable: &Executable, without: &[&str]) -> Result<Vec<Self>> {
        let mut tests = executable.tests()?;
        tests.retain(|test| !without.contains(&test.as_str()));
        let of = |test: String| Self {
            name: format!("{}: {test}", executable.name()),
            executable: executable.clone(),
            args: vec!["--exact".to_owned(), test],
        };
        Ok(tests.into_iter().map(of).collect())
    }

    /// Runs it, and reports the measurements and the result to `said`.
    fn run(&self, host: Option<&Prepared>, said: Said<'_>) -> Result<Ended> {
        let mut cmd = self.executable.cmd(&self.args);
        if let Some(host) = host {
            cmd = cmd.env(HOST, &host.name);
        }
        let emulated = || host.and_then(Prepared::processor_ms).unwrap_or_default() / 1e3;
        let before = emulated();
        let mut ended = Started::kept(&self.name, &cmd)?.end()?;
        ended.measured.processor += emulated() - before;
        said(host, &ended);
        Ok(ended)
    }
}

/// The units in the order in which to run them: first those without measurements, then the longest.
pub(super) fn in_order(mut units: Vec<Unit>, budget: &Budget) -> Vec<Unit> {
    let length = |unit: &Unit| budget.tests.get(&unit.name).copied().unwrap_or(f64::MAX);
    units.sort_by(|one, other| length(other).total_cmp(&length(one)));
    units
}

/// Units that wait for a host. Each host takes the next one when it is free.
#[derive(Debug)]
pub(super) struct Queue(Mutex<std::vec::IntoIter<Unit>>);

impl Queue {
    pub(super) fn new(units: Vec<Unit>) -> Self {
        Self(Mutex::new(units.into_iter()))
    }

    fn units(&self) -> std::sync::MutexGuard<'_, std::vec::IntoIter<Unit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Unit> {
        self.units().next()
    }

    /// Drops the units not started yet, after a failure that makes the rest pointless.
    pub(super) fn give_up(&self) {
        self.units().by_ref().for_each(drop);
    }

    /// Runs units until there are none, one at a time on `host`; with `None` they make their own hosts.
    /// `said` is called at each end.
    pub(super) fn work(&self, host: Option<&Prepared>, said: Said<'_>) -> Result<Vec<Ended>> {
        std::iter::from_fn(|| self.next())
            .map(|unit| unit.run(host, said))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, script: &str) -> Unit {
        Unit {
            name: name.to_owned(),
            executable: Executable {
                package: END_TO_END.to_owned(),
                target: name.to_owned(),
                unit: false,
                path: "/bin/sh".into(),
                dir: "/".into(),
            },
            args: vec!["-c".to_owned(), script.to_owned()],
        }
    }

    #[test]
    fn every_unit_is_done_once_and_a_failed_one_stops_no_other() {
        let units = (0..9)
            .map(|index| unit(&format!("u{index}"), "echo done; exit 1"))
            .collect();
        let queue = Queue::new(units);
        let ended = std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.work(None, &|_, _| ()).unwrap());
            let mut ended = queue.work(None, &|_, _| ()).unwrap();
            ended.extend(other.join().unwrap());
            ended
        });
        let mut names: Vec<_> = ended.iter().map(|one| one.measured.name.clone()).collect();
        names.sort();
        assert_eq!(names, (0..9).map(|index| format!("u{index}")).collect::<Vec<_>>());
        assert!(
            ended
                .iter()
                .all(|one| !one.measured.passed && one.words == "done\n")
        );
    }

    #[test]
    fn a_queue_that_was_given_up_ends_after_the_unit_at_work() {
        let queue = Queue::new(["a", "b", "c"].map(|name| unit(name, "true")).to_vec());
        let ended = queue.work(None, &|_, _| queue.give_up()).unwrap();
        assert_eq!(ended.len(), 1);
    }

    #[test]
    fn the_longest_is_dealt_first_and_one_that_nobody_knows_before_it() {
        let mut budget = Budget::default();
        budget.tests.insert("short".to_owned(), 1.0);
        budget.tests.insert("long".to_owned(), 9.0);
        let units = ["short", "long", "new"].map(|name| unit(name, "true")).to_vec();
        let names: Vec<_> = in_order(units, &budget)
            .into_iter()
            .map(|unit| unit.name)
            .collect();
        assert_eq!(names, ["new", "long", "short"]);
    }

    #[test]
    fn what_cargo_built_for_tests_is_found_with_its_directory() {
        let messages = r#"text
{"reason":"compiler-artifact","manifest_path":"/w/e2e/Cargo.toml","target":{"kind":["test"],"name":"crash"},"profile":{"test":true},"executable":"/w/target/crash"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/crabbox-core/Cargo.toml","target":{"kind":["lib"],"name":"crabbox_core"},"profile":{"test":true},"executable":"/w/target/core"}
{"reason":"compiler-artifact","manifest_path":"/w/xtask/Cargo.toml","target":{"kind":["bin"],"name":"xtask"},"profile":{"test":false},"executable":"/w/target/xtask"}
{"reason":"build-finished","success":true}
"#;
        let found = executables(messages).unwrap();
        let names: Vec<_> = found.iter().map(Executable::name).collect();
        assert_eq!(names, ["core/crabbox_core (unit)", "e2e/crash"]);
        assert_eq!(found[1].dir, PathBuf::from("/w/e2e"));
        assert!(executables("").is_err());
    }

    #[test]
    fn a_file_pretends_until_it_asks_for_the_host_that_was_prepared() {
        let e2e = crate::workspace::root().join("e2e");
        let of = |name: &str| Executable {
            dir: e2e.clone(),
            ..unit(name, "true").executable
        };
        assert!(of("fake").pretends().unwrap() && of("pool").pretends().unwrap());
        assert!(!of("crash").pretends().unwrap() && !of("warm").pretends().unwrap());
        assert!(of("no such file").pretends().is_err());
    }

    #[test]
    fn the_tests_of_this_file_are_listed() {
        let this = Executable {
            package: "xtask".to_owned(),
            target: "xtask".to_owned(),
            unit: true,
            path: std::env::current_exe().unwrap(),
            dir: "/".into(),
        };
        let name = "test::deal::tests::the_tests_of_this_file_are_listed";
        let all = Unit::tests(&this, &[]).unwrap();
        assert!(all.iter().any(|unit| unit.args == ["--exact", name]));
        assert_eq!(Unit::tests(&this, &[name]).unwrap().len(), all.len() - 1);
    }
}
