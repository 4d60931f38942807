//! Leases that are made ahead of their use, on pretended hosts with a fake VMM: who gets one, what becomes of it otherwise, and what is
//! left by whoever is killed. That one is a lease like any other is shown on a real microVM, in `warm.rs`.

use crabbox_e2e::{Host, KILL_BOTH, assert_nothing_left};

/// Options of a lease from the store, of which two wait.
const OURS: &str = "--provider firecracker --firecracker-binary /srv/fake/firecracker --firecracker-user root --firecracker-cpus 1 \
     --firecracker-memory-mib 128 --firecracker-disk-mib 64 --firecracker-work-root /srv/work --firecracker-network nat \
     --firecracker-launch-timeout 20s";

/// A host with an image, whose guests answer and say that they are ready.
fn host() -> Host {
    let host = Host::pretend();
    host.build_image("default", "word");
    drop(
        host.sh(r#"echo '{"sshd": true, "ready": true}' > /srv/fake/fake-vmm.json"#)
            .exits(0),
    );
    host
}

/// Waits on the host, up to 30 s, for a shell condition.
#[track_caller]
fn until(host: &Host, condition: &str) {
    let waited = host.sh(&format!(
        "for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.05; done; exit 1"
    ));
    let seen = if waited.code == Some(0) {
        String::new()
    } else {
        host.sh("crabbox list --all; ps ax -o pid,ppid,stat,args; tail -n 40 /srv/.config/crabbox/state/firecracker/leases/*/supervisor.log").stdout
    };
    assert_eq!(waited.code, Some(0), "never became true: {condition}\n{seen}");
}

/// Residue, once what ends by itself has ended: twice the same.
#[track_caller]
fn settled(host: &Host) -> Vec<String> {
    let mut last = host.residue();
    for _ in 0..50 {
        drop(host.sh("sleep 0.1"));
        let now = host.residue();
        if now == last {
            break;
        }
        last = now;
    }
    last
}

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
    let host = host();
    let before = settled(&host);
    let filled = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool 2 --json"))
        .exits(0)
        .json();
    assert_eq!(filled["made"].as_array().unwrap().len(), 2, "{filled}");
    assert_eq!(members(&host).len(), 2);
    // Nobody's, so nobody sees them who does not ask.
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
    let ran = host.crabbox("run --id mine --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");
    until(
        &host,
        "test $(crabbox pool list --provider firecracker | grep -c ' pooled ') = 2",
    );
    assert!(!members(&host).contains(&lease));
    drop(host.crabbox("stop mine").exits(0));
    let drained = host.crabbox("pool drain --json").exits(0).json();
    assert_eq!(drained["drained"].as_array().unwrap().len(), 2, "{drained}");
    assert_nothing_left(&before, &settled(&host));
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

/// Waits until nobody makes anything.
#[track_caller]
fn quiet(host: &Host) {
    until(host, "! pgrep -f '[_]_fill' >/dev/null");
}

#[test]
fn of_eight_who_want_the_one_that_waits_one_gets_it_and_the_others_a_lease_all_the_same() {
    let host = host();
    drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
    let before = settled(&host);
    let waits = fill(&host, 1);
    let storm = host
        .sh(&format!(
            "for i in 1 2 3 4 5 6 7 8; do (crabbox warmup {OURS} --firecracker-pool 1 --slug s$i --timing-json > /tmp/out$i 2> /tmp/err$i; \
             echo $? > /tmp/rc$i) & done; wait; cat /tmp/rc?; cat /tmp/err? | grep -o 'leaseSource\":\"[a-z]*' | sort | uniq -c; cat /tmp/out? /tmp/err? >&2"
        ))
        .exits(0);
    assert!(storm.stdout.starts_with(&"0\n".repeat(8)), "{storm:?}");
    // Whoever came late may have met the successor.
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
    // Each has a machine of its own that does what it is told.
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
    assert_nothing_left(&before, &settled(&host));
}

#[test]
fn one_that_waits_is_named_by_its_id_alone_and_taken_when_it_is_used() {
    let host = host();
    let before = settled(&host);
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
    // It is a lease now, by any of its names.
    drop(
        host.crabbox(&format!("run --id {slug} --no-sync -- true"))
            .exits(0),
    );
    drop(host.crabbox(&format!("stop {slug}")).exits(0));
    drop(host.crabbox(&format!("stop {}", ids[1])).exits(0));
    assert_eq!(members(&host), ids[2..]);
    // Others than those who want the same do not get it.
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
        assert!(
            !other.stderr.contains("\"leaseSource\":\"pool\""),
            "{more}: {other:?}"
        );
        quiet(&host);
        drop(host.crabbox("stop other"));
    }
    assert!(members(&host).contains(&ids[2]));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &settled(&host));
    let none = host.crabbox(&format!("pool fill {OURS}")).exits(2);
    assert!(none.stderr.contains("firecracker.pool is 0"), "{none:?}");
    let many = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool -1"))
        .exits(2);
    assert!(many.stderr.contains("between 0 and 256"), "{many:?}");
}

