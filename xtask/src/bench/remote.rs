//! `bench remote`: the cost of a KVM host between a client and its guest, on a pretended host with a real
//! sshd on its loopback.
//!
//! The VMM is a fake, so no figure is about a microVM; only ratios within one run are meaningful. Timings
//! never decide a test; they are printed for a person and kept in `target/bench/remote.json`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use serde_json::json;

use super::median;
use crate::workspace;

/// Makes the host, up to its ready message; `$1` is the directory with our programs.
const PRETEND: &str = include_str!("../../../e2e/src/pretend.sh");

/// Makes it serve alice and bob.
const SERVE: &str = include_str!("../../../e2e/src/afar.sh");

/// The measurements there.
const MEASURE: &str = concat!(include_str!("timed.sh"), include_str!("remote.sh"));

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_mins(20);

/// The programs of a pretended host.
const PROGRAMS: [&str; 3] = ["crabbox", "fake-firecracker", "fake-jailer"];

/// Builds the programs optimised, and returns their directory.
fn programs() -> Result<PathBuf> {
    let mut cargo = workspace::cargo().args(["build", "--profile", "lab", "--workspace"]);
    for program in PROGRAMS {
        cargo = cargo.args(["--bin", program]);
    }
    cargo.limit(LIMIT).run()?;
    Ok(workspace::target_dir().join("lab"))
}

/// Measures and reports.
pub(crate) fn main(runs: usize) -> Result<ExitCode> {
    ensure!(runs >= 5, "a median of fewer than 5 runs says nothing");
    let programs = programs()?;
    let (make, _) = PRETEND
        .split_once("echo ready")
        .context("e2e/src/pretend.sh does not say when it is ready")?;
    let script = format!("{make}\nexport HOME=/srv\n{SERVE}\n{MEASURE}");
    let done = Cmd::inheriting("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--mount-proc",
            "--kill-child=KILL",
        ])
        .args(["sh", "-c", &script, "sh"])
        .arg(&programs)
        .arg(runs.to_string())
        .limit(LIMIT)
        .run()
        .context("cannot pretend a host; namespaces of its own need root")?;
    report(&done.stdout_text(), runs)
}

fn report(text: &str, runs: usize) -> Result<ExitCode> {
    let measured = |name: &str| -> Result<f64> {
        let values = text
            .lines()
            .filter_map(|line| line.split_once(' ').filter(|(other, _)| *other == name))
            .map(|(_, value)| value.parse::<f64>())
            .collect::<Result<Vec<f64>, _>>()?;
        ensure!(!values.is_empty(), "nothing was measured for {name}: {text}");
        Ok(median(values))
    };
    let ms = |name: &str| Ok::<f64, anyhow::Error>(measured(name)? / 1000.0);
    let (far, near, trip) = (ms("far")?, ms("near")?, ms("trip")?);
    let rate = |name: &str| -> Result<f64> {
        let took = ms(name)? - ms(&format!("{name}_login"))?;
        Ok(measured("mebibytes")? / (took / 1000.0))
    };
    let (through, forwarded) = (rate("through")?, rate("forwarded")?);
    let (rss, anonymous, dirty) = (
        measured("VmRSS")?,
        measured("RssAnon")?,
        measured("private_dirty")?,
    );
    println!("A KVM host between, on loopback, medians of {runs}\n");
    println!("  run --id --no-sync, lease on this machine      {near:8.1} ms");
    println!("  run --id --no-sync, lease on another host      {far:8.1} ms");
    println!(
        "  more                                           {:8.1} ms, which are {:.2} round trips of {trip:.1} ms",
        far - near,
        (far - near) / trip
    );
    println!("  bytes from the guest through the host          {through:8.1} MiB/s");
    println!("  the same by ssh -W                             {forwarded:8.1} MiB/s");
    println!(
        "  ratio                                          {:8.2}",
        through / forwarded
    );
    println!(
        "  an idle __serve, resident                      {rss:8.0} KiB, of which {anonymous:.0} are its own and {dirty:.0} nobody else's"
    );
    let document = json!({
        "runs": runs, "nearMs": near, "farMs": far, "tripMs": trip, "throughMiBs": through, "forwardedMiBs": forwarded,
        "throughRatio": through / forwarded, "serveRssKiB": rss, "serveAnonymousKiB": anonymous, "servePrivateDirtyKiB": dirty,
    });
    let out = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("remote.json"), serde_json::to_vec_pretty(&document)?)?;
    println!("{}", out.join("remote.json").display());
    Ok(ExitCode::SUCCESS)
}
