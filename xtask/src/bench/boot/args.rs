//! `bench boot --kernel-args`: what each argument of the guest's kernel gains, measured by leaving it out, and what others would.
//!
//! The machine is a lease's own, started with Firecracker alone, so that its command line can be anything. All variants take turns
//! in every round: a busy moment of this machine hits all of them. Timings never decide a test.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use crabbox_image::guest::{self, Purpose};
use serde_json::json;

use super::super::median;
use crate::payload;
use crate::site::{self, Site};
use crate::workspace;

/// How many rounds at least.
const LEAST: usize = 3;

/// How many variants stand between two boots with our own arguments, which are what all are compared with.
const STRIDE: usize = 4;

/// Arguments that others give to guests and we do not.
const CANDIDATES: [&str; 9] = [
    "tsc=reliable",
    "no_timer_check",
    "raid=noautodetect",
    "rcupdate.rcu_expedited=1",
    "nokaslr",
    "cgroup_disable=memory",
    "lsm=capability",
    "init_on_alloc=0",
    "mitigations=off",
];

/// A command line, and what sets it apart.
struct Variant {
    /// `ours`, `without WORD` or `with WORD`.
    name: String,
    line: String,
    boots: Vec<Boot>,
}

/// One boot, in milliseconds.
struct Boot {
    /// From the start of the VMM to `ready`, by the host's clock.
    whole: f64,
    /// The stage `kernel`, by the guest's clock.
    kernel: f64,
}

/// Boots every variant `rounds` times. `more` are further arguments to try.
pub(crate) fn main(lab: &str, rounds: usize, more: &[String]) -> Result<ExitCode> {
    ensure!(
        rounds >= LEAST,
        "a median of fewer than {LEAST} boots says nothing"
    );
    let payload = payload::ensure()?;
    let site = site::choose(&payload, lab)?;
    let mut variants = variants(more);
    site.script(include_str!("prepare.sh"))?;
    for round in 1..=rounds {
        // Each round begins with another one.
        let first = round * variants.len() / rounds;
        let order: Vec<usize> = (0..variants.len())
            .map(|place| (place + first) % variants.len())
            .filter(|number| *number > 0)
            .collect();
        for some in order.chunks(STRIDE) {
            boot(&site, &mut variants[0])?;
            for number in some {
                boot(&site, &mut variants[*number])?;
            }
        }
        eprintln!("xtask: round {round} of {rounds}");
    }
    site.script("ip link del bench-args; rm -rf \"$HOME/bench-args\"")?;
    report(&site, &variants, rounds)
}

/// Our own line first, then ours without each argument that is for speed, then ours with each candidate.
fn variants(more: &[String]) -> Vec<Variant> {
    let ours = guest::arguments();
    let words: Vec<&str> = ours.iter().map(|argument| argument.word).collect();
    let variant = |name: String, words: &[&str]| Variant {
        name,
        line: words.join(" "),
        boots: Vec::new(),
    };
    let mut variants = vec![variant("ours".to_owned(), &words)];
    for argument in ours.iter().filter(|argument| argument.purpose == Purpose::Speed) {
        let rest: Vec<&str> = words
            .iter()
            .copied()
            .filter(|word| *word != argument.word)
            .collect();
        variants.push(variant(format!("without {}", argument.word), &rest));
    }
    for candidate in CANDIDATES.into_iter().chain(more.iter().map(String::as_str)) {
        let all = [words.as_slice(), &[candidate]].concat();
        variants.push(variant(format!("with {candidate}"), &all));
    }
    variants
}

/// Boots once. A guest that does not get ready is no boot: the variant is told as such, and the others go on.
fn boot(site: &Site, variant: &mut Variant) -> Result<()> {
    let script = format!("set -- '{}'\n{}", variant.line, include_str!("once.sh"));
    let text = site.script(&script)?.stdout_text();
    let whole = text
        .lines()
        .find_map(|line| line.strip_prefix("whole ")?.parse().ok())
        .with_context(|| format!("a boot took no time: {text}"))?;
    let kernel = text.lines().find_map(|line| {
        line.split_once("crabbox-guest: kernel ")?
            .1
            .trim()
            .parse::<f64>()
            .ok()
    });
    if let Some(kernel) = kernel.filter(|_| text.contains("crabbox-guest: ready ")) {
        variant.boots.push(Boot {
            whole,
            kernel: kernel * 1000.0,
        });
    }
    Ok(())
}

/// Half of the boots lie within this range around the median, in milliseconds.
fn spread(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 3 / 4] - values[values.len() / 4]
}

fn report(site: &Site, variants: &[Variant], rounds: usize) -> Result<ExitCode> {
    let wholes = |variant: &Variant| variant.boots.iter().map(|boot| boot.whole).collect::<Vec<_>>();
    let kernels = |variant: &Variant| variant.boots.iter().map(|boot| boot.kernel).collect::<Vec<_>>();
    let ours = &variants[0];
    ensure!(
        !ours.boots.is_empty(),
        "no guest got ready with our own arguments"
    );
    let (whole, kernel, spread) = (median(wholes(ours)), median(kernels(ours)), spread(wholes(ours)));
    println!(
        "\nA guest's kernel arguments on {}, {rounds} rounds, medians (1 vCPU, 256 MiB). `whole` is from the start of the VMM to\n\
         `ready`, `kernel` the first stage by the guest's clock; each beside ours: whole {whole:.0} ms (half of {} boots within {spread:.0} ms), \
         kernel {kernel:.0} ms.\n",
        site.name,
        ours.boots.len()
    );
    println!("  {:<34} {:>10} {:>10}", "", "whole ms", "kernel ms");
    let mut rows = Vec::new();
    for variant in &variants[1..] {
        if variant.boots.len() < rounds {
            println!(
                "  {:<34} got ready {} times of {rounds}",
                variant.name,
                variant.boots.len()
            );
            rows.push(json!({ "variant": variant.name, "ready": variant.boots.len() }));
            continue;
        }
        let (more, kernel_more) = (median(wholes(variant)) - whole, median(kernels(variant)) - kernel);
        println!("  {:<34} {more:>+10.0} {kernel_more:>+10.0}", variant.name);
        rows.push(json!({
            "variant": variant.name, "ready": variant.boots.len(), "wholeMoreMs": more, "kernelMoreMs": kernel_more,
            "wholeMs": wholes(variant), "kernelMs": kernels(variant),
        }));
    }
    let document = json!({
        "host": site.name, "rounds": rounds, "line": ours.line, "wholeMs": whole, "wholeSpreadMs": spread, "kernelMs": kernel,
        "runs": wholes(ours), "variants": rows,
    });
    let dir = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let out = dir.join("boot-args.json");
    std::fs::write(&out, serde_json::to_vec_pretty(&document)?)?;
    println!("  kept in {}", out.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_argument_for_speed_is_left_out_once_and_a_needed_one_never() {
        let variants = variants(&["mine=1".to_owned()]);
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let ours = words(&variants[0].line);
        for argument in guest::arguments() {
            let without = variants[1..]
                .iter()
                .filter(|variant| !words(&variant.line).contains(&argument.word.to_owned()));
            let expected = usize::from(argument.purpose == Purpose::Speed);
            assert_eq!(without.count(), expected, "{}", argument.word);
        }
        let last = &variants[variants.len() - 1];
        assert_eq!(words(&last.line), [ours, vec!["mine=1".to_owned()]].concat());
    }
}
