//! `test`: everything that CI runs: format, lints, architecture checks, unit and integration tests,
//! end-to-end tests on real microVMs.
//!
//! This task prepares the hosts, runs the tests as cargo would, and measures; it never decides that one may
//! be left out. Everything is compiled once, with the features of the whole workspace.
//!
//! The hosts of the last rung are prepared during the compilation. Then four lanes run in parallel: the
//! checks and the tests that need no host; the pretended hosts, which mostly wait for processes and time
//! limits; and two labs, each of which uses about two thirds of a processor, as measured. More labs would
//! slow each other down beyond what is acceptable for a lease.

mod deal;
mod examples;
mod ledger;
mod step;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use crabbox_host::command::Cmd;
use crabbox_lab::lab::{Alone, packages};
use crabbox_lab::payload::PROGRAMS_OF;
use crabbox_lab::site::{LOCAL, Prepared};

use crate::workspace;
use deal::{END_TO_END, Executable, Queue, Unit, in_order};
use ledger::{Budget, Ledger};
use step::{Ended, Measured, Started};

/// Tests that change the whole system: they reset it like a power cut, install and purge packages, or have it
/// run Slurm. Nothing to do to a machine that someone works on.
const FOR_LABS: [&str; 3] = [
    "after_a_power_cut_one_cleanup_is_enough",
    "a_microvm_that_slurm_places_is_used_given_back_and_goes_with_its_job",
    "a_package_is_installed_replaced_under_a_lease_removed_and_purged_and_leaves_nothing",
];

/// The number of property test samples for parsers of untrusted bytes, many more than in a developer's loop:
/// about a minute.
const CASES: &str = "12000";

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Which {
    /// All.
    All,
    /// Those that need no KVM host.
    Local,
    /// Those on real microVMs, and on pretended hosts with a fake VMM.
    E2e,
    /// Of these the ones about deaths at the worst moments.
    Crash,
}

impl Which {
    fn local(self) -> bool {
        matches!(self, Self::All | Self::Local)
    }

    /// Whether tests of this file of the last rung are included.
    fn has(self, file: &str) -> bool {
        match self {
            Self::All | Self::E2e => true,
            Self::Local => false,
            Self::Crash => ["crash", "fake", "room", "supervisor"].contains(&file),
        }
    }
}

/// Runs them; those of the last rung in parallel in `labs` labs, of which `name` is the first.
pub(crate) fn main(which: Which, name: &str, labs: Option<usize>) -> Result<ExitCode> {
    packages::ensure_test_tools()?;
    let budget = Budget::committed()?;
    let labs = labs.unwrap_or_else(usual_labs).max(1);
    let names: Vec<String> = (1..=labs)
        .map(|index| {
            if index == 1 {
                name.to_owned()
            } else {
                format!("{name}-{index}")
            }
        })
        .collect();
    let mut run = Run {
        ledger: Ledger::new(),
        words: String::new(),
    };
    let outcome = run.everything(which, &names, &budget);
    let closed = run.ledger.close(&budget);
    if which != Which::Local {
        for name in &names {
            // If another task uses it by now, it was waiting for us, and will remove it.
            if let Some(lab) = Alone::try_take(name)? {
                lab.remove()?;
            }
        }
    }
    // The tests' own output comes last, as when cargo runs them.
    print!("{}", run.words);
    outcome.and(closed)?;
    Ok(ExitCode::SUCCESS)
}

/// Two labs if there are two processors, and memory for both in addition to that of the tests; otherwise one.
fn usual_labs() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = rustix::system::sysinfo();
    let bytes = u64::from(memory.mem_unit) * memory.totalram;
    if processors >= 2 && bytes >= 16 << 30 {
        2
    } else {
        1
    }
}

/// A run of the tests.
struct Run {
    ledger: Ledger,
    /// The output of those of the last rung.
    words: String,
}

