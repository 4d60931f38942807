//! Drives that outlive their leases, on pretended hosts with a fake VMM: who has one, the effect of a crash
//! or a full disk, and that no teardown removes one. `lease.rs` checks on real microVMs that a guest's data
//! is read again.

use crabbox_e2e::{Host, KILL_BOTH, OURS, assert_nothing_left};

/// The image of the one volume in the store.
const IMAGE: &str = "/srv/.config/crabbox/state/firecracker/volumes/*/image.ext4";

/// Configures a small volume in the user's own configuration, which is optional unless a flag says otherwise.
const CONFIGURE: &str = "mkdir -p /srv/.config/crabbox && chmod 700 /srv/.config/crabbox && \
     echo 'cache: {volumes: [{name: deps, key: k1, path: /data, sizeGB: 1}]}' > /srv/.config/crabbox/config.yaml && \
     chmod 600 /srv/.config/crabbox/config.yaml";

/// The flag that makes it required.
const REQUIRED: &str = "--cache-volume deps=k1:/data";

/// A host with one of our images and a configured volume, which has been made and contains a file.
fn host() -> Host {
    let host = Host::pretend_ours();
    host.script(r#"{"sshd": true, "ready": true, "settles": true, "trace": "/srv/trace"}"#);
    drop(host.sh(CONFIGURE).exits(0));
    drop(host.crabbox(&format!("warmup {OURS} --slug first")).exits(0));
    drop(host.crabbox("stop first").exits(0));
    let written = "echo precious > /tmp/precious && debugfs -w -R 'write /tmp/precious kept'";
    drop(host.sh(&format!("{written} {IMAGE}")).exits(0));
    host
}

/// The volume's entry in `cache volumes`.
#[track_caller]
fn volume(host: &Host) -> serde_json::Value {
    let listed = host.crabbox("cache volumes --json").exits(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    listed[0].clone()
}

/// Fails unless the volume has no lease, only root has access, and it contains its file.
#[track_caller]
fn is_free_and_whole(host: &Host, when: &str) {
    let one = volume(host);
    assert!(
        one["stored"] == true && one.get("lease").is_none(),
        "{when}: {one}"
    );
    let facts = host.sh(&format!(
        "stat -c '%u %a %h' {IMAGE} && debugfs -R 'cat kept' {IMAGE} 2>/dev/null && ls $(dirname {IMAGE})"
    ));
    assert_eq!(
        facts.stdout, "0 600 1\nprecious\nabout.json\nimage.ext4\n",
        "{when}: {facts:?}"
    );
}

#[test]
fn one_lease_at_a_time_has_a_volume() {
    let host = host();
    let before = host.settled();
    is_free_and_whole(&host, "at first");
    let has = host
        .crabbox(&format!("warmup {OURS} --slug has --timing-json {REQUIRED}"))
        .exits(0);
    assert!(
        has.stderr.contains("\"leaseSource\":\"cold\"")
            && has.stderr.contains("\"coldReason\":\"it has cache volumes"),
        "{has:?}"
    );
    let id = has.lease();
    assert_eq!(volume(&host)["lease"], id.as_str());
    // It belongs to its VMM, with a hard link in the VMM's directory.
    let given = host.sh(&format!("stat -c '%u %h' {IMAGE}")).exits(0).stdout;
    assert!(given.starts_with("19") && given.ends_with(" 2\n"), "{given}");

    let refused = host
        .crabbox(&format!("warmup {OURS} --slug second {REQUIRED}"))
        .exits(5);
    assert!(
        refused.stderr.contains("required cache volume \"deps\"")
            && refused.stderr.contains(&format!("lease {id} has it")),
        "{refused:?}"
    );
    let without = host.crabbox(&format!("warmup {OURS} --slug without")).exits(0);
    assert!(
        without.stderr.contains(&format!(
            "the lease is without cache volume \"deps\": lease {id} has it"
        )),
        "{without:?}"
    );
    let in_one = |lease: &str| host.crabbox(&format!("run --id {lease} {REQUIRED} --no-sync -- true"));
    drop(in_one("has").exits(0));
    let lacks = in_one("without").exits(2);
    assert!(lacks.stderr.contains("has no cache volume \"deps\""), "{lacks:?}");
    drop(host.crabbox("run --id without --no-sync -- true").exits(0));
    drop(host.crabbox("stop without").exits(0));
    assert_eq!(
        volume(&host)["lease"],
        id.as_str(),
        "that was no end of its lease"
    );
    assert_eq!(
        host.sh("grep -c SETTLE /srv/trace").stdout,
        "1\n",
        "the first lease's only"
    );

    let stays = host.crabbox("cache volumes --remove deps --force").exits(5);
    assert!(
        stays.stderr.contains(&format!("lease {id} has it"))
            && stays.stderr.contains(&format!("crabbox stop {id}")),
        "{stays:?}"
    );
    drop(host.crabbox("stop has").exits(0));
    assert_eq!(
        host.sh("grep -c SETTLE /srv/trace").stdout,
        "2\n",
        "its guest was asked"
    );
    is_free_and_whole(&host, "after a stop");
    assert_nothing_left(&before, &host.settled());

    drop(host.crabbox("cache volumes --remove deps").exits(2));
    is_free_and_whole(&host, "without --force");
    drop(host.crabbox("cache volumes --remove deps --force").exits(0));
    let gone = volume(&host);
    assert!(gone["stored"] == false && gone["path"] == "/data", "{gone}");
    drop(host.crabbox("cache volumes --remove deps --force").exits(4));
    assert_eq!(
        host.sh("ls /srv/.config/crabbox/state/firecracker/volumes")
            .exits(0)
            .stdout,
        ""
    );
}

#[test]
fn a_lease_that_cannot_have_volumes_says_so() {
    let host = host();
    let before = host.settled();
    let foreign = crabbox_e2e::PRETEND;
    let refused = host.crabbox(&format!("warmup {foreign} {REQUIRED}")).exits(2);
    assert!(
        refused.stderr.contains("only crabbox's own images have volumes"),
        "{refused:?}"
    );
    let without = host.crabbox(&format!("warmup {foreign} --slug foreign")).exits(0);
    assert!(
        without
            .stderr
            .contains("is without cache volume \"deps\": only crabbox's own images"),
        "{without:?}"
    );
    drop(host.crabbox("stop foreign").exits(0));
    // A repository cannot add one, nor remove one, either.
    let repository = host
        .sh(&format!(
            "mkdir /srv/repo && cd /srv/repo && git init -q . && echo 'cache: {{volumes: []}}' > crabbox.yaml && crabbox warmup {OURS} --slug own"
        ))
        .exits(0);
    assert!(
        repository
            .stderr
            .contains("cache.volumes is ignored: a repository file must not"),
        "{repository:?}"
    );
    assert_eq!(volume(&host)["lease"], repository.lease().as_str());
    drop(host.crabbox("stop own").exits(0));
    // It is not made on a disk that it could fill.
    let full = host
        .sh(&format!("CRABBOX_FIRECRACKER_RESERVE_DISK_MIB=$(df -m --output=avail /srv | tail -n 1 | awk '{{ print $1 - 700 }}') crabbox warmup {OURS} {REQUIRED}"))
        .exits(5);
    assert!(
        full.stderr
            .contains("no room for cache volume \"deps\" (insufficient_disk)"),
        "{full:?}"
    );
    drop(host.sh("rm -r /srv/repo").exits(0));
    is_free_and_whole(&host, "at the end");
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn a_supervisor_that_dies_at_any_moment_leaves_the_volume_whole_and_free() {
    let host = host();
    let before = host.settled();
    // The first lease that gets far enough has to grow it.
    drop(
        host.sh("sed -i 's/sizeGB: 1/sizeGB: 2/' /srv/.config/crabbox/config.yaml")
            .exits(0),
    );
    for point in [
        "volume:begun",
        "volume-held:done",
        "volume-grown:done",
        "volume-whole:done",
        "volume:made",
        "volume:done",
        "jail:made",
        "vmm:done",
        "claim:begun",
    ] {
        // The command line takes back what its supervisor leaves.
        let died = host.sh(&format!(
            "CRABBOX_TEST_FAILPOINT=supervisor:{point} crabbox warmup {OURS} --slug crash {REQUIRED}"
        ));
        assert_eq!(died.code, Some(5), "{point}: {died:?}");
        is_free_and_whole(&host, point);
        assert_nothing_left(&before, &host.settled());
        // And a cleanup takes back what both leave.
        let (step, phase) = point.split_once(':').unwrap();
        let options = format!("{OURS} {REQUIRED}");
        host.kill_at(&format!("{step}:{phase}"), &options, KILL_BOTH);
        drop(host.crabbox("cleanup --provider firecracker").exits(0));
        is_free_and_whole(&host, &format!("{point} of both"));
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn a_stop_that_dies_at_any_moment_is_finished_by_cleanup_and_the_volume_stays() {
    let host = host();
    let before = host.settled();
    for step in ["vmm", "jail", "volume"] {
        for phase in ["begun", "done"] {
            drop(
                host.crabbox(&format!("warmup {OURS} --slug half {REQUIRED}"))
                    .exits(0),
            );
            let died = host.sh(&format!(
                "kill -9 $(pgrep -f '[_]_supervise'); CRABBOX_TEST_FAILPOINT=cli:undo-{step}:{phase} crabbox stop half; code=$?; \
                 pkill -9 -f '[_]_supervise'; exit $code"
            ));
            assert_eq!(died.code, Some(137), "{step}:{phase}: {died:?}");
            drop(host.crabbox("cleanup --provider firecracker"));
            is_free_and_whole(&host, &format!("{step}:{phase}"));
            assert_nothing_left(&before, &host.settled());
        }
    }
}

#[test]
fn a_guest_that_does_not_answer_and_a_machine_that_dies_cost_no_volume() {
    let host = host();
    let before = host.settled();
    for (settles, end) in [
        (false, "crabbox stop mute"),
        // The supervisor of a machine that died may have ended the lease first.
        (
            true,
            "pkill -9 -f '[f]irecracker --id' || exit 99; crabbox stop mute || [ $? = 4 ]",
        ),
    ] {
        host.script(&format!(
            r#"{{"sshd": true, "ready": true, "settles": {settles}}}"#
        ));
        drop(
            host.crabbox(&format!("warmup {OURS} --slug mute {REQUIRED}"))
                .exits(0),
        );
        drop(host.sh(end).exits(0));
        host.until("! pgrep -f '[_]_supervise' >/dev/null");
        is_free_and_whole(&host, end);
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn a_volume_that_the_guest_cannot_mount_is_told() {
    let host = host();
    let before = host.settled();
    host.script(r#"{"sshd": true, "ready": true, "settles": true, "not_mounted": [0]}"#);
    let refused = host
        .crabbox(&format!("warmup {OURS} --slug refused {REQUIRED}"))
        .exits(2);
    assert!(
        refused.stderr.contains("required cache volume \"deps\"")
            && refused.stderr.contains("the guest could not mount it"),
        "{refused:?}"
    );
    is_free_and_whole(&host, "it was required");
    let without = host.crabbox(&format!("warmup {OURS} --slug without")).exits(0);
    assert!(
        without
            .stderr
            .contains("is without cache volume \"deps\": the guest could not mount it"),
        "{without:?}"
    );
    let lacks = host
        .crabbox(&format!("run --id without --no-sync {REQUIRED} -- true"))
        .exits(2);
    assert!(lacks.stderr.contains("\"deps\""), "{lacks:?}");
    drop(host.crabbox("stop without").exits(0));
    is_free_and_whole(&host, "it was not");
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn a_directory_that_is_kept_keeps_no_second_name_of_a_volume() {
    let host = host();
    let before = host.settled();
    for jail in ["", "--firecracker-jailer none"] {
        let lease = host
            .crabbox(&format!(
                "warmup {OURS} --slug kept {REQUIRED} --firecracker-delete-on-release=false {jail}"
            ))
            .exits(0)
            .lease();
        drop(host.crabbox("stop kept").exits(0));
        is_free_and_whole(&host, "its directory is kept");
        drop(
            host.crabbox(&format!("stop --firecracker-delete-on-release=true {lease}"))
                .exits(0),
        );
        is_free_and_whole(&host, "its directory is gone");
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn a_disk_that_fills_while_a_volume_is_made_leaves_nothing_of_it() {
    let host = Host::pretend_ours();
    drop(host.sh(CONFIGURE).exits(0));
    drop(host.crabbox(&format!("warmup {OURS} --slug first")).exits(0));
    drop(host.crabbox("stop first").exits(0));
    drop(host.sh("mkdir -p /srv/small").exits(0));
    let mut refused = 0;
    // Every file takes an inode: with one more each time, each of them fails once.
    for inodes in 2..200 {
        drop(
            host.sh(&format!(
                "mount -t tmpfs -o size=4g,mode=700,nr_inodes={inodes} tmpfs /srv/small"
            ))
            .exits(0),
        );
        let before = host.settled();
        let there = "export XDG_STATE_HOME=/srv/small CRABBOX_FIRECRACKER_RESERVE_DISK_MIB=0;";
        let done = host.sh(&format!("{there} crabbox warmup {OURS} --slug full {REQUIRED}"));
        if done.code == Some(0) {
            drop(host.sh(&format!("{there} crabbox stop full")).exits(0));
        } else {
            refused += 1;
            let told = done.stderr.to_lowercase();
            assert!(
                told.contains("no space left") && !told.contains("panicked"),
                "{inodes} inodes: {done:?}"
            );
            let left = host.sh(&format!(
                "{there} crabbox cleanup --provider firecracker >/dev/null 2>&1; \
                 ls -A /srv/small/crabbox/firecracker/leases 2>/dev/null; ls /srv/small/crabbox/firecracker/volumes/*/ 2>/dev/null; \
                 crabbox cache volumes --json | grep '\"lease\"'"
            ));
            // Either it is complete and without a lease, or it does not exist.
            assert!(
                matches!(left.stdout.as_str(), "" | "about.json\nimage.ext4\n"),
                "{inodes} inodes: {left:?} after {done:?}"
            );
        }
        assert_nothing_left(&before, &host.settled());
        drop(host.sh("umount /srv/small").exits(0));
        if done.code == Some(0) {
            assert!(refused > 5, "it never ran out of inodes");
            return;
        }
    }
    panic!("200 inodes are not enough for a lease");
}
