//! Failures between a client and its lease on another machine, at every step: on a pretended host, with a
//! real sshd on its loopback. Nothing may be left at either end after one cleanup at each, and claimed leases
//! continue. No microVM runs here.

use crabbox_e2e::afar::{KVM, NO_LEASE, host, settled, until, with};
use crabbox_e2e::{Done, Host, assert_nothing_left};

/// Every step of a jailed lease from a foreign image, as a point at which its supervisor is stopped: before
/// the step, except for the first, whose journal does not exist yet.
const POINTS: [&str; 11] = [
    "directory:done",
    "supervisor:begun",
    "key:begun",
    "namespace:begun",
    "tap:begun",
    "jail:begun",
    "cgroup:begun",
    "vmm:done",
    "attach:begun",
    "mapping:begun",
    "claim:begun",
];

/// What is killed, and how: the client, its SSH connection, its server process on the host, the lease's
/// supervisor.
const CLIENT: &str = "kill -9 $cli";
const CONNECTION: &str = "pkill -9 -u nobody -x ssh";
const SERVER: &str = "pkill -9 -f '[c]rabbox __serve'";
const SUPERVISOR: &str = "pkill -9 -f '[_]_supervise'";

/// Shell: runs crabbox as alice with these words.
fn alice(words: &str) -> String {
    format!(
        "cd /tmp/alice/repo && exec setpriv --reuid nobody --regid nogroup --clear-groups env -i --default-signal=INT HOME=/tmp/alice PATH=/tmp/bin:/usr/bin:/bin \
         LC_ALL=C CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY=/tmp/alice/key CRABBOX_FIRECRACKER_HOST={KVM} crabbox {words}"
    )
}

/// Runs alice's `words` until her lease's supervisor is stopped at `point`, does `then`, and lets the
/// supervisor continue; returns the client's result.
#[track_caller]
fn at(host: &Host, point: &str, words: &str, then: &str) -> Done {
    let stands = "pgrep -r T -f '[_]_supervise' >/dev/null";
    let done = host.sh(&format!(
        "echo supervisor:{point}:wait > /srv/sshd/failpoint; ({alice}) >/tmp/out 2>&1 & cli=$!; \
         for i in $(seq 600); do {stands} && break; sleep 0.02; done; : > /srv/sshd/failpoint; {stands} || {{ cat /tmp/out; kill -9 $cli; exit 99; }}; \
         {then}; pkill -CONT -f '[_]_supervise'; \
         (while sleep 0.1; do pkill -CONT -f '[_]_supervise'; done) >/dev/null 2>&1 & on=$!; \
         wait $cli; code=$?; kill $on; cat /tmp/out; exit $code",
        alice = alice(words)
    ));
    assert_ne!(done.code, Some(99), "never came to {point}: {done:?}");
    done
}

/// The files of leases on alice's side.
fn kept(host: &Host) -> String {
    host.sh("find /tmp/alice/.config /tmp/alice/.local 2>/dev/null | grep cbx_; true")
        .stdout
}