impl Run {
    fn everything(&mut self, which: Which, names: &[String], budget: &Budget) -> Result<()> {
        if which.local() {
            self.cargo("format", &["fmt", "--all", "--check"])?;
        }
        self.here("aarch64", || crate::cross::ready().map(drop))?;
        let hosts = (which != Which::Local)
            .then(|| Started::kept("hosts", &provision(names)))
            .transpose()?;
        let executables = self.build(which)?;
        let (last, local): (Vec<_>, Vec<_>) = executables
            .into_iter()
            .partition(|executable| executable.package == END_TO_END);
        let last: Vec<_> = last.into_iter().filter(|file| which.has(&file.target)).collect();
        let (mut pretended, mut real) = (Vec::new(), Vec::new());
        for file in &last {
            let those = if file.pretends()? {
                &mut pretended
            } else {
                &mut real
            };
            those.push(file);
        }
        let local = if which.local() { local } else { Vec::new() };
        let Some(hosts) = hosts else {
            self.checks()?;
            return self.local(&local);
        };
        let rung = LastRung {
            budget,
            stop: AtomicBool::new(false),
            queue: OnceLock::new(),
        };
        std::thread::scope(|scope| {
            let labs = scope.spawn(|| rung.on_labs(hosts, &real));
            // If the sources fail their checks, the rest is pointless. A failing test does not stop the
            // others: report as much as possible.
            let checked = if which.local() { self.checks() } else { Ok(()) };
            if checked.is_err() {
                rung.give_up();
            }
            let pretended = scope.spawn(|| rung.on_pretended(&pretended));
            let beside = match checked {
                Ok(()) if which.local() => self.local(&local),
                checked => checked,
            };
            let here = rung.on_this_host();
            let pretended = pretended
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the worker on pretended hosts panicked")));
            let labs = labs
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the worker on the labs panicked")));
            let (prepared, ended) = match labs {
                Ok((prepared, ended)) => (Ok(prepared), Ok(ended)),
                Err(error) => (Err(error), Ok(Vec::new())),
            };
            // Report what has ended, even after an error.
            let mut wrong: Vec<String> = beside
                .err()
                .map(|error| format!("{error:#}"))
                .into_iter()
                .collect();
            for ended in [ended, here, pretended] {
                match ended.map(|ended| self.ended(ended)) {
                    Ok(failed) if failed.is_empty() => {}
                    Ok(failed) => wrong.push(format!("tests failed: {}", failed.join(", "))),
                    Err(error) => wrong.push(format!("{error:#}")),
                }
            }
            if let Err(error) = prepared.and_then(|prepared| self.count(&prepared, "hosts")) {
                wrong.push(format!("{error:#}"));
            }
            ensure!(wrong.is_empty(), "{}", wrong.join("; "));
            Ok(())
        })
    }

    /// Compiles all tests and the programs that they call.
    fn build(&mut self, which: Which) -> Result<Vec<Executable>> {
        let mut args = vec![
            "test",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ];
        let files = test_files()?;
        if !which.local() {
            // Still for the whole workspace: other features would mean compiling it again.
            let with_programs = PROGRAMS_OF.into_iter().chain(files.iter().map(String::as_str));
            args.extend(with_programs.flat_map(|file| ["--test", file]));
        }
        let built = Started::stdout_kept("build", &cargo(&args))?.end()?;
        self.count(&built, "build")?;
        deal::executables(&built.words)
    }

    /// The checks of the sources.
    fn checks(&mut self) -> Result<()> {
        let lint = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        self.cargo("clippy", &lint)?;
        self.here("arch", || crate::arch::main().map(drop))?;
        self.here("licences", || crate::licences::main().map(drop))
    }

