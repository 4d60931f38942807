//! Measures one lease: made, entered, ended. An error is reported, and never ends the bench.
//!
//! Each command has its own time limit, because a hanging lease must not block the whole bench.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{MACHINE, number};
use crate::site::Site;

/// The time limit of one crabbox command, in seconds.
const LIMIT: u32 = 300;

/// How the machine of a lease starts, in the words of `leaseSource`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseSource {
    Cold,
    Restored,
    Pool,
}

impl LeaseSource {
    pub(super) const ALL: [Self; 3] = [Self::Cold, Self::Restored, Self::Pool];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Restored => "restored",
            Self::Pool => "pool",
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Cold => "--firecracker-warm off",
            Self::Restored => "--firecracker-warm auto",
            Self::Pool => "--firecracker-warm auto --firecracker-pool 1",
        }
    }
}

/// The times of one lease, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Lease {
    /// Until its SSH server listens.
    pub(super) banner: f64,
    /// Until `true` has exited in it.
    pub(super) exit: f64,
    /// Until it can be entered, an SSH connection to it open.
    pub(super) whole: f64,
    /// The part of that spent in our own code.
    pub(super) ours: f64,
    /// From the start of Firecracker until the machine runs: its API and the requests.
    pub(super) load: f64,
}

/// Makes a new lease, runs `true` in it, and returns the times of both.
pub(super) fn lease(site: &Site, way: LeaseSource, drop_cache: bool) -> Result<Lease> {
    if way == LeaseSource::Pool {
        // Also waits for the process that refills the pool after the previous lease.
        command(site, &format!("crabbox pool fill {MACHINE} {}", way.options()))?;
    }
    if drop_cache {
        site.script("sync && echo 3 > /proc/sys/vm/drop_caches")?;
    }
    let measured = measure(site, way);
    // Stop it in any case, so that nothing of it is left for the next one.
    let stopped = site.run(&limited("crabbox stop bench-warm"))?;
    let lease = measured?;
    ensure!(
        stopped.status.success(),
        "the lease was not given back: {}",
        stopped.stderr_text()
    );
    if way == LeaseSource::Pool {
        command(site, &format!("crabbox pool fill {MACHINE} {}", way.options()))?;
    }
    Ok(lease)
}

fn measure(site: &Site, way: LeaseSource) -> Result<Lease> {
    let made = timings(
        site,
        &format!(
            "crabbox warmup {MACHINE} {} --slug bench-warm --timing-json",
            way.options()
        ),
    )?;
    ensure!(
        made["leaseSource"] == way.name(),
        "the machine did not start as it should: leaseSource={} {}",
        made["leaseSource"],
        made["coldReason"]
    );
    let ran = timings(
        site,
        "crabbox run --id bench-warm --no-sync --timing-json -- true",
    )?;
    let stages = made["leaseStages"].as_array().context("no stages")?;
    let sum = |is: &dyn Fn(&Value) -> bool| -> f64 {
        let micros = stages
            .iter()
            .filter(|stage| is(stage))
            .filter_map(|stage| stage["micros"].as_f64());
        micros.sum::<f64>() / 1000.0
    };
    let whole = made["totalMs"].as_f64().context("no total")?;
    let run = ran["endToEndMs"].as_f64().context("no end to end")?;
    let of = |whose: &'static str| sum(&move |stage| stage["whose"] == whose);
    let others = of("guest") + of("firecracker") + of("ssh");
    Ok(Lease {
        banner: whole - of("ssh"),
        exit: whole + run,
        ours: (whole - others).max(0.0),
        whole,
        load: sum(&|stage| stage["name"] == "vmm-boot"),
    })
}

fn limited(command: &str) -> String {
    format!("timeout -k 10 {LIMIT} {command}")
}

/// The standard output of a crabbox command, which must succeed.
pub(super) fn command(site: &Site, words: &str) -> Result<String> {
    let done = site.run(&limited(words))?;
    ensure!(
        done.status.success(),
        "`{words}` failed ({}): {}",
        done.status,
        done.stderr_text()
    );
    Ok(done.stdout_text())
}

/// The document that a command prints with `--timing-json`; the command must succeed.
fn timings(site: &Site, words: &str) -> Result<Value> {
    let done = site.run(&limited(words))?;
    let said = done.stderr_text();
    ensure!(
        done.status.success(),
        "`{words}` failed ({}): {said}",
        done.status
    );
    said.lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("`{words}` printed no timings: {said}"))
}

/// The time to load the same machine with Firecracker alone, in milliseconds: in total, and for the two
/// requests.
pub(super) fn alone(site: &Site) -> Result<[f64; 2]> {
    let script = include_str!("raw.py");
    let said = site
        .script(&format!(
            "timeout -k 10 {LIMIT} ip netns exec bench-warm python3 - <<'PYTHON'\n{script}\nPYTHON"
        ))?
        .stdout_text();
    let of = |name| {
        number(&said, name)
            .map(|micros| micros / 1000.0)
            .with_context(|| format!("Firecracker alone said no {name}: {said}"))
    };
    Ok([of("raw")?, of("load")?])
}

/// The result of starting leases simultaneously.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    /// How many were restored from the template.
    pub(super) restored: f64,
    /// Milliseconds until the last one was ready.
    pub(super) wall: f64,
    /// Processor time of a single one, in milliseconds.
    pub(super) alone: f64,
    pub(super) processors: f64,
}

/// Starts `count` leases at once.
pub(super) fn crowd(site: &Site, count: usize) -> Result<Crowd> {
    let script = format!("set -- '{MACHINE}' {count}\n{}", include_str!("crowd.sh"));
    let said = site.script(&script)?.stdout_text();
    for line in said.lines().filter(|line| line.starts_with("not restored")) {
        eprintln!("xtask: {line}");
    }
    let of = |name| number(&said, name).with_context(|| format!("no {name} of those at once: {said}"));
    Ok(Crowd {
        restored: of("restored")?,
        wall: of("crowd")? / 1000.0,
        alone: of("alone")? / 1000.0,
        processors: of("processors")?,
    })
}

/// The time of a build in a lease in milliseconds, and the units of work it did. `asked` are the arguments of
/// `build.sh`.
pub(super) fn build(site: &Site, way: LeaseSource, asked: &str) -> Result<(f64, f64)> {
    let script = include_str!("build.sh");
    site.script(&format!(
        "cat >\"$HOME/bench-build.sh\" <<'SCRIPT'\n{script}\nSCRIPT"
    ))?;
    let measured = (|| {
        command(
            site,
            &format!("crabbox warmup {MACHINE} {} --slug bench-warm", way.options()),
        )?;
        let said = command(
            site,
            &format!("crabbox run --id bench-warm --no-sync --script \"$HOME/bench-build.sh\" -- {asked}"),
        )?;
        let of = |name| number(&said, name).with_context(|| format!("a build said no {name}: {said}"));
        Ok((of("build")? / 1000.0, of("units")?))
    })();
    site.run(&limited("crabbox stop bench-warm"))?;
    measured
}
