//! Unclaimed pool members give way: which of them end for a requested lease, and which do not.

use crabbox_e2e::{Host, OURS, assert_nothing_left};

use super::{fill, go_on, held, members, quiet};

/// Settings that allow only one lease.
const ONE: [&str; 2] = [
    "CRABBOX_FIRECRACKER_MAX_LEASES=1",
    "CRABBOX_FIRECRACKER_UID_COUNT=1",
];

/// `pool list` shows leases by their ids, and `pool fill` by their age.
fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[test]
fn those_that_wait_make_room_the_oldest_first_before_somebody_is_refused() {
    let host = Host::pretend_ours();
    let before = host.settled();
    for (limit, why) in [("MAX_LEASES=2", "(lease_limit)"), ("UID_COUNT=2", "all 2 uids")] {
        let waits = fill(&host, 2);
        let lease = host
            .sh(&format!(
                "CRABBOX_FIRECRACKER_{limit} crabbox warmup {OURS} --slug one"
            ))
            .exits(0);
        assert_eq!(members(&host), waits[1..], "{limit}: {lease:?}");
        // A pool member does not give way to another pool member.
        let refused = host.sh(&format!(
            "CRABBOX_FIRECRACKER_{limit} crabbox pool fill {OURS} --firecracker-pool 2"
        ));
        assert!(
            matches!(refused.code, Some(2 | 5))
                && refused.stderr.contains("only 1 of 2")
                && refused.stderr.contains(why),
            "{limit}: {refused:?}"
        );
        assert_eq!(members(&host), waits[1..], "{limit}");
        drop(
            host.sh(&format!(
                "CRABBOX_FIRECRACKER_{limit} crabbox warmup {OURS} --slug two"
            ))
            .exits(0),
        );
        assert_eq!(members(&host), [""; 0], "{limit}");
        let refused = host.sh(&format!(
            "CRABBOX_FIRECRACKER_{limit} crabbox warmup {OURS} --slug three"
        ));
        assert!(
            matches!(refused.code, Some(2 | 5)) && refused.stderr.contains(why),
            "{limit}: {refused:?}"
        );
        drop(host.crabbox("stop one").exits(0));
        drop(host.crabbox("stop two").exits(0));
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn none_ends_for_a_lease_that_is_refused_all_the_same() {
    let host = Host::pretend_ours();
    let before = host.settled();
    drop(host.crabbox(&format!("warmup {OURS} --slug mine")).exits(0));
    let waits = fill(&host, 2);
    for (limit, more, why) in [
        // Claimed leases use up the limit.
        (ONE[0], "", "(lease_limit)"),
        (ONE[1], "", "all 1 uids"),
        // More memory than all members together could free.
        ("A=b", "--firecracker-memory-mib 16777216", "insufficient_memory"),
    ] {
        let refused = host.sh(&format!("{limit} crabbox warmup {OURS} {more} --slug one"));
        assert!(
            matches!(refused.code, Some(2 | 5)) && refused.stderr.contains(why),
            "{limit} {more}: {refused:?}"
        );
        assert_eq!(sorted(members(&host)), sorted(waits.clone()), "{limit} {more}");
    }
    drop(host.crabbox("stop mine").exits(0));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn no_more_end_once_whoever_wanted_the_room_is_interrupted() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let waits = fill(&host, 3);
    // All three would have to go; the supervisor is stopped while it ends the first.
    held(&host, ONE[0], "undo-vmm:begun", &format!("{OURS} --slug one"));
    drop(host.sh("pkill -INT -x -f 'crabbox warmup .*'").exits(0));
    let code = go_on(&host);
    assert_ne!(code, "0");
    assert_eq!(sorted(members(&host)), sorted(waits[1..].to_vec()));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn one_that_is_being_made_gives_way() {
    let host = Host::pretend_ours();
    let before = host.settled();
    for limit in ONE {
        // Its guest never gets ready, so making it would take the whole launch timeout.
        host.script(r#"{"sshd": true}"#);
        drop(
            host.sh(&format!(
                "rm -f /tmp/fill.rc; (crabbox pool fill {OURS} --firecracker-pool 1 > /tmp/fill 2>&1; echo $? > /tmp/fill.rc) \
                 < /dev/null > /dev/null 2>&1 &"
            ))
            .exits(0),
        );
        host.until("grep -qs vmm /srv/.config/crabbox/state/firecracker/leases/*/journal.jsonl && pgrep -f '[f]irecracker --id' >/dev/null");
        host.script(r#"{"sshd": true, "ready": true}"#);
        let lease = host
            .sh(&format!("{limit} crabbox warmup {OURS} --slug one"))
            .exits(0);
        host.until("test -s /tmp/fill.rc");
        let filled = host.sh("cat /tmp/fill; exit $(cat /tmp/fill.rc)").exits(5);
        assert!(
            filled
                .stdout
                .contains("the lease was ended to make room for a requested one"),
            "{limit}: {filled:?}, {lease:?}"
        );
        assert_eq!(members(&host), [""; 0], "{limit}");
        drop(host.crabbox("stop one").exits(0));
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn one_that_cannot_be_entered_is_gone_before_another_lease_is_asked_for() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let waits = fill(&host, 1);
    drop(host.sh("pkill -9 -x sshd").exits(0));
    let taken = host
        .sh(&format!(
            "{} crabbox warmup {OURS} --firecracker-pool 1 --firecracker-launch-timeout 12s --slug one --timing-json --verbose",
            ONE[0]
        ))
        .exits(0);
    let told = format!("not taken from the pool: lease={}: ", waits[0]);
    assert!(
        taken.stderr.contains("\"leaseSource\":\"cold\"") && taken.stderr.contains(&told),
        "{taken:?}"
    );
    quiet(&host);
    drop(host.crabbox("stop one").exits(0));
    assert_nothing_left(&before, &host.settled());
}
