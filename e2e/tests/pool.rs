//! Leases made ahead of their use, on pretended hosts with a fake VMM: who gets one, what becomes of the
//! others, and what killed processes leave. `warm.rs` shows on a real microVM that one is a lease like any
//! other.

use crabbox_e2e::{Host, KILL_BOTH, OURS, assert_nothing_left};

#[path = "pool/orders.rs"]
mod orders;
#[path = "pool/room.rs"]
mod room;

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The ids of the leases that wait.
#[track_caller]
fn members(host: &Host) -> Vec<String> {
    let listed = host
        .crabbox("pool list --provider firecracker --json")
        .exits(0)
        .json();
    let waits = |lease: &&serde_json::Value| lease["status"] == "pooled";
    let id = |lease: &serde_json::Value| text(&lease["labels"]["lease"]);
    listed
        .as_array()
        .into_iter()
        .flatten()
        .filter(waits)
        .map(id)
        .collect()
}

#[test]
fn a_lease_is_made_ahead_taken_and_replaced() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let filled = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool 2 --json"))
        .exits(0)
        .json();
    assert_eq!(filled["made"].as_array().unwrap().len(), 2, "{filled}");
    assert_eq!(members(&host).len(), 2);
    // Unclaimed, so they are only listed on request.
    let listed = host.crabbox("list --provider firecracker").exits(0);
    assert_eq!(listed.stdout, "", "{listed:?}");
    let all = host.crabbox("list --provider firecracker --all").exits(0);
    assert_eq!(all.stdout.matches(" pool=").count(), 2, "{all:?}");
    let kept = host.crabbox("cleanup --provider firecracker").exits(0);
    assert!(!kept.stdout.contains("remove"), "{kept:?}");
    let first = members(&host);
    let warmup = host
        .crabbox(&format!(
            "warmup {OURS} --firecracker-pool 2 --slug mine --ttl 1h --idle-timeout 10m --timing-json"
        ))
        .exits(0);
    assert!(warmup.stderr.contains("\"leaseSource\":\"pool\""), "{warmup:?}");
    let lease = warmup.lease();
    assert!(first.contains(&lease), "{lease} {first:?}");
    assert!(warmup.stderr.contains("\"leaseStages\":["), "{warmup:?}");
    // Its time to live began when it was taken.
    let labels = &host.crabbox("inspect --id mine --json").exits(0).json()["labels"];
    assert_eq!(
        (&labels["ttl_secs"], &labels["idle_timeout_secs"]),
        (&"3600".into(), &"600".into()),
        "{labels}"
    );
    let ran = host.crabbox("run --id mine --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");
    host.until("test $(crabbox pool list --provider firecracker | grep -c ' pooled ') = 2");
    assert!(!members(&host).contains(&lease));
    drop(host.crabbox("stop mine").exits(0));
    let drained = host.crabbox("pool drain --json").exits(0).json();
    assert_eq!(drained["drained"].as_array().unwrap().len(), 2, "{drained}");
    assert_nothing_left(&before, &host.settled());
}

/// Fills the pool with `count` leases, and returns the ids of all that wait, the oldest first.
#[track_caller]
fn fill(host: &Host, count: usize) -> Vec<String> {
    let filled = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool {count} --json"))
        .exits(0)
        .json();
    let members = filled["members"].as_array().into_iter().flatten();
    members.map(|member| text(&member["leaseId"])).collect()
}

/// Starts a warmup with `options` under these `variables`, and waits until its supervisor, or that of the
/// pool member which it takes, is stopped at `point` (`step:phase`).
#[track_caller]
fn held(host: &Host, variables: &str, point: &str, options: &str) {
    drop(
        host.sh(&format!(
            "rm -f /tmp/held.rc; ({variables} CRABBOX_TEST_FAILPOINT=supervisor:{point}:wait crabbox warmup {options} > /tmp/held 2>&1; \
             echo $? > /tmp/held.rc) < /dev/null > /dev/null 2>&1 &"
        ))
        .exits(0),
    );
    host.until("pgrep -r T -f '[_]_supervise' >/dev/null");
}

