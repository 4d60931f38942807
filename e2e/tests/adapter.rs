//! Leases of another program, on pretended hosts with a fake VMM: a recorded conversation of the external
//! protocol, and the fate of a lease whose request was cancelled, killed, or repeated. No microVM runs here.

use crabbox_e2e::{Host, assert_nothing_left};
use serde_json::{Value, json};

/// Flags as in `external.args`.
const FLAGS: &str = "--firecracker-binary /srv/fake/firecracker --firecracker-user root --firecracker-cpus 1 --firecracker-memory-mib 128 \
     --firecracker-disk-mib 64 --firecracker-work-root /srv/work --firecracker-network nat --firecracker-launch-timeout 20s";

const ACQUIRE: &str = r#"{"protocolVersion":1,"operation":"acquire","desired":{"leaseId":"cbx_0123456789ab","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d"}}"#;
const RELEASE: &str = r#"{"protocolVersion":1,"operation":"release","lease":{"leaseId":"cbx_0123456789ab"}}"#;

/// A host with an image, whose guests respond and report that they are ready.
fn host() -> Host {
    let host = Host::pretend();
    host.build_image("default", "word");
    drop(
        host.sh(r#"echo '{"sshd": true, "ready": true}' > /srv/fake/fake-vmm.json"#)
            .exits(0),
    );
    host
}

/// The answer to `request`, and the exit code.
#[track_caller]
fn ask(host: &Host, request: &str) -> (Value, Option<i32>) {
    let done = host.feed(
        &format!("exec crabbox adapter external {FLAGS}"),
        request.as_bytes(),
    );
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "{done:?}");
    let answer = done.json();
    let problems = crabbox_testkit::schemas::problems("adapter-external", &answer);
    assert!(problems.is_empty(), "{problems:#?}\n{answer}");
    (answer, done.code)
}

/// The differences between `answer` and `expected`, in which texts in angle brackets are placeholders.
fn differences(at: &str, expected: &Value, answer: &Value, here: &str) -> Vec<String> {
    match (expected, answer) {
        (Value::Object(expected), Value::Object(answer)) => {
            let names: std::collections::BTreeSet<&String> = expected.keys().chain(answer.keys()).collect();
            names
                .into_iter()
                .flat_map(|name| {
                    let part = |object: &serde_json::Map<String, Value>| {
                        object.get(name).cloned().unwrap_or(Value::Null)
                    };
                    differences(&format!("{at}/{name}"), &part(expected), &part(answer), here)
                })
                .collect()
        }
        (Value::Array(expected), Value::Array(answer)) if expected.len() == answer.len() => expected
            .iter()
            .zip(answer)
            .enumerate()
            .flat_map(|(index, (expected, answer))| {
                differences(&format!("{at}/{index}"), expected, answer, here)
            })
            .collect(),
        (Value::String(kind), Value::String(text)) if kind.starts_with('<') => {
            let is_of_kind = match kind.as_str() {
                "<here>" => text == here,
                "<address>" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "<path>" => text.starts_with('/'),
                "<seconds>" => text.parse::<u64>().is_ok_and(|seconds| seconds > 1_700_000_000),
                "<command>" => text.contains("command -v rsync"),
                _ => false,
            };
            if is_of_kind {
                Vec::new()
            } else {
                vec![format!("{at}: expected {kind}, got {text:?}")]
            }
        }
        (expected, answer) if expected == answer => Vec::new(),
        (expected, answer) => vec![format!("{at}: expected {expected}, got {answer}")],
    }
}

#[test]
fn the_recorded_conversation_is_answered_and_leaves_nothing() {
    let host = host();
    host.repository("app");
    let before = host.settled();
    let steps: Vec<Value> = serde_json::from_str(include_str!("conversation.json")).unwrap();
    assert!(steps.len() >= 12);
    let mut here = String::new();
    for step in &steps {
        let request = step["request"].to_string().replace("<here>", &here);
        let (answer, code) = ask(&host, &request);
        if here.is_empty() {
            here = answer["lease"]["cloudId"].as_str().unwrap_or_default().to_owned();
            assert!(here.starts_with("cbx_") && here != "cbx_0123456789ab", "{answer}");
            enter(&host, &answer);
        }
        let found = differences("", &step["answer"], &answer, &here);
        assert!(found.is_empty(), "{}: {found:#?}\n{answer}", step["what"]);
        let expected = step["code"].as_i64().unwrap_or_default();
        assert_eq!(code.map(i64::from), Some(expected), "{}", step["what"]);
    }
    assert_nothing_left(&before, &host.settled());
}

/// Enters the lease using only the answer, as the Go program does: its host key is beside the key, and host
/// key checking passes. It can also be used by this program's own commands.
#[track_caller]
fn enter(host: &Host, answer: &Value) {
    let ssh = |field: &str| answer["lease"]["ssh"][field].as_str().unwrap_or_default();
    let key = ssh("key");
    let dir = key.trim_end_matches("/id_ed25519");
    let entered = host
        .sh(&format!(
            "exec ssh -F none -i {key} -o IdentitiesOnly=yes -o BatchMode=yes -p {} -o StrictHostKeyChecking=yes \
             -o UserKnownHostsFile={dir}/known_hosts -o GlobalKnownHostsFile=none {}@{} '{} && echo entered'",
            ssh("port"),
            ssh("user"),
            ssh("host"),
            ssh("readyCheck")
        ))
        .exits(0);
    assert_eq!(entered.stdout, "entered\n");
    let listed = host.crabbox("list --provider firecracker --json").exits(0).json();
    let labels = &listed[0]["labels"];
    assert_eq!(labels["external_lease"], "cbx_0123456789ab");
    assert_eq!(labels["slug"], "cbx-0123456789ab");
    // Values from the request that the flags do not set.
    let claims = host.crabbox("claims list --json").exits(0).json();
    assert_eq!(claims["claims"][0]["repoRoot"], "/srv/e2e/app");
    assert_eq!(claims["claims"][0]["idleTimeoutSeconds"], 1200);
}

