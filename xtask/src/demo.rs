//! `demo`: the main job, for a person to see: a real microVM leased, a dirty tree synced, a command run, the lease given
//! back, and the proof that nothing is left.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::site::{self, Site};
use crabbox_lab::payload::{Build, Images};

/// The size of the demo's machine: small, because it may be emulated.
const SIZE: &str =
    "--provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048";

/// What is shown: the command that a user would type, and the script behind it where it is longer.
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
        "crabbox run --id demo -- sh -c 'exit 7'",
        "cd demo && { crabbox run --id demo -- sh -c 'exit 7'; test $? = 7; }",
    ),
    (
        "crabbox list --provider firecracker",
        "crabbox list --provider firecracker",
    ),
    ("crabbox stop demo", "crabbox stop demo"),
];

/// Runs the demo.
pub(crate) fn main(lab: &str) -> Result<ExitCode> {
    let started = Instant::now();
    let (_, site) = site::choose(Images::Ours, Build::Quick, lab)?;
    let before = site.residue()?;
    println!(
        "\nThe main job, on {}, with the program as it was compiled in a hurry:\n",
        site.name
    );
    for (shown, script) in STEPS {
        step(&site, shown, &script.replace("SIZE", SIZE))?;
    }
    site.script("rm -rf demo")?;
    let after = site.residue()?;
    let left: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    ensure!(left.is_empty(), "left behind on {}: {left:#?}", site.name);
    println!(
        "Nothing is left on {}: no process, namespace, link, route, nft table, mount, control group, CNI address or file.",
        site.name
    );
    println!(
        "The demo took {:.0} s from its first line.",
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// Shows one step with what it printed and how long it took.
fn step(site: &Site, shown: &str, script: &str) -> Result<()> {
    let started = Instant::now();
    let done = site.run(script)?;
    println!("$ {shown}");
    for line in done
        .stderr_text()
        .lines()
        .chain(done.stdout_text().lines())
        .filter(|line| !line.is_empty())
    {
        println!("  {line}");
    }
    println!("  ({:.1} s)\n", started.elapsed().as_secs_f64());
    ensure!(done.status.success(), "this step failed");
    Ok(())
}