/// Lets it continue, and returns the exit code of the warmup.
#[track_caller]
fn go_on(host: &Host) -> String {
    host.until("pkill -CONT -f '[_]_supervise'; test -s /tmp/held.rc");
    host.sh("cat /tmp/held.rc").exits(0).stdout.trim().to_owned()
}

/// Waits until no process fills a pool.
#[track_caller]
fn quiet(host: &Host) {
    host.until("! pgrep -f '[_]_fill' >/dev/null");
}

#[test]
fn of_eight_who_want_the_one_that_waits_one_gets_it_and_the_others_a_lease_all_the_same() {
    let host = Host::pretend_ours();
    drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
    let before = host.settled();
    let waits = fill(&host, 1);
    let storm = host
        .sh(&format!(
            "for i in 1 2 3 4 5 6 7 8; do (crabbox warmup {OURS} --firecracker-pool 1 --slug s$i --timing-json > /tmp/out$i 2> /tmp/err$i; \
             echo $? > /tmp/rc$i) & done; wait; cat /tmp/rc?; cat /tmp/err? | grep -o 'leaseSource\":\"[a-z]*' | sort | uniq -c; cat /tmp/out? /tmp/err? >&2"
        ))
        .exits(0);
    assert!(storm.stdout.starts_with(&"0\n".repeat(8)), "{storm:?}");
    // A late client may have got the successor.
    let counts = |word: &str| {
        let line = storm.stdout.lines().find(|line| line.ends_with(word));
        line.map_or(0, |line| {
            line.split_whitespace().next().unwrap().parse::<u32>().unwrap()
        })
    };
    assert!(counts("pool") >= 1 && counts("cold") == 0, "{storm:?}");
    assert_eq!(counts("pool") + counts("restored"), 8, "{storm:?}");
    let first = storm.stderr.matches(&format!("leased {} ", waits[0])).count();
    assert_eq!(first, 1, "{storm:?}");
    // Each has a separate machine that works.
    for i in 1..=8 {
        let ran = host
            .crabbox(&format!("run --id s{i} --no-sync -- echo alive"))
            .exits(0);
        assert_eq!(ran.stdout, "alive\n");
    }
    quiet(&host);
    assert_eq!(members(&host).len(), 1, "one waits again, and no more");
    for i in 1..=8 {
        drop(host.crabbox(&format!("stop s{i}")).exits(0));
    }
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn one_that_waits_is_named_by_its_id_alone_and_taken_when_it_is_used() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let ids = fill(&host, 3);
    let slug = host
        .crabbox(&format!("status --id {} --json", ids[0]))
        .exits(0)
        .json();
    assert_eq!(slug["state"], "pooled", "{slug}");
    let slug = slug["slug"].as_str().unwrap().to_owned();
    for command in ["run --no-sync --id", "stop", "status --id"] {
        let rest = if command.starts_with("run") { "-- true" } else { "" };
        drop(host.crabbox(&format!("{command} {slug} {rest}")).exits(4));
    }
    let ran = host
        .crabbox(&format!("run --id {} --no-sync -- echo mine", ids[0]))
        .exits(0);
    assert_eq!(ran.stdout, "mine\n");
    assert!(!members(&host).contains(&ids[0]));
    // It is now a lease, under any of its names.
    drop(
        host.crabbox(&format!("run --id {slug} --no-sync -- true"))
            .exits(0),
    );
    drop(host.crabbox(&format!("stop {slug}")).exits(0));
    drop(host.crabbox(&format!("stop {}", ids[1])).exits(0));
    assert_eq!(members(&host), ids[2..]);
    // Requests for a different lease do not get it.
    for more in [
        "--firecracker-user other --firecracker-launch-timeout 2s",
        "--firecracker-memory-mib 129",
        "--firecracker-work-root /srv/elsewhere",
        "--firecracker-network cni --firecracker-cni-conf-dir /srv/cni --firecracker-cni-bin-dir /usr/lib/cni",
        "--firecracker-jailer none",
    ] {
        let other = host.crabbox(&format!(
            "warmup {OURS} {more} --firecracker-pool 1 --slug other --timing-json"
        ));
        // That user cannot log in, so the request fails rather than getting a different lease.
        let expected = if more.contains("user other") {
            None
        } else {
            Some("\"leaseSource\":\"cold\"")
        };
        assert!(
            expected.map_or(other.code != Some(0), |word| other.code == Some(0)
                && other.stderr.contains(word)),
            "{more}: {other:?}"
        );
        quiet(&host);
        assert!(members(&host).contains(&ids[2]), "{more}");
        drop(host.crabbox("stop other"));
    }
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
    let none = host.crabbox(&format!("pool fill {OURS}")).exits(2);
    assert!(none.stderr.contains("firecracker.pool is 0"), "{none:?}");
    let many = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool -1"))
        .exits(2);
    assert!(many.stderr.contains("between 0 and 256"), "{many:?}");
}

