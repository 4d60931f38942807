//! The main use on real microVMs: lease, inspect, run with a dirty tree, enter, list, give back; and nothing
//! is left behind.

use crabbox_e2e::{Host, SMALL, assert_nothing_left};

/// Documents of a real lease, which [`Host::crabbox`] validates against their schemas.
fn documents(host: &Host) {
    for words in [
        "inspect --json e2e-main",
        "heartbeat --json e2e-main",
        "claims list --json",
        "ports --id e2e-main --json list",
    ] {
        drop(host.crabbox(words).exits(0).json());
    }
}

#[test]
fn a_lease_from_warmup_to_stop_leaves_nothing() {
    let host = Host::alone();
    let repo = host.repository("main");
    let before = host.residue();
    let warmup = host.warmup(&repo, "e2e-main", "--timing-json");
    assert!(warmup.stderr.contains("{\"provider\""), "{}", warmup.stderr);
    let id = warmup.lease();
    let leased = warmup.stdout.lines().next().unwrap_or_default();
    for part in [
        &format!("leased {id} "),
        "slug=e2e-main",
        "provider=firecracker",
        "type=microvm",
        "idle_timeout=30m0s",
    ] {
        assert!(leased.contains(part), "{part} in {leased}");
    }
    assert!(
        warmup.stderr.contains("provisioned provider=firecracker lease="),
        "{}",
        warmup.stderr
    );

    let status = host.crabbox("status --id e2e-main --json").exits(0).json();
    assert_eq!(
        (status["state"].as_str(), status["ready"].as_bool()),
        (Some("ready"), Some(true)),
        "{status}"
    );
    assert_eq!(status["id"].as_str(), Some(id.as_str()));

    documents(&host);

    // A dirty tree, the command's own exit code, and separate output streams.
    let run = host.sh(&format!(
        "cd {repo} && echo two >> tracked && echo new > untracked && git rm -q sub/file && \
         crabbox run --id e2e-main -- sh -c 'cat tracked untracked; ls sub 2>/dev/null; git status --short; echo to-stderr >&2; exit 7'"
    ));
    let run = run.exits(7);
    assert_eq!(
        run.stdout,
        "one\ntwo\nnew\nD  sub/file\n M tracked\n?? untracked\n"
    );
    assert!(
        run.stderr.contains("\nto-stderr\n") && run.stderr.contains("remote command exited 7"),
        "{}",
        run.stderr
    );
    assert!(!run.stdout.contains("to-stderr"));

    let again = host
        .sh(&format!("cd {repo} && crabbox run --id {id} -- true"))
        .exits(0);
    assert!(
        again.stderr.contains("No changes detected, skipping sync"),
        "{}",
        again.stderr
    );

    let enter = host
        .sh(&format!("cd {repo} && eval \"$(crabbox ssh e2e-main) whoami\""))
        .exits(0);
    assert_eq!(enter.stdout, "crabbox\n");
    let session = host.sh(&format!(
        "cd {repo} && echo 'echo in-$(id -un); exit 5' | crabbox connect e2e-main"
    ));
    assert!(
        session.code == Some(5) && session.stdout.contains("in-crabbox"),
        "{session:?}"
    );

    let list = host.crabbox("list --provider firecracker --json").exits(0).json();
    let listed = list
        .as_array()
        .and_then(|all| all.iter().find(|lease| lease["labels"]["lease"] == id.as_str()));
    assert_eq!(
        listed.map(|lease| lease["status"].as_str()),
        Some(Some("ready")),
        "{list}"
    );

    let stop = host.crabbox("stop e2e-main").exits(0);
    assert!(
        stop.stdout.is_empty() && stop.stderr.starts_with(&format!("deleted lease={id} server=")),
        "{stop:?}"
    );
    drop(host.crabbox("stop e2e-main").exits(4));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn a_run_of_its_own_leases_and_gives_back() {
    let host = Host::alone();
    let repo = host.repository("ephemeral");
    let before = host.residue();
    let run = host
        .sh(&format!(
            "cd {repo} && crabbox run {SMALL} --timing-json -- cat tracked"
        ))
        .exits(0);
    assert_eq!(run.stdout, "one\n");
    let timing: serde_json::Value = run
        .stderr
        .lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap();
    assert_eq!(
        (timing["exitCode"].as_i64(), timing["leaseStopped"].as_bool()),
        (Some(0), Some(true)),
        "{timing}"
    );
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn a_guest_that_cannot_boot_is_taken_back_and_shows_its_console() {
    let host = Host::alone();
    let before = host.residue();
    // A real ELF kernel whose code is overwritten: it loads, and dies at its first instructions.
    let kernel = format!("{}/vmlinux", host.image("default"));
    let made = host.sh(&format!(
        "mkdir -p $HOME/e2e/bad && cd $HOME/e2e/bad && \
         cp {kernel} vmlinux && chmod 600 vmlinux && dd if=/dev/zero of=vmlinux bs=1M seek=2 count=8 conv=notrunc status=none && \
         truncate -s 64M rootfs.ext4 && mke2fs -q -F rootfs.ext4"
    ));
    drop(made.exits(0));
    let failed = host
        .crabbox(&format!(
            "warmup {SMALL} --firecracker-kernel $HOME/e2e/bad/vmlinux --firecracker-rootfs $HOME/e2e/bad/rootfs.ext4 \
             --firecracker-launch-timeout 15s"
        ))
        .exits(5);
    assert!(
        failed.stderr.contains("did not become ready"),
        "{}",
        failed.stderr
    );
    assert!(failed.stdout.is_empty(), "{}", failed.stdout);
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn a_guest_that_panics_is_taken_back_and_its_last_words_are_shown() {
    let host = Host::alone();
    let before = host.residue();
    // A good kernel with a root file system without an init: it boots, panics, and the console shows why.
    let made = host.sh(
        "mkdir -p $HOME/e2e/empty && cd $HOME/e2e/empty && rm -f rootfs.ext4 && truncate -s 64M rootfs.ext4 && mke2fs -q -F rootfs.ext4",
    );
    drop(made.exits(0));
    let failed = host
        .crabbox(&format!(
            "warmup {SMALL} --firecracker-kernel {}/vmlinux --firecracker-rootfs $HOME/e2e/empty/rootfs.ext4 \
             --firecracker-launch-timeout 3m",
            host.image("default")
        ))
        .exits(5);
    assert!(
        failed.stderr.contains("console tail") && failed.stderr.contains("panic"),
        "{}",
        failed.stderr
    );
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn bad_input_is_reported_with_its_fix_and_leaves_the_host_alone() {
    let host = Host::alone();
    let before = host.residue();
    let cases: [(&str, i32, &str); 9] = [
        ("warmup", 2, "no provider selected"),
        ("warmup --provider nosuch", 2, "unknown provider"),
        (
            "warmup --provider firecracker --firecracker-kernel /nope --firecracker-rootfs /nope",
            2,
            "firecracker.kernel unavailable",
        ),
        (
            "warmup --provider firecracker --firecracker-kernel /etc/passwd --firecracker-rootfs /etc/passwd",
            2,
            "not a usable guest kernel",
        ),
        (
            "warmup --provider firecracker --firecracker-network cni --firecracker-cni-network nosuch",
            2,
            "nosuch",
        ),
        (
            "warmup --provider firecracker --firecracker-binary /nope/firecracker",
            2,
            "firecracker.binary unavailable",
        ),
        (
            "warmup --provider firecracker --firecracker-cpus 0",
            2,
            "firecracker.cpus > 0",
        ),
        ("stop cbx_000000000000", 4, "lease/server not found"),
        ("ssh nosuch", 4, "lease/server not found"),
    ];
    for (words, code, said) in cases {
        let done = host.crabbox(words).exits(code);
        assert!(done.stderr.contains(said), "{words}: {said} in {}", done.stderr);
        assert!(done.stdout.is_empty(), "{words}: {}", done.stdout);
    }
    let outside = host
        .sh(&format!(
            "mkdir -p $HOME/e2e/plain && cd $HOME/e2e/plain && crabbox run {SMALL} -- true"
        ))
        .exits(6);
    assert!(
        outside.stderr.contains("is not a Git repository"),
        "{}",
        outside.stderr
    );
    assert_nothing_left(&before, &host.residue());
}

/// A user's configuration with two required volumes.
const WITH_VOLUMES: &str = "export CRABBOX_CONFIG=$HOME/e2e/volumes.yaml; mkdir -p $HOME/e2e && \
     echo 'cache: {volumes: [{key: e2e-system, path: /var/cache/crabbox/e2e, sizeGB: 1, required: true}, \
     {key: e2e-home, path: /home/crabbox/.cache/e2e, sizeGB: 1, required: true}]}' > $CRABBOX_CONFIG && chmod 600 $CRABBOX_CONFIG";

#[test]
fn a_lease_reads_in_its_volumes_what_an_earlier_one_wrote() {
    let host = Host::alone();
    let repo = host.repository("volumes");
    let remove = |key: &str| host.crabbox(&format!("cache volumes --remove {key} --force"));
    // Leftovers of an earlier, failed run of this test.
    drop((remove("e2e-system"), remove("e2e-home")));
    drop(host.sh(WITH_VOLUMES).exits(0));
    let before = host.residue();
    let leased = |slug: &str| {
        host.sh(&format!(
            "{WITH_VOLUMES} && cd {repo} && exec crabbox warmup {SMALL} --slug {slug} --timing-json"
        ))
        .exits(0)
    };
    let run = |slug: &str, script: &str| {
        let run = host.sh(&format!(
            "{WITH_VOLUMES} && cd {repo} && exec crabbox run --id {slug} --no-sync -- sh -c '{script}'"
        ));
        run.exits(0).stdout
    };
    let first = leased("e2e-first");
    assert!(
        first.stderr.contains("\"coldReason\":\"it has cache volumes"),
        "{first:?}"
    );
    // They belong to the user, as do the directories made for them; and data is written without an explicit
    // sync.
    assert_eq!(
        run(
            "e2e-first",
            "stat -c %U /var/cache/crabbox/e2e ~/.cache ~/.cache/e2e && echo system > /var/cache/crabbox/e2e/kept && \
             echo home > ~/.cache/e2e/kept"
        ),
        "crabbox\ncrabbox\ncrabbox\n"
    );
    drop(host.crabbox("stop e2e-first").exits(0));

    // Data that was written out also survives a machine that dies.
    drop(leased("e2e-second"));
    assert_eq!(
        run(
            "e2e-second",
            "cat /var/cache/crabbox/e2e/kept ~/.cache/e2e/kept && echo synced > ~/.cache/e2e/other && sync ~/.cache/e2e/other"
        ),
        "system\nhome\n"
    );
    drop(host.sh("pkill -9 -f '[f]irecracker --id'; sleep 1"));
    drop(host.crabbox("cleanup --provider firecracker").exits(0));
    drop(leased("e2e-third"));
    assert_eq!(
        run(
            "e2e-third",
            "cat /var/cache/crabbox/e2e/kept ~/.cache/e2e/kept ~/.cache/e2e/other"
        ),
        "system\nhome\nsynced\n"
    );
    drop(host.crabbox("stop e2e-third").exits(0));
    drop(remove("e2e-system").exits(0));
    drop(remove("e2e-home").exits(0));
    assert_nothing_left(&before, &host.residue());
}
