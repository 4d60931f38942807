//! Foreign images on real microVMs: a Debian with its own kernel, systemd and cloud-init, unaware of crabbox,
//! and one built from OCI layers whose systemd runs on our kernel. `cargo xtask` makes both
//! (`payload/cloud.rs`).

use crabbox_e2e::{Host, assert_nothing_left};

/// A lease from it. cloud-init takes a minute of Python on an emulated processor.
const CLOUD: &str = "--provider firecracker --firecracker-image cloud --firecracker-cpus 1 --firecracker-memory-mib 512 \
     --firecracker-disk-mib 1500 --firecracker-launch-timeout 10m";

#[test]
fn a_cloud_init_image_is_leased_entered_and_given_back() {
    let host = Host::alone();
    let repo = host.repository("cloud");
    let before = host.residue();
    let warmup = host
        .sh(&format!("cd {repo} && exec crabbox warmup {CLOUD} --slug cloud"))
        .exits(0);
    let id = warmup.lease();
    let status = host.crabbox("status --id cloud --json").exits(0).json();
    assert_eq!(status["ready"].as_bool(), Some(true), "{status}");
    let method = status["labels"]["disk_method"].as_str();
    assert!(matches!(method, Some("reflink" | "sparse-copy")), "{status}");

    // The contract of the seed: user, sudo, host name, address, outgoing route, name server, work root; and
    // the requested disk size.
    let run = host
        .sh(&format!(
            "cd {repo} && echo two >> tracked && crabbox run --id cloud -- sh -c 'cat tracked; whoami; sudo -n id -u; hostname; \
             ip -4 route get 1.1.1.1 | head -1; cat /etc/resolv.conf; pwd; df --output=size -m / | tail -1; cat /proc/1/comm'"
        ))
        .exits(0);
    for part in [
        "one\ntwo\ncrabbox\n0\ncrabbox-cloud",
        "via 172.16.0.1 dev eth0",
        "nameserver 172.16.0.1",
        "/work/crabbox/",
        "systemd\n",
    ] {
        assert!(run.stdout.contains(part), "{part:?} in {}", run.stdout);
    }
    let mib: u64 = run.stdout.lines().rev().nth(1).unwrap().trim().parse().unwrap();
    assert!((1300..1500).contains(&mib), "the guest sees {mib} MiB of 1500");

    let stop = host.crabbox("stop cloud").exits(0);
    assert!(
        stop.stderr.starts_with(&format!("deleted lease={id} ")),
        "{stop:?}"
    );
    assert_nothing_left(&before, &host.residue());
}

/// A lease from the image built from OCI layers with `--init systemd`.
const SYSTEMD: &str = "--provider firecracker --firecracker-image systemd --firecracker-cpus 1 --firecracker-memory-mib 384 \
     --firecracker-disk-mib 1500 --firecracker-launch-timeout 5m";

#[test]
fn an_oci_image_with_systemd_is_leased_entered_and_given_back() {
    let host = Host::alone();
    let repo = host.repository("systemd");
    let before = host.residue();
    let image = host.crabbox("image inspect --json systemd").exits(0).json();
    let made_of = &image["manifest"]["provenance"];
    assert!(
        made_of["init"] == "systemd" && made_of["source"] == "oci",
        "{made_of}"
    );
    let warmup = host
        .sh(&format!(
            "cd {repo} && exec crabbox warmup {SYSTEMD} --slug systemd"
        ))
        .exits(0);
    let id = warmup.lease();
    let status = host.crabbox("status --id systemd --json").exits(0).json();
    assert_eq!(
        (
            status["ready"].as_bool(),
            status["labels"]["disk_method"].as_str()
        ),
        (Some(true), Some("shared-base")),
        "{status}"
    );

    // Process 1 is the image's own, which runs sshd; layers, user, sudo, address and outgoing route are as
    // the lease needs them.
    let run = host
        .sh(&format!(
            "cd {repo} && echo two >> tracked && crabbox run --id systemd -- sh -c 'cat tracked; cat /proc/1/comm; systemctl is-active ssh; \
             whoami; sudo -n id -u; hostname; cat /etc/layer; ls /usr/lib/modules /boot | grep -c 6.1; ip -4 route get 1.1.1.1 | head -1; \
             cat /etc/resolv.conf; pwd; systemctl --failed --no-legend --plain'"
        ))
        .exits(0);
    for part in [
        "one\ntwo\nsystemd\nactive\ncrabbox\n0\ncrabbox-systemd",
        "\nupper\n0\n",
        "via 172.16.0.1 dev eth0",
        "nameserver 172.16.0.1",
        "/work/crabbox/",
    ] {
        assert!(run.stdout.contains(part), "{part:?} in {}", run.stdout);
    }
    assert!(!run.stdout.contains(".service"), "a unit failed: {}", run.stdout);

    // Powered off from inside, it is taken back like any other.
    drop(host.sh(&format!(
        "cd {repo} && crabbox run --id systemd --no-sync -- sudo systemctl poweroff"
    )));
    let gone = host.sh(
        "for i in $(seq 120); do crabbox list --provider firecracker | grep -q systemd || exit 0; sleep 0.5; done; exit 1",
    );
    drop(gone.exits(0));
    drop(host.crabbox(&format!("stop {id}")).exits(4));
    assert_nothing_left(&before, &host.residue());
}
