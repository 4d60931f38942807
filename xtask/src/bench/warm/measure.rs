//! One lease, measured: made, entered, ended. What goes wrong is told, and never ends the bench.
//!
//! Each command has a limit of its own, because a lease that hangs must not take the night with it.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{MACHINE, number};
use crate::site::Site;

/// Seconds that one command of crabbox may take.
const LIMIT: u32 = 300;

/// How the machine of a lease starts, as `leaseSource` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Cold,
    Restored,
    Pool,
}

impl Way {
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

/// Milliseconds of one lease.
#[derive(Debug, Clone, Default)]
pub(super) struct Lease {
    /// Until its SSH server listens.
    pub(super) banner: f64,
    /// Until `true` has exited in it.
    pub(super) exit: f64,
    /// Until it can be entered, an SSH connection to it open.
    pub(super) whole: f64,
    /// What of that was our own work.
    pub(super) ours: f64,
    /// Until the machine runs, once Firecracker is started: its API, and what it is told.
    pub(super) load: f64,
}

/// A new lease and `true` in it, and what both took.
pub(super) fn lease(site: &Site, way: Way, drop_cache: bool) -> Result<Lease> {
    if way == Way::Pool {
        // It also waits for whoever fills the pool up behind the one before.
        command(site, &format!("crabbox pool fill {MACHINE} {}", way.options()))?;
    }
    if drop_cache {
        site.script("sync && echo 3 > /proc/sys/vm/drop_caches")?;
    }
    let measured = measure(site, way);
    // Whatever became of it, nothing of it is there at the next one.
    let stopped = site.run(&limited("crabbox stop bench-warm"))?;
    let lease = measured?;
    ensure!(
        stopped.status.success(),
        "the lease was not given back: {}",
        stopped.stderr_text()
    );
    if way == Way::Pool {
        command(site, &format!("crabbox pool fill {MACHINE} {}", way.options()))?;
    }
    Ok(lease)
}

fn measure(site: &Site, way: Way) -> Result<Lease> {
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

/// What a command of crabbox said on standard output; it must succeed.
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

/// The document that a command prints with `--timing-json`; it must succeed.
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

/// What loading the same machine takes with Firecracker alone, in milliseconds: all of it, and the two requests.
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

/// Leases that were begun all at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    /// How many came of the template.
    pub(super) restored: f64,
    /// Milliseconds by the clock until the last one was there.
    pub(super) wall: f64,
    /// Milliseconds of processors that one takes by itself.
    pub(super) alone: f64,
    pub(super) processors: f64,
}

/// Begins `count` leases at once.
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

/// How long a build takes in a lease, in milliseconds, and how many units of work that were. `asked` are the words of `build.sh`.
pub(super) fn build(site: &Site, way: Way, asked: &str) -> Result<(f64, f64)> {
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
