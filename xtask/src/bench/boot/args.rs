//! `bench boot --kernel-args`: what each argument of the guest's kernel gains, measured by leaving it out,
//! and what further arguments would gain.
//!
//! The machine is that of a lease, started with Firecracker alone, so that its command line can be arbitrary.
//! All variants alternate in every round, so that a busy moment of this machine affects all of them. In the
//! lab the emulator's processor time is more meaningful than any clock, because other load does not affect
//! it. Timings never decide a test.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use crabbox_image::guest::{self, Purpose};
use serde_json::json;

use super::super::median;
use crate::site::{self, Site};
use crate::workspace;
use crabbox_lab::payload::{Build, Images};

/// The minimum number of rounds.
const LEAST: usize = 3;

/// After how many variants there is a boot with our own arguments, the baseline of all comparisons.
const STRIDE: usize = 4;

/// Arguments that other projects give to their guests and we do not.
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

/// A command line, and how it differs from ours.
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
    /// Processor time of the lab's emulator for the whole boot; `None` on a host with its own KVM.
    work: Option<f64>,
}

/// Boots every variant `rounds` times. `more` are additional arguments to try.
pub(crate) fn main(lab: &str, rounds: usize, more: &[String]) -> Result<ExitCode> {
    ensure!(
        rounds >= LEAST,
        "a median of fewer than {LEAST} boots says nothing"
    );
    let (_, site) = site::choose(Images::Ours, Build::Optimised, lab)?;
    let mut variants = variants(more);
    site.script(include_str!("prepare.sh"))?;
    for round in 1..=rounds {
        // Each round begins with a different variant.
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

/// Boots once. If the guest does not get ready, the variant is reported as failing, and the others continue.
fn boot(site: &Site, variant: &mut Variant) -> Result<()> {
    let script = format!("set -- '{}'\n{}", variant.line, include_str!("once.sh"));
    let before = site.processor_ms();
    let text = site.script(&script)?.stdout_text();
    let work = before
        .zip(site.processor_ms())
        .map(|(before, after)| after - before);
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
            work,
        });
    }
    Ok(())
}

/// The interquartile range, in milliseconds.
fn spread(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |quarter: usize| values.get(values.len() * quarter / 4).copied().unwrap_or(0.0);
    at(3) - at(1)
}

/// The medians of a variant, in milliseconds; `work` is `None` if the site is not a lab.
struct Medians {
    whole: f64,
    kernel: f64,
    work: Option<f64>,
}

fn medians(boots: &[Boot]) -> Medians {
    let works: Vec<f64> = boots.iter().filter_map(|boot| boot.work).collect();
    Medians {
        whole: median(boots.iter().map(|boot| boot.whole).collect()),
        kernel: median(boots.iter().map(|boot| boot.kernel).collect()),
        work: (!works.is_empty()).then(|| median(works)),
    }
}

fn report(site: &Site, variants: &[Variant], rounds: usize) -> Result<ExitCode> {
    let ours = &variants[0].boots;
    ensure!(!ours.is_empty(), "no guest got ready with our own arguments");
    let base = medians(ours);
    let wholes = spread(ours.iter().map(|boot| boot.whole).collect());
    let works = spread(ours.iter().filter_map(|boot| boot.work).collect());
    println!(
        "\nA guest's kernel arguments on {}, {rounds} rounds, medians (1 vCPU, 256 MiB). `work` is the emulator's processor time, `whole`\n\
         from the start of the VMM to `ready`, `kernel` the first stage by the guest's clock. Ours, {} boots: work {:.0} ms (half within\n\
         {works:.0} ms), whole {:.0} ms (half within {wholes:.0} ms), kernel {:.0} ms; the others beside it:\n",
        site.name,
        ours.len(),
        base.work.unwrap_or(0.0),
        base.whole,
        base.kernel,
    );
    println!(
        "  {:<34} {:>9} {:>9} {:>9}",
        "", "work ms", "whole ms", "kernel ms"
    );
    let mut rows = Vec::new();
    for variant in &variants[1..] {
        let ready = variant.boots.len();
        if ready < rounds {
            println!("  {:<34} got ready {ready} times of {rounds}", variant.name);
            rows.push(json!({ "variant": variant.name, "ready": ready }));
            continue;
        }
        let found = medians(&variant.boots);
        let work = found.work.zip(base.work).map(|(found, base)| found - base);
        let (whole, kernel) = (found.whole - base.whole, found.kernel - base.kernel);
        let told = work.map_or_else(|| "-".to_owned(), |work| format!("{work:+.0}"));
        println!("  {:<34} {told:>9} {whole:>+9.0} {kernel:>+9.0}", variant.name);
        rows.push(json!({
            "variant": variant.name, "ready": ready, "workMoreMs": work, "wholeMoreMs": whole, "kernelMoreMs": kernel,
        }));
    }
    let document = json!({
        "host": site.name, "rounds": rounds, "line": variants[0].line, "boots": ours.len(), "workMs": base.work, "workSpreadMs": works,
        "wholeMs": base.whole, "wholeSpreadMs": wholes, "kernelMs": base.kernel, "variants": rows,
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
