//! `fuzz`: coverage-guided fuzzing, by libFuzzer, of every parser of untrusted bytes, with the corpora in
//! `fuzz/corpus`.
//!
//! It builds the crate `fuzz/`, which is not a member of the workspace, with the compiler's coverage
//! instrumentation, which a stable compiler supports. It must never succeed if a parser failed or a target
//! could not be run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use crabbox_host::command::Cmd;

use crate::workspace;

/// The instrumentation for libFuzzer, without any sanitizer: the parsers have no `unsafe` code.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Naming the target restricts the instrumentation to it, so that build scripts do not get it.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The memory limit of a parser in MiB, and the time limit of one input in seconds.
const MEMORY_MIB: u32 = 1024;
const INPUT_SECONDS: u32 = 20;

/// What is fuzzed, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which target; all of them without it
    target: Option<String>,
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Fuzzes the targets in sequence; stops at the first input on which a parser fails, which is kept.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let dir = workspace::root().join("fuzz");
    let targets = targets(&dir.join("corpus"), arguments.target.as_deref())?;
    println!("fuzz: building");
    workspace::cargo()
        .args(["build", "--quiet", "--release", "--locked", "--target", PLATFORM])
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .cwd(&dir)
        .run()?;
    let program = dir.join("target").join(PLATFORM).join("release/crabbox-fuzz");
    let mut failed = Vec::new();
    for target in targets {
        match fuzz(&dir, &program, &target, arguments.seconds) {
            Ok(said) => println!("fuzz: {target}: {said}"),
            Err(error) => failed.push(format!("{target}: {error:#}")),
        }
    }
    ensure!(failed.is_empty(), "readers failed:\n{}", failed.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// The names of the corpora, or the requested one.
fn targets(corpus: &Path, wanted: Option<&str>) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(corpus).with_context(|| format!("cannot list {}", corpus.display()))?;
    let mut known = Vec::new();
    for entry in entries {
        known.push(entry?.file_name().to_string_lossy().into_owned());
    }
    known.sort();
    match wanted {
        None => Ok(known),
        Some(name) if known.iter().any(|one| one == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no target {name}; there are {}", known.join(", ")),
    }
}

/// Runs one target; new corpus entries are kept in `fuzz/target`, failing inputs in `fuzz/target/failures`.
fn fuzz(dir: &Path, program: &Path, target: &str, seconds: u64) -> Result<String> {
    let (found, failures) = (
        dir.join("target/corpus").join(target),
        dir.join("target/failures"),
    );
    for made in [&found, &failures] {
        std::fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut prefix = failures.join(format!("{target}-")).into_os_string();
    prefix = [std::ffi::OsStr::new("-artifact_prefix="), &prefix]
        .into_iter()
        .collect();
    let seeds: PathBuf = dir.join("corpus").join(target);
    let done = Cmd::inheriting(program)
        .env("CRABBOX_FUZZ_TARGET", target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .args(["-max_len=65536", "-print_final_stats=1"])
        .arg(&prefix)
        .args([&found, &seeds])
        // In case it does not keep its own time limit.
        .limit(Duration::from_secs(seconds.saturating_add(300)))
        .run()?;
    let said = done.stderr_text();
    let runs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let runs = runs.context("libFuzzer says nothing of how much it did")?.trim();
    let covered = said
        .lines()
        .rev()
        .find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
    Ok(format!(
        "{runs} inputs, {} places reached",
        covered.unwrap_or("no")
    ))
}
