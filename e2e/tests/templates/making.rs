//! Making a template when the disk fills up, or when the process making it dies at the worst moment.

use crabbox_e2e::{Host, OURS, assert_nothing_left};

use super::{TEMPLATES, leased};

/// The messages about a full disk, from the system or from our own check.
const FULL: &[&str] = &["No space left", "0 MiB are free"];
const STATE: &str = "/srv/.config/crabbox/state";
/// A host whose leases and templates are on a small file system.
#[track_caller]
fn small() -> Host {
    let host = Host::pretend();
    drop(
        host.sh(&format!(
            "mkdir -p -m 700 /srv/.config/crabbox {STATE} && mount -t tmpfs -o size=640M,mode=700 tmpfs {STATE}"
        ))
        .exits(0),
    );
    // Allow it to be filled to the last block.
    drop(
        host.sh(
            "umask 077; printf 'firecracker:\\n  reserveDiskMiB: 0\\n' > /srv/.config/crabbox/config.yaml",
        )
        .exits(0),
    );
    host.build_image("default", "word");
    host
}

/// Makes a template, and fills the disk except for so many MiB while its maker is stopped at `point`; returns
/// its output after checking that it failed. Frees the disk again.
#[track_caller]
fn crowded(host: &Host, point: &str, free_mib: u32) -> String {
    drop(
        host.sh(&format!(
            "rm -f /tmp/made.rc; (CRABBOX_TEST_FAILPOINT={point}:wait crabbox image warm {OURS} > /tmp/made 2>&1; \
             echo $? > /tmp/made.rc) < /dev/null > /dev/null 2>&1 &"
        ))
        .exits(0),
    );
    host.until("pgrep -r T -f '[_]_supervise|crabbox image [w]arm' >/dev/null || test -s /tmp/made.rc");
    drop(
        host.sh(&format!(
            "free=$(($(stat -f -c '%f * %S' {STATE}) / 1048576)); \
             dd if=/dev/zero of={STATE}/filler bs=1M count=$((free - {free_mib})) status=none; \
             test {free_mib} != 0 || dd if=/dev/zero of={STATE}/rest bs=4k status=none 2>/dev/null; true"
        ))
        .exits(0),
    );
    host.until("pkill -CONT -f '[_]_supervise|crabbox image [w]arm'; test -s /tmp/made.rc");
    let made = host
        .sh(&format!(
            "rm -f {STATE}/filler {STATE}/rest; cat /tmp/made; test $(cat /tmp/made.rc) != 0"
        ))
        .exits(0);
    made.stdout
}

#[test]
fn a_disk_that_fills_up_costs_the_template_and_nothing_else() {
    let host = small();
    let empty = host.settled();
    for (point, free_mib, said) in [
        ("supervisor:jail:begun", 0, FULL),
        ("supervisor:mount:done", 0, FULL),
        ("supervisor:vmm:begun", 0, FULL),
        // There is room for what the fake writes, but not for a machine's memory.
        (
            "supervisor:vmm:done",
            100,
            &["no room for a template (insufficient_disk)"],
        ),
        ("cli:seal:begun", 0, FULL),
    ] {
        let told = crowded(&host, point, free_mib);
        assert!(said.iter().any(|said| told.contains(said)), "{point}: {told}");
        drop(host.crabbox("cleanup --provider firecracker").exits(0));
        let mut after = host.settled();
        after.retain(|line| !line.starts_with(&format!("file {TEMPLATES}")));
        assert_nothing_left(&empty, &after);
        let left = host.sh(&format!("ls -A {TEMPLATES}")).exits(0).stdout;
        assert!(!left.contains("making"), "{point}: {left}");
    }
    assert_eq!(leased(&host).0, "cold");
}

#[test]
fn a_maker_that_dies_around_the_rename_leaves_a_whole_template_or_none() {
    let host = Host::pretend_ours();
    let empty = host.settled();
    for (point, source) in [
        ("cli:seal:begun", "cold"),
        ("cli:publish:begun", "cold"),
        ("cli:publish:done", "restored"),
    ] {
        let killed = host.sh(&format!(
            "CRABBOX_TEST_FAILPOINT={point} crabbox image warm {OURS}"
        ));
        assert_eq!(killed.code, Some(137), "{point}: {killed:?}");
        drop(host.crabbox("cleanup --provider firecracker").exits(0));
        let left = host
            .sh(&format!("ls -A {TEMPLATES} | grep -c '^[.0-9a-f]*$'"))
            .stdout;
        assert_eq!(left.trim(), if source == "cold" { "0" } else { "1" }, "{point}");
        let mut after = host.settled();
        after.retain(|line| !line.starts_with(&format!("file {TEMPLATES}")));
        assert_nothing_left(&empty, &after);
        assert_eq!(leased(&host).0, source, "{point}");
    }
}