/// Checks that each of `dead` at each point leaves nothing after one cleanup at each end.
#[track_caller]
fn matrix(dead: &[&str]) {
    let host = host();
    let before = settled(&host);
    for who in dead {
        for point in POINTS {
            drop(at(&host, point, "warmup --slug gone", who));
            // Her server process takes back what she abandoned; if it died too, that is left for the host's
            // cleanup.
            until(
                &host,
                "! pgrep -f '[_]_supervise' >/dev/null && ! pgrep -f '[c]rabbox __serve' >/dev/null",
            );
            drop(host.sh("exec crabbox cleanup --provider firecracker").exits(0));
            until(&host, NO_LEASE);
            drop(with(&host, "alice", "crabbox cleanup && crabbox list").exits(0));
            assert_eq!(kept(&host), "", "{who} at {point}");
        }
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn a_client_or_its_connection_that_dies_at_any_step_leaves_nothing_at_either_end() {
    matrix(&[CLIENT, CONNECTION]);
}

#[test]
fn what_serves_or_supervises_and_dies_at_any_step_leaves_nothing_at_either_end() {
    matrix(&[SERVER, SUPERVISOR]);
}

#[test]
fn a_lease_that_is_somebody_s_outlives_all_that_is_between() {
    let host = host();
    let before = settled(&host);
    drop(with(&host, "alice", "crabbox warmup --slug mine").exits(0));
    for dead in [CONNECTION, SERVER, SUPERVISOR] {
        // In the middle of a command: it ends with a reason.
        let cut = host.sh(&format!(
            "({}) >/tmp/out 2>&1 & cli=$!; for i in $(seq 600); do grep -q begun /tmp/out && break; sleep 0.05; done; {dead}; \
             sleep 0.2; kill -0 $cli 2>/dev/null && [ \"{dead}\" = \"{SUPERVISOR}\" ] && touch /tmp/go; wait $cli; code=$?; cat /tmp/out; exit $code",
            alice("run --id mine --no-sync -- sh -c 'echo be\"\"gun; while ! test -e /tmp/go; do sleep 0.05; done; echo over'")
        ));
        match dead {
            SUPERVISOR => assert!(cut.exits(0).stdout.contains("over")),
            _ => assert!(!matches!(cut.code, Some(0) | None), "{dead}: {cut:?}"),
        }
        drop(host.sh("touch /tmp/go; sleep 0.2; rm -f /tmp/go").exits(0));
        let again = with(&host, "alice", "crabbox run --id mine -- cat tracked").exits(0);
        assert_eq!(again.stdout, "alice\n", "{dead}: {again:?}");
    }
    drop(with(&host, "alice", "crabbox stop mine").exits(0));
    until(&host, NO_LEASE);
    assert_eq!(kept(&host), "");
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn a_lease_whose_becoming_hers_was_not_heard_keeps_its_key() {
    let host = host();
    let before = settled(&host);
    // The supervisor knows that it is claimed, but the client does not get the answer.
    let unheard = at(&host, "claim:done", "warmup --slug mine", CONNECTION).exits(5);
    assert!(
        unheard
            .stdout
            .contains("was lost before the host confirmed the claim"),
        "{unheard:?}"
    );
    assert!(kept(&host).contains("id_ed25519"), "{}", kept(&host));
    // It lives, and accepts that key.
    let lease = unheard.lease();
    let ran = with(
        &host,
        "alice",
        &format!("crabbox run --id {lease} --no-sync -- echo there"),
    )
    .exits(0);
    assert_eq!(ran.stdout, "there\n", "{ran:?}");
    drop(with(&host, "alice", &format!("crabbox stop {lease}")).exits(0));
    assert_eq!(kept(&host), "");
    until(&host, NO_LEASE);
    assert_nothing_left(&before, &host.settled());
}

/// Commands that send requests to a host.
const EVERY_QUESTION: [&str; 8] = [
    "run --id mine --no-sync -- true",
    "pull --id mine",
    "status mine",
    "inspect --id mine",
    "list",
    "heartbeat --id mine",
    "logs --id mine",
    "stop mine",
];

/// Runs alice's command until it waits for a host made silent by `dumb`, and interrupts it once: it must
/// report that, with its exit code. False if it ended before it waited.
#[track_caller]
fn interrupted(host: &Host, words: &str, dumb: &str) -> bool {
    let done = host.sh(&format!(
        "{dumb}; ({alice}) >/tmp/out 2>&1 & cli=$!; hangs=; \
         for i in $(seq 400); do pgrep -x sleep -a | grep -q 600 && {{ hangs=1; break; }}; kill -0 $cli 2>/dev/null || break; sleep 0.05; done; \
         if test -z \"$hangs\"; then rm -f /srv/sshd/hang /srv/sshd/mute; kill -0 $cli 2>/dev/null && {{ kill -9 $cli; exit 97; }}; wait $cli || {{ cat /tmp/out; exit 96; }}; exit 95; fi; \
         sleep 0.3; kill -INT $cli; \
         for i in $(seq 200); do kill -0 $cli 2>/dev/null || break; sleep 0.05; done; rm -f /srv/sshd/hang /srv/sshd/mute; \
         if kill -0 $cli 2>/dev/null; then kill -9 $cli; echo hangs; exit 98; fi; wait $cli; code=$?; cat /tmp/out; pkill -f '[s]leep 600'; exit $code",
        alice = alice(words)
    ));
    if done.code == Some(95) {
        return false;
    }
    // 96: it failed by itself; 97: it waits although nothing was asked; 98: it ignores the interrupt.
    assert_eq!(done.code, Some(130), "{words}, {dumb}: {done:?}");
    assert!(done.stdout.contains("interrupted"), "{words}, {dumb}: {done:?}");
    true
}

#[test]
fn one_ctrl_c_ends_whatever_a_host_is_asked() {
    let host = host();
    let before = settled(&host);
    drop(with(&host, "alice", "crabbox warmup --slug mine").exits(0));
    for words in EVERY_QUESTION {
        // A host that lets her in but does not greet.
        assert!(interrupted(&host, words, "touch /srv/sshd/hang"), "{words}");
        // A host that greets, and answers only so many requests.
        let mut questions = 0;
        while interrupted(&host, words, &format!("echo {questions} > /srv/sshd/mute")) {
            questions += 1;
            // The guest's own connection uses the next session, whose bytes are not requests.
            if words.starts_with("run") || words.starts_with("pull") {
                break;
            }
        }
        assert!((1..9).contains(&questions), "{words}: {questions}");
        // Make what was given back or ended again for the next one.
        drop(
            with(
                &host,
                "alice",
                "crabbox status mine >/dev/null 2>&1 || { crabbox cleanup; crabbox warmup --slug mine; }",
            )
            .exits(0),
        );
    }
    drop(with(&host, "alice", "crabbox cleanup && crabbox stop mine").exits(0));
    until(&host, NO_LEASE);
    assert_eq!(kept(&host), "");
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn a_cleanup_waits_once_for_a_host_that_is_away_and_forgets_nothing_of_it() {
    let host = host();
    drop(settled(&host));
    for slug in ["one", "two"] {
        drop(with(&host, "alice", &format!("crabbox warmup --slug {slug}")).exits(0));
    }
    let count = "cat > /srv/count.py <<'P'\n\
        import socket\n\
        s = socket.socket()\n\
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        s.bind(('127.0.0.1', 2222))\n\
        s.listen()\n\
        open('/srv/counted', 'w').close()\n\
        while True:\n\
        \x20   s.accept()[0].close()\n\
        \x20   open('/srv/counted', 'a').write('x')\n\
        P\n\
        kill $(cat /srv/sshd/pid); pkill -u nobody -x ssh; pkill -f '[s]shd: root'; \
        for i in $(seq 100); do pgrep -u nobody -x ssh >/dev/null || break; sleep 0.05; done; \
        python3 /srv/count.py >/dev/null 2>&1 & echo $! > /srv/count.pid";
    drop(host.sh(count).exits(0));
    until(&host, "test -e /srv/counted");
    let cleaned = with(&host, "alice", "crabbox cleanup").exits(0);
    assert_eq!(cleaned.stderr.matches("host_away").count(), 2, "{cleaned:?}");
    assert_eq!(host.sh("cat /srv/counted").stdout, "x", "{cleaned:?}");
    assert_eq!(kept(&host).matches("id_ed25519\n").count(), 2);
    // The host is back, and so are the leases.
    drop(
        host.sh("kill $(cat /srv/count.pid); sleep 0.2; /usr/sbin/sshd -f /srv/sshd/config -E /srv/sshd/log")
            .exits(0),
    );
    drop(with(&host, "alice", "crabbox stop one && crabbox stop two").exits(0));
    assert_eq!(kept(&host), "");
}

#[test]
fn a_host_that_takes_her_for_somebody_else_has_nothing_of_hers_removed() {
    let host = host();
    drop(settled(&host));
    let lease = with(&host, "alice", "crabbox warmup --slug mine")
        .exits(0)
        .lease();
    let renamed = |from: &str, to: &str| {
        let change = format!(
            "sed -i 's/--as {from}\"/--as {to}\"/' /srv/sshd/authorized; pkill -u nobody -x ssh; \
             for i in $(seq 100); do pgrep -u nobody -x ssh >/dev/null || break; sleep 0.05; done"
        );
        drop(host.sh(&change).exits(0));
    };
    renamed("alice", "eve");
    for words in ["crabbox stop mine".to_owned(), format!("crabbox stop {lease}")] {
        let refused = with(&host, "alice", &words).exits(5);
        assert!(
            refused.stderr.contains("belongs to owner \"alice\"") && refused.stderr.contains("\"eve\""),
            "{refused:?}"
        );
    }
    let cleaned = with(&host, "alice", "crabbox cleanup").exits(0);
    assert!(cleaned.stderr.contains("another_owner"), "{cleaned:?}");
    assert!(kept(&host).contains("id_ed25519"));
    renamed("eve", "alice");
    let ran = with(&host, "alice", "crabbox run --id mine --no-sync -- echo hers").exits(0);
    assert_eq!(ran.stdout, "hers\n");
    drop(with(&host, "alice", "crabbox stop mine").exits(0));
}

#[test]
fn a_host_that_never_stops_telling_is_left_out_and_nothing_of_it_is_kept() {
    let host = host();
    drop(settled(&host));
    let greeting = r#"{"crabbox-serve":"0.1.0","protocol":{"least":1,"most":1},"role":"host","owner":"bob"}"#;
    let lease = r#"{"reply":"lease","id":"cbx_0123456789ab","slug":"s","name":"n","server_type":"t","state":"ready","labels":{},"user":"root","port":22,"work_root":"/work","has_address":false}"#;
    for (name, said) in [
        ("endless", format!("echo '{greeting}'; yes '{lease}'")),
        (
            "endless line",
            format!("echo '{greeting}'; tr '\\0' x < /dev/zero"),
        ),
        ("no greeting", "yes welcome".to_owned()),
        ("nothing", "exit 0".to_owned()),
    ] {
        let forge = format!(
            "cat > /tmp/forge <<'F'\n#!/bin/sh\n{said}\nF\nchmod 755 /tmp/forge; \
             sed -i '/--as bob/d; /forge/d' /srv/sshd/authorized; \
             echo \"restrict,command=\\\"exec /tmp/forge\\\" $(cat /tmp/bob/key.pub)\" >> /srv/sshd/authorized; pkill -u daemon -x ssh; \
             for i in $(seq 100); do pgrep -u daemon -x ssh >/dev/null || break; sleep 0.05; done"
        );
        drop(host.sh(&forge).exits(0));
        let told = with(&host, "bob", "timeout 60 crabbox list").exits(0);
        assert!(
            told.stdout.is_empty() && told.stderr.matches("left out").count() == 1,
            "{name}: {}",
            told.stderr
        );
    }
}