#[test]
fn those_that_wait_make_room_the_oldest_first_before_somebody_is_refused() {
    let host = host();
    let before = settled(&host);
    for limit in ["MAX_LEASES=2", "UID_COUNT=2"] {
        let waits = fill(&host, 2);
        let lease = host
            .sh(&format!(
                "CRABBOX_FIRECRACKER_{limit} crabbox warmup {OURS} --slug one"
            ))
            .exits(0);
        assert_eq!(members(&host), waits[1..], "{limit}: {lease:?}");
        // Nobody's lease makes room for one that is to wait.
        let refused = host.sh(&format!(
            "CRABBOX_FIRECRACKER_{limit} crabbox pool fill {OURS} --firecracker-pool 2"
        ));
        assert!(
            matches!(refused.code, Some(2 | 5)) && refused.stderr.contains("only 1 of 2"),
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
        assert!(matches!(refused.code, Some(2 | 5)), "{limit}: {refused:?}");
        drop(host.crabbox("stop one").exits(0));
        drop(host.crabbox("stop two").exits(0));
        assert_nothing_left(&before, &settled(&host));
    }
}

#[test]
fn one_that_waits_too_long_ends_and_has_a_successor_only_where_its_pool_is_used() {
    let host = host();
    let before = settled(&host);
    let pool = "--firecracker-pool 2 --firecracker-pool-max-age";
    drop(host.crabbox(&format!("pool fill {OURS} {pool} 2s")).exits(0));
    until(
        &host,
        "test -z \"$(ls /srv/.config/crabbox/state/firecracker/leases)\"",
    );
    until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
    assert_nothing_left(&before, &settled(&host));
    // The one that is left hears of the lease that was taken; its successor hears of none.
    drop(host.crabbox(&format!("pool fill {OURS} {pool} 4s")).exits(0));
    let waits = members(&host);
    let taken = host
        .crabbox(&format!("warmup {OURS} {pool} 4s --slug one --timing-json"))
        .exits(0);
    assert!(taken.stderr.contains("\"leaseSource\":\"pool\""), "{taken:?}");
    let left = waits.iter().find(|id| !taken.stdout.contains(*id)).unwrap();
    until(
        &host,
        &format!(
            "test ! -e /srv/.config/crabbox/state/firecracker/leases/{left} && crabbox pool list --provider firecracker | grep -q ' pooled '"
        ),
    );
    drop(host.crabbox("stop one").exits(0));
    until(
        &host,
        "test -z \"$(ls /srv/.config/crabbox/state/firecracker/leases)\"",
    );
    quiet(&host);
    assert_nothing_left(&before, &settled(&host));
}

#[test]
fn what_was_made_of_another_image_is_taken_by_nobody_and_ends() {
    let host = host();
    let before = settled(&host);
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
    let mut after = settled(&host);
    after.retain(|line| before.contains(line) || !line.contains("/images/"));
    assert_nothing_left(&before, &after);
}

/// The points of a lease that is taken.
const TAKING: [&str; 5] = [
    "take:begun",
    "take:made",
    "take:done",
    "claim:begun",
    "claim:made",
];

#[test]
fn whoever_dies_while_one_is_taken_leaves_nothing() {
    let host = host();
    let before = settled(&host);
    let options = format!("{OURS} --firecracker-pool 1");
    for point in TAKING {
        // Who takes it dies: it is nobody's, and ends by itself.
        let waits = fill(&host, 1);
        host.kill_at(point, &options, "kill -9 $cli");
        if point != "claim:made" {
            until(&host, "! pgrep -f '[_]_supervise' >/dev/null");
            assert_nothing_left(&before, &settled(&host));
        }
        quiet(&host);
        drop(host.crabbox("stop killed"));
        drop(host.crabbox("pool drain").exits(0));
        assert_nothing_left(&before, &settled(&host));
        // Its supervisor dies: who wants a lease has another one.
        drop(fill(&host, 1));
        host.kill_at(point, &options, "kill -9 $(pgrep -r T -f '[_]_supervise')");
        quiet(&host);
        let ran = host.crabbox("run --id killed --no-sync -- echo alive").exits(0);
        assert_eq!(ran.stdout, "alive\n", "{point}");
        assert!(!members(&host).contains(&waits[0]), "{point}");
        drop(host.crabbox("stop killed").exits(0));
        drop(host.crabbox("pool drain").exits(0));
        assert_nothing_left(&before, &settled(&host));
        // Both die, and with them all others, as with the host: one cleanup.
        drop(fill(&host, 1));
        host.kill_at(point, &options, KILL_BOTH);
        let cleaned = host.crabbox("cleanup --provider firecracker").exits(0);
        assert!(
            cleaned.stdout.contains("remove firecracker lease="),
            "{point}: {cleaned:?}"
        );
        assert_nothing_left(&before, &settled(&host));
    }
}

#[test]
fn whoever_dies_while_one_is_made_or_waits_leaves_what_one_command_sweeps() {
    let host = host();
    let before = settled(&host);
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
    // The maker, at each moment: what waits already waits on, the rest goes.
    host.kill_at_every_moment(
        &format!("crabbox pool fill {OURS} --firecracker-pool 1"),
        "crabbox pool drain >/dev/null",
        |limit| {
            until(&host, "! pgrep -f '[_]_supervise' >/dev/null || crabbox pool list --provider firecracker | grep -q ' pooled '");
            drop(host.crabbox("pool drain").exits(0));
            swept(&format!("killed after {limit} s"));
        },
    );
    drop(host.crabbox("pool drain").exits(0));
    // Its supervisor, in the last step and while it waits.
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
        // As a host that was reset.
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