#[test]
fn one_that_waits_too_long_ends_and_has_a_successor_only_where_its_pool_is_used() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let pool = "--firecracker-pool 2 --firecracker-pool-max-age";
    drop(host.crabbox(&format!("pool fill {OURS} {pool} 2s")).exits(0));
    host.until("test -z \"$(ls /srv/.config/crabbox/state/firecracker/leases)\"");
    host.until("! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &host.settled());
    // The remaining member learns that the other was taken, but its successor does not.
    drop(host.crabbox(&format!("pool fill {OURS} {pool} 4s")).exits(0));
    let waits = members(&host);
    let taken = host
        .crabbox(&format!("warmup {OURS} {pool} 4s --slug one --timing-json"))
        .exits(0);
    assert!(taken.stderr.contains("\"leaseSource\":\"pool\""), "{taken:?}");
    let left = waits.iter().find(|id| !taken.stdout.contains(*id)).unwrap();
    host.until(&format!(
            "test ! -e /srv/.config/crabbox/state/firecracker/leases/{left} && crabbox pool list --provider firecracker | grep -q ' pooled '"
        ),
    );
    drop(host.crabbox("stop one").exits(0));
    host.until("test -z \"$(ls /srv/.config/crabbox/state/firecracker/leases)\"");
    quiet(&host);
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn what_was_made_of_another_image_is_taken_by_nobody_and_ends() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let old = fill(&host, 1);
    host.build_image("default", "other");
    let warmup = host
        .crabbox(&format!(
            "warmup {OURS} --firecracker-pool 1 --slug one --timing-json"
        ))
        .exits(0);
    assert!(warmup.stderr.contains("\"leaseSource\":\"cold\""), "{warmup:?}");
    quiet(&host);
    let new = members(&host);
    assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
    drop(host.crabbox("stop one").exits(0));
    host.build_image("default", "third");
    let dry = host.crabbox(&format!("cleanup --dry-run {OURS}")).exits(0);
    assert!(dry.stdout.contains(&new[0]) && members(&host) == new, "{dry:?}");
    let cleaned = host.crabbox(&format!("cleanup {OURS}")).exits(0);
    assert!(cleaned.stdout.contains("made_of_what_is_gone"), "{cleaned:?}");
    assert_eq!(members(&host), [""; 0]);
    let mut after = host.settled();
    after.retain(|line| before.contains(line) || !line.contains("/images/"));
    assert_nothing_left(&before, &after);
}

/// The failpoints of taking a pool member.
const TAKING: [&str; 5] = [
    "take:begun",
    "take:made",
    "take:done",
    "claim:begun",
    "claim:made",
];

