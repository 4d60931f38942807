//! What a VMM may write and leave, with a jail and without one.

use super::*;

#[test]
fn a_jailed_vmm_writes_no_file_longer_than_its_disk() {
    let host = Host::pretend();
    lease(&host, "bounded", "");
    let limits = host
        .sh("cat /proc/$(pgrep -f '^/srv/fake/firecracker --id')/limits")
        .exits(0);
    let limit = |name: &str| {
        let line = limits.stdout.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line[name.len()..].split_whitespace().next())
            .map(str::to_owned)
    };
    // PRETEND's disk has 64 MiB.
    assert_eq!(limit("Max file size").as_deref(), Some("67108864"), "{limits:?}");
    assert_eq!(limit("Max open files").as_deref(), Some("2048"), "{limits:?}");
    drop(host.crabbox("stop bounded").exits(0));
}

#[test]
fn a_disk_that_is_to_be_kept_outlives_its_lease_in_a_jail_and_without_one() {
    let host = Host::pretend();
    lease(&host, "first", "");
    drop(host.crabbox("stop first").exits(0));
    let before = host.residue();
    let disk = "find /srv/.config/crabbox/state/firecracker/leases -name disk.ext4 -size +0";
    for jail in ["", "--firecracker-jailer none"] {
        lease(
            &host,
            "kept",
            &format!("--firecracker-delete-on-release=false {jail}"),
        );
        let path = host.sh(disk).exits(0).stdout;
        assert_eq!(path.lines().count(), 1, "{path}");
        let written = host.sh(&format!(
            "echo mine | dd of={} conv=notrunc status=none",
            path.trim_end()
        ));
        drop(written.exits(0));
        for _ in 0..2 {
            let stopped = host.crabbox("stop kept").exits(0);
            assert!(stopped.stderr.contains("kept lease="), "{stopped:?}");
            let there = host.sh(&format!("head -c 5 {}", path.trim_end())).exits(0);
            assert_eq!(there.stdout, "mine\n", "{jail}: {stopped:?}");
        }
        assert_eq!(
            host.crabbox("cleanup --provider firecracker")
                .exits(0)
                .stdout
                .matches("remove firecracker")
                .count(),
            0
        );
        assert_eq!(host.sh(disk).exits(0).stdout, path);
        drop(host.crabbox("stop --firecracker-delete-on-release kept").exits(0));
        assert_nothing_left(&before, &comes_back_to(&host, &before));
    }
}

#[test]
fn the_last_words_of_a_vmm_are_its_log_and_not_what_it_links_there() {
    let host = Host::pretend();
    let evil = PRETEND.replace("/srv/fake/firecracker", "/srv/evil/firecracker");
    drop(
        host.sh("mkdir /srv/evil && cp /srv/fake/jailer /srv/evil/ && echo of-the-host > /srv/secret")
            .exits(0),
    );
    // The VMM owns its directory, so it can replace its log by anything.
    for (writes, shown) in [
        ("echo of-the-vmm > firecracker.log", true),
        ("ln -sf /srv/secret firecracker.log", false),
    ] {
        let failed = host.sh(&format!(
            "printf '#!/bin/sh\\n{writes}\\nexit 1\\n' > /srv/evil/firecracker && chmod 755 /srv/evil/firecracker && \
             crabbox warmup {evil} --slug evil"
        ));
        assert_eq!(failed.code, Some(5), "{failed:?}");
        assert_eq!(failed.stderr.contains("of-the-vmm"), shown, "{failed:?}");
        assert!(!failed.stderr.contains("of-the-host"), "{failed:?}");
    }
}

#[test]
fn root_leases_without_a_jailer_only_when_none_was_said() {
    let host = Host::pretend();
    drop(host.sh("mv /srv/fake/jailer /srv/jailer.away").exits(0));
    let before = host.residue();
    let refused = host.crabbox(&format!("warmup {PRETEND} --slug bare")).exits(2);
    assert!(
        refused.stderr.contains(
            "there is no jailer in the directory of /srv/fake/firecracker, so Firecracker would run as root"
        ) && refused.stderr.contains("--firecracker-jailer none"),
        "{refused:?}"
    );
    assert_nothing_left(&before, &host.residue());
    // On the command line or in the host's own configuration, it is a deliberate choice.
    lease(&host, "flag", "--firecracker-jailer none");
    drop(
        host.sh(&format!(
            "CRABBOX_FIRECRACKER_JAILER=none crabbox warmup {PRETEND} --slug variable"
        ))
        .exits(0),
    );
    // A repository cannot set it.
    let asked = host.sh(&format!(
        "mkdir /srv/repo && cd /srv/repo && git init -q && echo 'firecracker: {{jailer: none}}' > crabbox.yaml && crabbox warmup {PRETEND} --slug asked"
    ));
    assert_eq!(asked.code, Some(2), "{asked:?}");
    for slug in ["flag", "variable"] {
        drop(host.crabbox(&format!("stop {slug}")).exits(0));
    }
    assert_nothing_left(&before, &comes_back_to(&host, &before));
}