    /// The tests that need no KVM host, file by file as cargo runs them.
    fn local(&mut self, executables: &[Executable]) -> Result<()> {
        let mut failed = Vec::new();
        for executable in executables {
            let cmd = executable.cmd::<&str>(&[]);
            let ended = Started::shown(&executable.name(), &cmd)?.end()?;
            if !ended.measured.passed {
                failed.push(executable.name());
            }
            self.ledger.test(ended.measured);
        }
        ensure!(failed.is_empty(), "tests failed in {}", failed.join(", "));
        let root = workspace::root();
        if examples::are_below(&[&root.join("crates"), &root.join("xtask"), &root.join("e2e")])? {
            let all = ["test", "--quiet", "--workspace", "--doc"];
            self.cargo("documentation tests", &all)?;
        }
        let of_agent = executables.iter().find(|executable| executable.target == "alone");
        let Some(of_agent) = of_agent else {
            bail!("there is no file `alone` with tests of the agent");
        };
        for cmd in crate::cross::tests(of_agent.cmd::<&str>(&[]))? {
            let ended = Started::shown("the agent for aarch64", &cmd)?.end()?;
            self.count(&ended, "the agent for aarch64")?;
        }
        let untrusted = executables
            .iter()
            .find(|executable| executable.target == "untrusted");
        let Some(untrusted) = untrusted else {
            bail!("there is no file `untrusted` with tests on damaged bytes");
        };
        let longer = untrusted.cmd::<&str>(&[]).env("PROPTEST_CASES", CASES);
        let ended = Started::shown("damaged bytes, looked at longer", &longer)?.end()?;
        self.count(&ended, "damaged bytes, looked at longer")?;
        let crabbox = workspace::target_dir().join("debug/crabbox");
        self.here("documents", || crate::docs::check(crabbox))
    }

    /// Records the results of the last rung; returns the names of those that failed.
    fn ended(&mut self, all: Vec<Ended>) -> Vec<String> {
        let mut failed = Vec::new();
        for ended in all {
            if !ended.measured.passed {
                failed.push(ended.measured.name.clone());
            }
            let (name, words) = (&ended.measured.name, &ended.words);
            // Writing to a String cannot fail.
            write!(self.words, "\n     Running {name}\n{words}").ok();
            self.ledger.test(ended.measured);
        }
        failed
    }

    /// Runs cargo as one step, with its output shown.
    fn cargo(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let ended = Started::shown(name, &cargo(args))?.end()?;
        self.count(&ended, name)
    }

    /// Runs a step in this process.
    fn here(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (began, before) = (Instant::now(), step::processor_here());
        let outcome = work();
        self.ledger.step(Measured {
            name: name.to_owned(),
            wall: began.elapsed().as_secs_f64(),
            processor: step::processor_here() - before,
            passed: outcome.is_ok(),
        });
        outcome
    }

    /// Records a step's measurements, and fails if the step did.
    fn count(&mut self, ended: &Ended, name: &str) -> Result<()> {
        self.ledger.step(ended.measured.clone());
        ensure!(ended.status.success(), "{name} failed ({})", ended.status);
        Ok(())
    }
}

/// The prepared hosts and their queue, which other threads wait for; `None` if they could not be prepared.
type Queued = OnceLock<Option<(Vec<Prepared>, Queue)>>;

/// Sets it, in any case: to `None` when dropped early.
struct Dealt<'a>(&'a Queued);

impl<'a> Dealt<'a> {
    fn is(&self, queue: Option<(Vec<Prepared>, Queue)>) -> Option<&'a (Vec<Prepared>, Queue)> {
        self.0.get_or_init(|| queue).as_ref()
    }
}

impl Drop for Dealt<'_> {
    fn drop(&mut self) {
        self.0.get_or_init(|| None);
    }
}

/// The tests of the last rung, on the hosts that they need.
struct LastRung<'a> {
    budget: &'a Budget,
    /// Set to start no more tests.
    stop: AtomicBool,
    /// The hosts and the tests for them, once prepared; `None` if that failed.
    queue: Queued,
}