#[test]
fn a_lease_is_given_back_when_its_request_is_cancelled_or_killed_or_nobody_reads_the_answer() {
    let host = host();
    assert_eq!(ask(&host, ACQUIRE).1, Some(0));
    assert_eq!(ask(&host, RELEASE), (json!({"protocolVersion": 1}), Some(0)));
    let before = host.settled();
    // Stopped just before the machine starts, then signalled, then continued.
    for (signal, code) in [("INT", 5), ("TERM", 5), ("KILL", 137)] {
        let stands = "pgrep -r T -f '[_]_supervise' >/dev/null";
        let done = host.feed(
            &format!(
                "cat > /tmp/request; rm -f /tmp/rc; \
                 CRABBOX_TEST_FAILPOINT=supervisor:vmm:begun:wait crabbox adapter external {FLAGS} < /tmp/request > /tmp/out 2> /tmp/err & cli=$!; \
                 for i in $(seq 600); do {stands} && break; sleep 0.05; done; {stands} || {{ kill -9 $cli; exit 99; }}; \
                 kill -{signal} $cli; sleep 0.1; pkill -CONT -f '[_]_supervise'; wait $cli; echo $?; \
                 for i in $(seq 600); do pgrep -f '[_]_supervise' >/dev/null || break; sleep 0.05; done; cat /tmp/out /tmp/err >&2"
            ),
            ACQUIRE.as_bytes(),
        );
        assert_eq!(done.stdout.trim(), code.to_string(), "{signal}: {done:?}");
        assert_nothing_left(&before, &host.settled());
    }
    // A pipe whose reader is gone.
    let deaf = host
        .sh(&format!(
            "echo '{ACQUIRE}' > /tmp/request; (crabbox adapter external {FLAGS} < /tmp/request 2> /tmp/err; echo $? > /tmp/rc) | true; \
             for i in $(seq 600); do test -s /tmp/rc && grep -q . /tmp/rc && break; sleep 0.05; done; cat /tmp/err >&2; cat /tmp/rc"
        ))
        .exits(0);
    assert!(
        deaf.stderr
            .contains("lease cbx_0123456789ab was released: the answer was not read"),
        "{deaf:?}"
    );
    assert_eq!(deaf.stdout.trim(), "5", "{deaf:?}");
    assert_nothing_left(&before, &host.settled());
}

#[test]
fn of_four_who_ask_for_one_lease_at_once_none_gets_another_and_one_that_waits_is_taken() {
    let host = host();
    let before = host.settled();
    let filled = host
        .crabbox(&format!(
            "pool fill --provider firecracker {FLAGS} --firecracker-pool 1 --json"
        ))
        .exits(0)
        .json();
    let waits = filled["made"][0].as_str().unwrap_or_default().to_owned();
    let all = host
        .sh(&format!(
            "for i in 1 2 3 4; do (echo '{ACQUIRE}' | crabbox adapter external {FLAGS} --firecracker-pool 1 > /tmp/out$i 2> /tmp/err$i; \
             echo $? > /tmp/rc$i) & done; wait; cat /tmp/out?; cat /tmp/rc? /tmp/err? >&2"
        ))
        .exits(0);
    let answers: Vec<Value> = all
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 4, "{all:?}");
    let here: std::collections::BTreeSet<&str> = answers
        .iter()
        .filter_map(|answer| answer["lease"]["cloudId"].as_str())
        .collect();
    assert_eq!(here.into_iter().collect::<Vec<_>>(), [waits.as_str()], "{all:?}");
    for answer in &answers {
        let error = answer["error"].as_str().unwrap_or_default();
        let is_told = ["is being made", "is here already", "has ended"]
            .iter()
            .any(|part| error.contains(part));
        assert!(error.is_empty() || is_told, "{all:?}");
    }
    drop(host.sh("for i in $(seq 600); do pgrep -f '[_]_fill' >/dev/null || break; sleep 0.05; done"));
    // The pool member made in its place is unclaimed, though it was ordered by another program's request.
    let pooled = host
        .crabbox("pool list --provider firecracker --json")
        .exits(0)
        .json();
    let theirs = |lease: &&Value| !lease["labels"]["external_lease"].is_null();
    let leases = pooled.as_array().into_iter().flatten();
    assert_eq!(leases.clone().count(), 2, "{pooled}");
    assert_eq!(leases.filter(theirs).count(), 1, "{pooled}");
    assert_eq!(ask(&host, RELEASE), (json!({"protocolVersion": 1}), Some(0)));
    drop(host.crabbox("pool drain").exits(0));
    assert_nothing_left(&before, &host.settled());
}
