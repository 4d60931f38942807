//! The line of `--timing-json` where more than a plain run is behind it.

use serde_json::{Value, json};

use crate::place::Answer;
use crate::run::entered;
use crate::static_host::{ID, claimed, configure, existing};

/// The only line of timings.
fn timing(answer: &Answer) -> Value {
    let mut lines = answer.err.lines().filter(|line| line.starts_with('{'));
    let line = lines.next().expect(&answer.err);
    assert_eq!(lines.next(), None, "{}", answer.err);
    serde_json::from_str(line).unwrap()
}

#[test]
fn a_lease_that_ran_out_of_memory_says_so_in_every_form() {
    let lease = entered();
    let failed = lease.script(
        &["--timing-json"],
        "echo 'JavaScript heap out of memory' >&2; exit 134",
    );
    assert_eq!(failed.code, 134, "{}", failed.err);
    let timing = timing(&failed);
    assert_eq!(timing["resourceExhaustion"], "memory", "{timing}");
    assert_eq!(timing["blockedStage"], "resource_exhaustion", "{timing}");
    let failed = lease.script(&["--verbose"], "echo 'cannot allocate memory' >&2; exit 1");
    for says in [
        " blocked_stage=resource_exhaustion resource_exhaustion=memory retry_likely=false\n",
        "  resource_exhaustion: memory\n",
    ] {
        assert!(failed.err.contains(says), "{}", failed.err);
    }
    let failed = lease.script(&["--timing-json"], "exit 1");
    assert!(!failed.err.contains("xhaustion"), "{}", failed.err);
}

#[test]
fn the_line_of_prewarm_is_about_the_whole_of_it() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let run = |probe: &[&str]| place.run(&[&["prewarm", "--timing-json"][..], probe].concat());
    let warm = run(&["--probe-command", "sleep 0.3"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let line = timing(&warm);
    let ms = |name: &str| line[name].as_u64().unwrap();
    assert!(
        ms("probeMs") >= 300 && ms("totalMs") >= ms("probeMs") + ms("leaseMs"),
        "{line}"
    );
    for (name, value) in [("exitCode", json!(0)), ("runStatus", json!("succeeded"))] {
        assert_eq!(line[name], value, "{line}");
    }
    let plain = timing(&run(&[]));
    assert_eq!(plain.get("probeMs"), None, "{plain}");
    let stop = place.run(&["stop", ID]);
    assert_eq!(stop.code, 0, "{}", stop.err);
    // 255 is also the exit code of a lost connection, which this is not.
    for code in [4, 255] {
        let failed = run(&["--probe-command", &format!("exit {code}")]);
        assert_eq!(failed.code, code, "{}", failed.err);
        let line = timing(&failed);
        for (name, value) in [
            ("exitCode", json!(code)),
            ("runStatus", json!("failed")),
            ("errorKind", json!("command-exit")),
            ("blockedStage", json!("unknown")),
            ("retryLikely", json!("unknown")),
            ("leaseStopped", json!(true)),
            ("stopCommand", Value::Null),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
        assert!(!claimed(&place, ID));
    }
}
