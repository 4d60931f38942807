//! Restored machines on real microVMs: each has its own identity and the right time, and works like a booted
//! one.

use std::collections::BTreeSet;

use crabbox_e2e::{Host, SMALL, assert_nothing_left};

const TEMPLATES: &str = "$HOME/.config/crabbox/state/firecracker/templates";
/// How many machines are compared with each other.
const CLONES: usize = 4;
/// Prints what must be unique to a machine, one per line; the time comes last.
const OWN: &str = "cat /proc/sys/kernel/random/boot_id /etc/machine-id /etc/hostname; \
     for i in 1 2 3; do head -c 1048576 /dev/urandom | sha256sum; done; ssh-keyscan -t ed25519 localhost 2>/dev/null; \
     date +%s";

/// The oldest process of a machine besides its first one and kernel threads: its start time and name
/// (proc(5): fields 9, flags, and 22, start time, of `/proc/PID/stat`). Only double quotes, because it is
/// used inside single ones.
const OLDEST: &str = r#"cat /proc/[0-9]*/stat 2>/dev/null | awk "{ r=\$0; sub(/.*\\) /, \"\", r); split(r, f, \" \"); \
     if (\$1 != 1 && int(f[7] / 2097152) % 2 == 0) print f[20], \$2 }" | sort -n | head -n 1"#;

/// Freezes a machine and resumes two from it; both print what they draw before and after the reseed.
const TWINS: &str = include_str!("twins.py");

#[test]
fn two_machines_of_one_moment_draw_the_same_until_they_are_reseeded() {
    let host = Host::alone();
    let image = host.crabbox("image inspect --json default").exits(0).json();
    let dir = image["path"].as_str().unwrap();
    let drew = host
        .sh(&format!(
            "rm -rf twins && mkdir twins && cd twins && python3 - {dir}/vmlinux {dir}/initrd.img <<'PYTHON'\n{TWINS}\nPYTHON\n"
        ))
        .exits(0);
    drop(host.sh("rm -rf twins").exits(0));
    let words: Vec<Vec<&str>> = drew
        .stdout
        .split_whitespace()
        .map(|word| word.split(',').collect())
        .collect();
    let [before, after, before_too, after_too] = words.as_slice() else {
        panic!("{drew:?}")
    };
    assert!(words.iter().all(|word| word.len() == 32), "{drew:?}");
    let shared = |one: &[&str], other: &[&str]| one.iter().filter(|number| other.contains(number)).count();
    // As if without the reseed: if the kernel made them differ by itself, the test would prove nothing about
    // ours.
    assert!(shared(before, before_too) > 0, "{drew:?}");
    assert_eq!(shared(after, after_too), 0, "{drew:?}");
}

/// A machine made ahead of its use is a lease like any other, with the right time and unique; another one
/// takes its place.
#[track_caller]
#[expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the exception for tests does not reach what they call"
)]
fn waits_and_is_taken(host: &Host, repo: &str, seen: &BTreeSet<String>) {
    let filled = host
        .crabbox(&format!("pool fill {SMALL} --firecracker-pool 1 --json"))
        .exits(0)
        .json();
    let waits = filled["members"][0]["leaseId"].as_str().unwrap_or_default();
    drop(host.sh("sleep 5"));
    let warmup = host.warmup(
        repo,
        "pooled",
        "--firecracker-pool 1 --ttl 1h --idle-timeout 10m --timing-json",
    );
    assert!(warmup.stderr.contains("\"leaseSource\":\"pool\""), "{warmup:?}");
    assert!(
        warmup.stdout.contains(&format!("leased {waits} slug=pooled "))
            && warmup.stdout.contains("idle_timeout=10m0s"),
        "{warmup:?}"
    );
    let told = host
        .sh(&format!(
            "cd {repo} && echo three >> tracked && crabbox run --id pooled -- sh -c '{OWN}; tail -n 1 tracked'; date +%s"
        ))
        .exits(0)
        .stdout;
    let lines: Vec<&str> = told.lines().collect();
    let [facts @ .., there, tree, here] = lines.as_slice() else {
        panic!("{told}")
    };
    assert!(
        facts.len() == 7 && facts.iter().all(|fact| !seen.contains(*fact)),
        "{told}"
    );
    assert_eq!(*tree, "three", "{told}");
    let off = there.parse::<i64>().unwrap() - here.parse::<i64>().unwrap();
    assert!((-10..=1).contains(&off), "its clock is {off} s off");
    // Its successor is made afterwards.
    let waited = host.sh(
        "for i in $(seq 240); do crabbox pool list --provider firecracker | grep -q ' pooled ' && exit 0; sleep 0.5; done; exit 1",
    );
    assert_eq!(waited.code, Some(0), "no other one waits");
    drop(host.crabbox("stop pooled").exits(0));
    assert_eq!(host.crabbox("list --provider firecracker").exits(0).stdout, "");
    let drained = host.crabbox("pool drain").exits(0);
    assert!(drained.stdout.starts_with("drained cbx_"), "{drained:?}");
}