#[test]
fn whoever_dies_while_one_is_taken_leaves_nothing() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let options = format!("{OURS} --firecracker-pool 1");
    for point in TAKING {
        // The client that takes it dies: it is unclaimed, and ends by itself.
        drop(fill(&host, 1));
        host.kill_at(point, &options, "kill -9 $cli");
        if point != "claim:made" {
            host.until("! pgrep -f '[_]_supervise' >/dev/null");
            assert_nothing_left(&before, &host.settled());
        }
        quiet(&host);
        drop(host.crabbox("stop killed"));
        drop(host.crabbox("pool drain").exits(0));
        assert_nothing_left(&before, &host.settled());
        // Its supervisor dies: the client gets another lease.
        let waits = fill(&host, 1);
        host.kill_at(point, &options, "kill -9 $(pgrep -r T -f '[_]_supervise')");
        quiet(&host);
        let ran = host.crabbox("run --id killed --no-sync -- echo alive").exits(0);
        assert_eq!(ran.stdout, "alive\n", "{point}");
        let inspected = host.crabbox("status --id killed --json").exits(0).json();
        assert_ne!(
            text(&inspected["id"]),
            waits[0],
            "{point}: it was given back to nobody"
        );
        assert!(!members(&host).contains(&waits[0]), "{point}");
        drop(host.crabbox("stop killed").exits(0));
        drop(host.crabbox("pool drain").exits(0));
        assert_nothing_left(&before, &host.settled());
        // Both die, and with them all others, as when the host crashes: one cleanup suffices.
        drop(fill(&host, 1));
        host.kill_at(point, &options, KILL_BOTH);
        let cleaned = host.crabbox("cleanup --provider firecracker").exits(0);
        assert!(
            cleaned.stdout.contains("remove firecracker lease="),
            "{point}: {cleaned:?}"
        );
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn whoever_dies_while_one_is_made_or_waits_leaves_what_one_command_sweeps() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let swept = |what: &str| {
        let mut after = Vec::new();
        for _ in 0..50 {
            drop(host.crabbox("cleanup --provider firecracker"));
            after = host.residue();
            if after == before {
                break;
            }
            drop(host.sh("sleep 0.1"));
        }
        assert!(
            after == before,
            "{what}: {:#?}",
            after
                .iter()
                .filter(|line| !before.contains(line))
                .collect::<Vec<_>>()
        );
    };
    // The process that fills the pool, killed at each moment: waiting members stay, the rest is removed.
    host.kill_at_every_moment(
        &format!("crabbox pool fill {OURS} --firecracker-pool 1"),
        "crabbox pool drain >/dev/null",
        |limit| {
            host.until("! pgrep -f '[_]_supervise' >/dev/null || crabbox pool list --provider firecracker | grep -q ' pooled '");
            drop(host.crabbox("pool drain").exits(0));
            swept(&format!("killed after {limit} s"));
        },
    );
    drop(host.crabbox("pool drain").exits(0));
    // Its supervisor is killed in the last step, and while it waits.
    for point in [
        "supervisor:pool:begun",
        "supervisor:pool:done",
        "supervisor:attach:made",
    ] {
        let died = host.sh(&format!(
            "CRABBOX_TEST_FAILPOINT={point} crabbox pool fill {OURS} --firecracker-pool 1"
        ));
        assert_eq!(died.code, Some(5), "{point}: {died:?}");
        swept(point);
    }
    for kill in [
        "pkill -9 -f '[_]_supervise'",
        "pkill -9 -f '[f]irecracker --id'",
        // As after a reset of the host.
        "pkill -9 -f '[_]_supervise|[f]irecracker --id'",
    ] {
        drop(fill(&host, 2));
        let taken = host
            .sh(&format!(
                "{kill}; crabbox warmup {OURS} --firecracker-pool 2 --slug one --timing-json"
            ))
            .exits(0);
        assert!(
            taken.stderr.contains("\"leaseSource\":\"cold\""),
            "{kill}: {taken:?}"
        );
        quiet(&host);
        drop(host.crabbox("stop one").exits(0));
        drop(host.crabbox("pool drain").exits(0));
        swept(kill);
    }
}
