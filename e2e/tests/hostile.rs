//! A guest that attacks its host with everything its root can reach, beside another lease. The bystander and
//! the host must not be affected, and the hostile lease must be given back like any other.

use crabbox_e2e::{Host, assert_nothing_left};

/// Floods the channels that lead out of a guest, each from a separate process, for as long as the guest
/// lives; run as its root.
const ATTACK: &str = include_str!("hostile/attack.py");
/// Replaces the guest's sshd and answers every client with endless bytes.
const FORGERY: &str = include_str!("hostile/forgery.py");

#[test]
fn a_bystander_does_not_notice_a_guest_that_floods_everything_it_reaches() {
    let host = Host::alone();
    let repo = host.repository("hostile");
    let before = host.residue();
    let network = "--firecracker-network nat";
    drop(host.warmup(&repo, "bystander", network));
    drop(host.warmup(&repo, "hostile", network));
    drop(
        host.feed(&format!("cat > {repo}/attack.py"), ATTACK.as_bytes())
            .exits(0),
    );
    let started = host.sh(&format!(
        "cd {repo} && exec crabbox run --id hostile -- sh -c 'sudo setsid -f python3 attack.py </dev/null >/dev/null 2>&1; \
         for i in $(seq 100); do test -e /run/attack.runs && exit; sleep 0.2; done; exit 9'"
    ));
    drop(started.exits(0));

    // Each round takes seconds; what the guest could fill is checked after the last one.
    for round in 0..3 {
        let said = host
            .sh(&format!(
                "cd {repo} && exec crabbox run --id bystander --no-sync -- echo round {round}"
            ))
            .exits(0);
        assert_eq!(said.stdout, format!("round {round}\n"));
    }
    let facts = host
        .sh(
            "leases=.config/crabbox/state/firecracker/leases; \
             echo flows: $(cat /proc/sys/net/netfilter/nf_conntrack_count); \
             echo largest: $(find $leases \\( -name '*.log' -o -name 'console*' \\) -type f -printf '%s\\n' | sort -n | tail -1); \
             echo supervisor: $(for pid in $(pgrep -f '[_]_supervise'); do awk '/^VmRSS:/ {print $2}' /proc/$pid/status; done | sort -n | tail -1)",
        )
        .exits(0);
    let fact = |name: &str| {
        let line = facts
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let value = line.and_then(|value| value.parse::<u64>().ok());
        assert!(value.is_some(), "no {name} in {facts:?}");
        value.unwrap_or_default()
    };
    // A lease may have 4096 connection tracking entries outside of its namespace; the host's own are a
    // handful.
    assert!(fact("flows") < 5_000, "{facts:?}");
    // No file of a VMM grows beyond the disk that the lease may fill.
    assert!(fact("largest") <= 2 << 30, "{facts:?}");
    // In KiB. An unbounded reader would hold what the guest sent.
    assert!(fact("supervisor") < 64 << 10, "{facts:?}");

    drop(host.crabbox("stop hostile").exits(0));

    // A forged end of the connection: the command fails and ends, and the lease can still be given back. The
    // session that starts the forger is killed by it.
    drop(host.warmup(&repo, "forger", network));
    drop(
        host.feed(&format!("cat > {repo}/forgery.py"), FORGERY.as_bytes())
            .exits(0),
    );
    for command in ["sudo setsid -f python3 forgery.py; sleep 60", "echo mine"] {
        let forged = host.sh(&format!(
            "cd {repo} && exec timeout 240 crabbox run --id forger -- sh -c '{command}' </dev/null"
        ));
        let over = forged.code.is_some_and(|code| code != 0 && code != 124);
        assert!(over && !forged.stdout.contains("mine"), "{forged:?}");
    }
    drop(host.crabbox("stop forger").exits(0));
    let said = host
        .sh(&format!(
            "cd {repo} && exec crabbox run --id bystander --no-sync -- echo still here"
        ))
        .exits(0);
    assert_eq!(said.stdout, "still here\n");
    drop(host.crabbox("stop bystander").exits(0));
    assert_nothing_left(&before, &host.residue());
}