#[test]
fn restored_machines_share_nothing_and_do_what_booted_ones_do() {
    let host = Host::alone();
    let repo = host.repository("warm");
    drop(host.sh(&format!("rm -rf {TEMPLATES}")).exits(0));
    let before = host.residue();
    let made = host
        .crabbox(&format!("image warm {SMALL} --json"))
        .exits(0)
        .json();
    assert!(made["allocatedBytes"].as_u64().unwrap() < 110 << 20, "{made}");
    // The frozen machine's clock has stopped: let it fall further behind than a machine's clock may be off.
    drop(host.sh("sleep 20"));
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for clone in 0..CLONES {
        let warmup = host.warmup(&repo, &format!("clone-{clone}"), "--timing-json");
        assert!(
            warmup.stderr.contains("\"leaseSource\":\"restored\"") && !warmup.stderr.contains("warning"),
            "{warmup:?}"
        );
        let told = host
            .sh(&format!(
                "cd {repo} && crabbox run --id clone-{clone} --no-sync -- sh -c '{OWN}'; date +%s"
            ))
            .exits(0)
            .stdout;
        let lines: Vec<&str> = told.lines().collect();
        let [facts @ .., there, here] = lines.as_slice() else {
            panic!("{told}")
        };
        assert_eq!(facts.len(), 7, "{told}");
        for fact in facts {
            assert!(seen.insert((*fact).to_owned()), "two machines have {fact}");
        }
        let off = there.parse::<i64>().unwrap() - here.parse::<i64>().unwrap();
        assert!((-10..=1).contains(&off), "its clock is {off} s off");
    }
    // Only process 1 was alive when it was frozen: the first program of a machine is the SSH server started
    // when it woke.
    let oldest = host.sh(&format!(
        "cd {repo} && crabbox run --id clone-1 --no-sync -- sh -c '{OLDEST}'"
    ));
    assert!(oldest.stdout.trim_end().ends_with(" (sshd)"), "{oldest:?}");
    // A sync, a trim, and a command.
    let run = host
        .sh(&format!("cd {repo} && echo two >> tracked && crabbox run --id clone-0 -- sh -c 'cat tracked; sudo fstrim /'"))
        .exits(0);
    assert!(run.stdout.starts_with("one\ntwo\n"), "{run:?}");
    // The template's memory contains none of their secrets; a word that every guest has shows that the search
    // works.
    let searched = host
        .sh(&format!(
            "cd {repo} && key=$(crabbox run --id clone-0 --no-sync -- sudo sed -n 3p /etc/ssh/ssh_host_ed25519_key) && test ${{#key}} -gt 40 && \
             cd {TEMPLATES}/????????????????* && grep -acF \"$key\" memory; grep -acF crabbox-guest memory"
        ))
        .stdout;
    let counts: Vec<u32> = searched.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts.len() == 2 && counts[0] == 0 && counts[1] > 0, "{searched}");
    for clone in 0..CLONES {
        drop(host.crabbox(&format!("stop clone-{clone}")).exits(0));
    }
    waits_and_is_taken(&host, &repo, &seen);
    // The template is damaged, so it is not used, but there is still a lease.
    drop(
        host.sh(&format!(
            "cd {TEMPLATES}/????????????????* && printf x | dd of=memory conv=notrunc bs=1 seek=4096 status=none"
        ))
        .exits(0),
    );
    let cold = host.warmup(&repo, "cold", "--timing-json");
    assert!(
        cold.stderr
            .contains("\"leaseSource\":\"cold\",\"coldReason\":\"its memory has changed"),
        "{cold:?}"
    );
    drop(host.crabbox("stop cold").exits(0));
    drop(host.sh(&format!("rm -rf {TEMPLATES}")).exits(0));
    assert_nothing_left(&before, &host.residue());
}