impl LastRung<'_> {
    /// Waits for `hosts` and has them run tests of `files`, except for this machine, which is busy otherwise.
    /// Also returns the measurements of the preparation.
    fn on_labs(&self, hosts: Started, files: &[&Executable]) -> Result<(Ended, Vec<Ended>)> {
        let dealt = Dealt(&self.queue);
        let prepared = hosts.end()?;
        eprint!("{}", prepared.words);
        let dealt = dealt.is(if prepared.measured.passed {
            Some(self.deal(files)?)
        } else {
            None
        });
        let ended = match dealt {
            Some((hosts, queue)) => {
                if self.stop.load(Ordering::SeqCst) {
                    queue.give_up();
                }
                at_work(queue, hosts.iter().filter(|host| host.name != LOCAL))?
            }
            None => Vec::new(),
        };
        Ok((prepared, ended))
    }

    /// The prepared hosts, and the tests to run on them.
    fn deal(&self, files: &[&Executable]) -> Result<(Vec<Prepared>, Queue)> {
        let hosts = Prepared::all_used()?;
        ensure!(!hosts.is_empty(), "no host was prepared for the tests");
        let without: &[&str] = if hosts.iter().any(|host| host.name == LOCAL) {
            eprintln!(
                "xtask: left out on this host, because they change the whole system: {}",
                FOR_LABS.join(", ")
            );
            &FOR_LABS
        } else {
            &[]
        };
        let mut units = Vec::new();
        for file in files {
            units.extend(Unit::tests(file, without)?);
        }
        Ok((hosts, Queue::new(in_order(units, self.budget))))
    }

    /// The tests on pretended hosts, file by file.
    fn on_pretended(&self, files: &[&Executable]) -> Result<Vec<Ended>> {
        if self.stop.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let units = files.iter().map(|file| Unit::file(file)).collect();
        Queue::new(in_order(units, self.budget)).work(None, &announce)
    }

    /// Waits for the hosts and has this machine run tests, if it is one of them.
    fn on_this_host(&self) -> Result<Vec<Ended>> {
        let Some((hosts, queue)) = self.queue.wait() else {
            return Ok(Vec::new());
        };
        at_work(queue, hosts.iter().filter(|host| host.name == LOCAL))
    }

    /// Starts no further test.
    fn give_up(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Some((_, queue))) = self.queue.get() {
            queue.give_up();
        }
    }
}

/// Makes each of `hosts` run tests until there are none left.
fn at_work<'a>(queue: &Queue, hosts: impl Iterator<Item = &'a Prepared>) -> Result<Vec<Ended>> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = hosts
            .map(|host| scope.spawn(|| queue.work(Some(host), &announce)))
            .collect();
        let mut ended = Vec::new();
        for worker in workers {
            ended.extend(
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("a worker panicked"))??,
            );
        }
        Ok(ended)
    })
}

/// Reports the result of a test; of a failed one also its output, which is useful before all others have
/// ended.
fn announce(host: Option<&Prepared>, ended: &Ended) {
    let place = host.map_or("pretended", |host| &host.name);
    let (name, wall) = (&ended.measured.name, ended.measured.wall);
    if ended.measured.passed {
        eprintln!("xtask: {place}: {name} ... ok, {wall:.1} s");
    } else {
        eprintln!("xtask: {place}: {name} ... FAILED, {wall:.1} s\n{}", ended.words);
    }
}

/// Runs this program to prepare the hosts `names`.
fn provision(names: &[String]) -> Cmd {
    // By now the path of this program may refer to a newer one.
    let this = Cmd::inheriting("/proc/self/exe").arg("provision");
    this.args(names.iter().flat_map(|name| ["--name", name]))
        .cwd(workspace::root())
        .dies_with_us()
}

fn cargo(args: &[&str]) -> Cmd {
    workspace::cargo().args(args)
}

/// The names of the files with tests of the last rung.
fn test_files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in workspace::root().join("e2e/tests").read_dir()? {
        let path: &Path = &entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
