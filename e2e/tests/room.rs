//! A full host, on pretended hosts with a fake VMM: a lease that does not fit is refused before anything is
//! made, and a disk that fills up at any moment leaves nothing behind.

use crabbox_e2e::{Host, PRETEND, assert_nothing_left};

/// Makes one lease and gives it back, so that the permanent traces of a used host exist.
fn used(host: &Host) -> Vec<String> {
    drop(host.crabbox(&format!("warmup {PRETEND} --slug first")).exits(0));
    drop(host.crabbox("stop first").exits(0));
    host.residue()
}

#[test]
fn a_lease_that_does_not_fit_is_refused_by_name_before_anything_is_made() {
    let host = Host::pretend();
    let before = used(&host);
    for (setting, reason) in [
        ("RESERVE_MEMORY_MIB=16000000", "insufficient_memory"),
        ("RESERVE_DISK_MIB=16000000", "insufficient_disk"),
    ] {
        let refused = host
            .sh(&format!("CRABBOX_FIRECRACKER_{setting} crabbox warmup {PRETEND}"))
            .exits(5);
        assert!(
            refused
                .stderr
                .contains(&format!("no room for another lease ({reason})"))
                && refused.stderr.contains("hint: stop a lease"),
            "{refused:?}"
        );
        assert_nothing_left(&before, &host.residue());
    }
    drop(host.crabbox(&format!("warmup {PRETEND} --slug one")).exits(0));
    let refused = host
        .sh(&format!(
            "CRABBOX_FIRECRACKER_MAX_LEASES=1 crabbox warmup {PRETEND}"
        ))
        .exits(5);
    assert!(refused.stderr.contains("(lease_limit): 1 of 1"), "{refused:?}");
    drop(host.crabbox("stop one").exits(0));
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn four_at_once_with_memory_for_two_are_two() {
    let host = Host::pretend();
    let before = used(&host);
    // Three and a half leases would fit if each only considered what the others use so far.
    let done = host.sh(&format!(
        "reserve=$(awk '/MemAvailable/ {{ print int($2 / 1024) - 5 * (2048 + 128) / 2 }}' /proc/meminfo); \
         for i in 1 2 3 4; do (CRABBOX_FIRECRACKER_RESERVE_MEMORY_MIB=$reserve crabbox warmup {PRETEND} --slug m$i --firecracker-memory-mib 2048 \
         >/tmp/$i.out 2>&1; echo code=$?) & done; wait; cat /tmp/?.out; rm /tmp/?.out; for i in 1 2 3 4; do crabbox stop m$i; done"
    ));
    assert_eq!(done.stdout.matches("code=0\n").count(), 2, "{done:?}");
    assert_eq!(done.stdout.matches("code=5\n").count(), 2, "{done:?}");
    assert_eq!(done.stdout.matches("insufficient_memory").count(), 2, "{done:?}");
    assert_nothing_left(&before, &host.residue());
}

#[test]
fn a_disk_that_fills_at_any_moment_leaves_nothing() {
    let host = Host::pretend();
    drop(host.sh("mkdir -p /srv/small").exits(0));
    let mut refused = 0;
    // Every file of a lease takes an inode: with one more each time, each of them fails once.
    for inodes in 2..200 {
        drop(
            host.sh(&format!(
                "mount -t tmpfs -o size=1g,mode=700,nr_inodes={inodes} tmpfs /srv/small"
            ))
            .exits(0),
        );
        let before = host.residue();
        let done = host.sh(&format!(
            "export XDG_STATE_HOME=/srv/small; crabbox warmup {PRETEND} --slug full --firecracker-network nat"
        ));
        let told = done.stderr.to_lowercase();
        if done.code == Some(0) {
            drop(host.sh("XDG_STATE_HOME=/srv/small crabbox stop full").exits(0));
        } else {
            refused += 1;
            assert!(
                told.contains("no space left") && !told.contains("panicked"),
                "{inodes} inodes: {done:?}"
            );
            let left = host.sh(
                "export XDG_STATE_HOME=/srv/small; crabbox cleanup --provider firecracker >/dev/null 2>&1; \
                 ls -A /srv/small/crabbox/firecracker/leases 2>/dev/null",
            );
            assert_eq!(left.stdout, "", "{inodes} inodes: {done:?}");
        }
        assert_nothing_left(&before, &host.residue());
        drop(host.sh("umount /srv/small").exits(0));
        if done.code == Some(0) {
            assert!(refused > 5, "it never ran out of inodes");
            return;
        }
    }
    panic!("200 inodes are not enough for a lease");
}

#[test]
fn more_than_a_lease_can_hold_does_not_come_out_of_it() {
    let host = Host::pretend();
    let before = used(&host);
    // A fake guest shares the host's files, so it has more than a disk of 64 MiB and a memory of 128 MiB
    // could hold.
    drop(
        host.sh(&format!(
            "mkdir /srv/tree && cd /srv/tree && git init -q . && echo x > f && git add f && git commit -qm f && \
             crabbox warmup {PRETEND} --slug held && \
             crabbox run --id held -- pwd > /srv/workdir && yes | head -c 400M > \"$(cat /srv/workdir)/large\""
        ))
        .exits(0),
    );
    let inside = |command: &str| host.sh(&format!("cd /srv/tree && crabbox {command}"));
    for command in [
        "run --id held --no-sync --download large=got -- true",
        "cp --id held \"SANDBOX:$(cat /srv/workdir)/large\" got",
        "pull --id held",
    ] {
        let refused = inside(command);
        assert!(
            refused.code != Some(0) && refused.stderr.contains("that the lease can hold"),
            "{command}: {refused:?}"
        );
        assert_eq!(host.sh("ls /srv/tree").exits(0).stdout, "f\n", "{command}");
    }
    drop(inside("run --id held --no-sync --download f=got -- true").exits(0));
    assert_eq!(host.sh("cat /srv/tree/got").exits(0).stdout, "x\n");
    drop(host.crabbox("stop held").exits(0));
    drop(host.sh("rm -r /srv/tree /srv/workdir").exits(0));
    assert_nothing_left(&before, &host.residue());
}
