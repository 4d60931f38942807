//! Somebody's cloud-init image on a real microVM: a Debian with its own kernel, systemd and cloud-init, which knows nothing of crabbox.

use crabbox_e2e::{Host, assert_nothing_left};

/// A lease of it. It is a minute of Python on an emulated processor.
const CLOUD: &str = "--provider firecracker --firecracker-image cloud --firecracker-cpus 1 --firecracker-memory-mib 512 \
     --firecracker-disk-mib 1500 --firecracker-launch-timeout 10m";

#[test]
fn a_cloud_init_image_is_leased_entered_and_given_back() {
    let host = Host::find();
    let _alone = host.alone();
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

    // The seed's contract: user, sudo, host name, address, way out, name server, work root; and the size that was asked for.
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
