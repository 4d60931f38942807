//! `demo`: shows a person the main use: a real microVM leased, a dirty tree synced, a command run, the lease
//! given back, and the proof that nothing is left behind.

pub(crate) mod place;
mod recording;
mod screen;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::site::{self, Site};
use crabbox_lab::payload::{Build, Images};
use recording::{Leftovers, Line, Recording, Step};

/// The size of the demo's machine: small, because it may be emulated.
const SIZE: &str =
    "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048";

/// The steps: the command as a user would type it, and the script actually run if it is longer.
const STEPS: [(&str, &str); 6] = [
    (
        "git init, commit, and edit without committing",
        "rm -rf demo && git init -q demo && cd demo && echo 'hello from the last commit' > greeting && git add -A && \
         git commit -qm one && echo 'hello from the working tree' > greeting && echo new > untracked",
    ),
    (
        "crabbox warmup --provider firecracker --slug demo",
        "cd demo && crabbox warmup SIZE --slug demo",
    ),
    (
        "crabbox run --id demo -- sh -c 'uname -sr; cat greeting; git status --short'",
        "cd demo && crabbox run --id demo -- sh -c 'uname -sr; cat greeting; git status --short'",
    ),
    (
        "crabbox run --id demo -- sh -c 'exit 7' 2>/dev/null; echo $?",
        "cd demo && { crabbox run --id demo -- sh -c 'exit 7' 2>/dev/null; code=$?; echo $code; test $code = 7; }",
    ),
    (
        "crabbox list --provider firecracker",
        "crabbox list --provider firecracker",
    ),
    ("crabbox stop demo", "crabbox stop demo"),
];

/// Runs the demo; with `record` the session is written there once all of it has succeeded.
pub(crate) fn main(lab: &str, record: Option<&Path>) -> Result<ExitCode> {
    // Check the path before minutes are spent.
    let record = record.map(place::Place::new).transpose()?;
    let started = Instant::now();
    let (_, site) = site::choose(Images::Ours, Build::Quick, lab)?;
    // Remove the leftovers of a demo that was killed.
    drop(Tidy(&site));
    let before = site.residue()?;
    let tidy = Tidy(&site);
    println!(
        "\nThe main job, on {}, with the program as it was compiled in a hurry:\n",
        site.name
    );
    let shown = STEPS.map(|(shown, _)| shown);
    let mut steps = Vec::new();
    for (shown, script) in STEPS {
        steps.push(step(&site, shown, &script.replace("SIZE", SIZE))?);
    }
    let stopped = Instant::now();
    drop(tidy);
    let after = site.residue()?;
    let left: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    ensure!(left.is_empty(), "left behind on {}: {left:#?}", site.name);
    let found = format!(
        "Nothing is left on {}: no process, namespace, link, route, nft table, mount, control group, CNI address or file.",
        site.name
    );
    let found = Leftovers {
        after: stopped.elapsed(),
        text: found,
    };
    println!("{}", found.text);
    println!(
        "The demo took {:.0} s from its first line.",
        started.elapsed().as_secs_f64()
    );
    if let Some(place) = record {
        place.write(&Recording::now(&site, steps, found)?, &shown)?;
        println!("It is drawn in {}.", place.drawing().display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the demo's lease back and removes its directory, even if a step failed.
struct Tidy<'a>(&'a Site);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        // Errors are ignored: there may be no lease.
        self.0.run("crabbox stop demo; rm -rf demo").ok();
    }
}

/// Shows one step with its output as it comes, and how long it took.
fn step(site: &Site, shown: &str, script: &str) -> Result<Step> {
    let started = Instant::now();
    println!("$ {shown}");
    let mut lines = Vec::new();
    let ended = site.listen(script, |text| {
        println!("{}", format!("  {text}").trim_end());
        lines.push(Line::new(started.elapsed(), text));
    })?;
    let took = started.elapsed();
    println!("  ({:.1} s)\n", took.as_secs_f64());
    ensure!(ended.success(), "this step failed ({ended})");
    Ok(Step::new(shown, took, lines))
}
