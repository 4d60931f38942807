//! Orders and requests that are late, invalid, from another release or abandoned: they must not harm waiting
//! leases.

use crabbox_e2e::{Host, OURS, assert_nothing_left};

use super::{fill, go_on, held, members, quiet};

/// Tries to take the lease with the socket in the first argument, in the pool in the second, by the request
/// in the third; prints every answer.
const TAKE: &str = "import socket, sys\n\
     s = socket.socket(socket.AF_UNIX)\n\
     s.settimeout(20)\n\
     s.connect(sys.argv[1])\n\
     s.sendall(b'{\"version\":1,\"verb\":\"claim\",\"pool\":\"%s\"}\\n' % sys.argv[2].encode())\n\
     print(s.recv(4096).decode(), end='')\n\
     s.sendall(sys.argv[3].encode() + b'\\n')\n\
     s.shutdown(socket.SHUT_WR)\n\
     while got := s.recv(4096):\n  print(got.decode(), end='')\n";

#[test]
fn a_wish_that_makes_no_sense_is_answered_by_name_and_costs_nothing() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let filled = host
        .crabbox(&format!("pool fill {OURS} --firecracker-pool 1 --json"))
        .exits(0)
        .json();
    let waits = members(&host);
    let socket = format!(
        "/srv/.config/crabbox/state/firecracker/leases/{}/supervisor.sock",
        waits[0]
    );
    for (wish, answer) in [
        (
            r#"{"version":99,"acquire":{"nobody":"knows"}}"#,
            "protocol version 99, but this program speaks version 1",
        ),
        ("take it", "the lease request is malformed"),
    ] {
        drop(host.feed("cat > /srv/take.py", TAKE.as_bytes()).exits(0));
        let pool = filled["pool"].as_str().unwrap();
        drop(host.feed("cat > /srv/wish", wish.as_bytes()).exits(0));
        let told = host
            .sh(&format!(
                "python3 /srv/take.py {socket} {pool} \"$(cat /srv/wish)\""
            ))
            .exits(0);
        assert!(
            told.stdout.contains("\"yours\"")
                && told.stdout.contains("\"failed\"")
                && told.stdout.contains(answer),
            "{told:?}"
        );
        assert_eq!(members(&host), waits, "{wish}");
    }
    drop(host.sh("rm /srv/take.py /srv/wish").exits(0));
    // An invalid slug is the user's mistake, and must not cost a lease.
    let refused = host
        .crabbox(&format!("warmup {OURS} --firecracker-pool 1 --slug '***'"))
        .exits(2);
    assert!(refused.stderr.contains("slug"), "{refused:?}");
    // Looking at a member does not take it.
    drop(host.crabbox(&format!("doctor {OURS} --id {}", waits[0])));
    assert_eq!(members(&host), waits);
    let image = host.crabbox("image rm default").exits(2);
    assert!(
        image.stderr.contains(&waits[0]) && image.stderr.contains("crabbox pool drain"),
        "{image:?}"
    );
    let warmup = host
        .crabbox(&format!("warmup {OURS} --firecracker-pool 1 --slug one"))
        .exits(0);
    assert_eq!(warmup.lease(), waits[0], "it is as it was");
    quiet(&host);
    drop(host.crabbox("stop one").exits(0));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn an_order_of_yesterday_neither_ends_nor_makes_anything_today() {
    let host = Host::pretend_ours();
    let old = fill(&host, 1);
    // The process about to fill the pool is held back while the image changes.
    held(
        &host,
        "",
        "claim:done",
        &format!("{OURS} --firecracker-pool 1 --slug one"),
    );
    host.build_image("default", "other");
    let new = fill(&host, 1);
    assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
    assert_eq!(go_on(&host), "0");
    quiet(&host);
    assert_eq!(members(&host), new);
    drop(host.crabbox("stop one").exits(0));
    drop(host.crabbox("pool drain").exits(0));
}

#[test]
fn what_fills_the_pool_up_boots_where_the_lease_that_was_taken_was_restored() {
    let host = Host::pretend_ours();
    drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
    held(
        &host,
        "",
        "claim:done",
        &format!("{OURS} --firecracker-pool 1 --slug one --timing-json"),
    );
    // A pool member keeps its own hard links to its template's files; a new lease finds no template.
    drop(
        host.sh("rm -r /srv/.config/crabbox/state/firecracker/templates/????????????????*")
            .exits(0),
    );
    assert_eq!(go_on(&host), "0");
    let told = host.sh("cat /tmp/held").exits(0);
    assert!(told.stdout.contains("\"leaseSource\":\"restored\""), "{told:?}");
    quiet(&host);
    assert_eq!(members(&host).len(), 1);
    drop(host.crabbox("stop one").exits(0));
    drop(host.crabbox("pool drain").exits(0));
}

#[test]
fn one_that_is_taken_meanwhile_is_not_stopped() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let waits = fill(&host, 1);
    held(
        &host,
        "",
        "take:made",
        &format!("{OURS} --firecracker-pool 1 --slug one"),
    );
    // It has seen a waiting lease, and naps until nothing holds it: system call 230 or 35 (clock_nanosleep,
    // nanosleep).
    drop(
        host.sh(&format!(
            "rm -f /tmp/stop.rc; (crabbox stop {} > /tmp/stop 2>&1; echo $? > /tmp/stop.rc) < /dev/null > /dev/null 2>&1 &",
            waits[0]
        ))
        .exits(0),
    );
    host.until("grep -qsE '^(230|35) ' /proc/$(pgrep -x -f 'crabbox stop .*')/syscall");
    assert_eq!(go_on(&host), "0");
    host.until("test -s /tmp/stop.rc");
    let stopped = host.sh("cat /tmp/stop; exit $(cat /tmp/stop.rc)").exits(2);
    assert!(
        stopped.stdout.contains("has been taken from its pool"),
        "{stopped:?}"
    );
    let ran = host.crabbox("run --id one --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");
    quiet(&host);
    drop(host.crabbox("stop one").exits(0));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn filling_ends_even_if_none_lasts_and_hears_ctrl_c_while_it_waits() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let fill = format!("crabbox pool fill {OURS} --firecracker-pool 2 --firecracker-pool-max-age 1ms --json");
    let filled = host.sh(&format!("exec timeout -k 1 60 {fill}")).exits(0).json();
    assert_eq!(filled["made"].as_array().unwrap().len(), 2, "{filled}");
    host.until("! pgrep -f '[_]_supervise' >/dev/null");
    // One process fills the pool, and another wants to fill or drain it.
    let waits = super::fill(&host, 1);
    let pool = filled["pool"].as_str().unwrap();
    for command in [&fill, "crabbox pool drain"] {
        // It handles the signal once it naps (system call 230 or 35); before that, it may not even have been
        // loaded.
        let ended = host.sh(&format!(
            "flock -n /srv/.config/crabbox/state/firecracker/pool-{pool}.lock bash -c '{command} & p=$!; \
             for i in $(seq 600); do grep -qsE \"^(230|35) \" /proc/$p/syscall && break; sleep 0.05; done; \
             kill -INT $p; wait $p'"
        ));
        assert!(
            ended.code == Some(130) && ended.stderr.contains("interrupted"),
            "{command}: {ended:?}"
        );
        assert_eq!(members(&host), waits, "{command}");
    }
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn a_drain_that_leaves_one_behind_says_which() {
    let host = Host::pretend_ours();
    let before = host.settled();
    let lease = fill(&host, 1).remove(0);
    // The holder of its lock may be making it or giving it to a client, so it is left alone.
    let drained = host.sh(&format!(
        "flock $HOME/.config/crabbox/state/firecracker/locks/{lease}.lock timeout 60 crabbox pool drain"
    ));
    assert_eq!(drained.code, Some(5), "{drained:?}");
    assert!(
        drained.stderr.contains(&format!(
            "in use by another process, so they may remain in the pool: {lease}"
        )) && drained.stderr.contains("pool drain"),
        "{drained:?}"
    );
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}
