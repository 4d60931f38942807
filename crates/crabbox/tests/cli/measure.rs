//! `bench` and `cache`, against a real sshd on loopback.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, read_to_string};
use std::process::Stdio;
use std::time::Duration;

use crabbox_host::clock::poll_until;
use serde_json::{Value, json};

use crate::place::{Answer, Place, run};
use crate::remote::Entered;
use crate::static_host::{configure, existing};

fn fails(answer: &Answer, says: &str) {
    assert_eq!(answer.code, 2, "{}{}", answer.out, answer.err);
    assert!(answer.err.starts_with(says), "{}", answer.err);
}

#[test]
fn runs_are_recorded_and_the_report_says_what_they_took() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let store = place.path("outside/b.jsonl");
    let at = store.to_str().unwrap();
    let ran = place.run(&[
        "bench",
        "run",
        "--store",
        at,
        "--repeats",
        "2",
        "--warm",
        "--",
        "true",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        format!("benchmark run provider=ssh repeat=1/2 store={at}\n"),
        format!("benchmark timing record appended path={at} observations=1\n"),
        format!("benchmark run provider=ssh repeat=2/2 store={at}\n"),
        format!("benchmark run completed path={at} observations=2 failures=0\n"),
    ] {
        assert!(ran.err.contains(&line), "{line:?} is not in {}", ran.err);
    }
    let text = fs::read_to_string(&store).unwrap();
    let second: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    for (place, value) in [
        ("/schemaVersion", json!(1)),
        ("/source", json!("bench-run")),
        ("/benchmark/commandDisplay", json!("true")),
        ("/benchmark/repoName", json!("repo")),
        ("/benchmark/providerFamily", json!("ssh")),
        ("/benchmark/coldRun", json!(false)),
        ("/benchmark/repeatIndex", json!(2)),
        ("/timing/exitCode", json!(0)),
    ] {
        assert_eq!(second.pointer(place), Some(&value), "{place}: {second}");
    }
    let failed = place.run(&["bench", "run", "--store", at, "--provider", "SSH", "--", "false"]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(
        failed
            .err
            .ends_with("benchmark run failed: ssh repeat=1: remote command exited 1\n"),
        "{}",
        failed.err
    );
    let report = place.run(&["bench", "report", "--store", at, "--json"]);
    let report: Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(
        (
            &report["observationCount"],
            &report["groups"].as_array().unwrap().len()
        ),
        (&json!(3), &2)
    );
    let text = place.run(&["bench", "report", "--store", at, "--since", "1h"]);
    assert!(
        text.out.contains(" cold=false n=2 median_total=")
            && text.out.contains("  sync_phase name=manifest n=2 "),
        "{}",
        text.out
    );
    assert!(text.out.contains(" n=0 median_total=- "), "{}", text.out);
}

#[test]
fn runs_whose_output_nobody_reads_are_not_repeated() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let (store, log) = (place.path("outside/b.jsonl"), sshd.dir().join("log-of-runs"));
    let at = store.to_str().unwrap();
    let script = format!("echo run >> {}; exec yes", log.display());
    let words = [
        "bench",
        "run",
        "--store",
        at,
        "--repeats",
        "3",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let mut child = place
        .command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let err = child.stderr.take().unwrap();
    let began = out.by_ref().lines().any(|line| line.unwrap() == "y");
    drop(out);
    let status = poll_until(Duration::from_mins(2), || child.try_wait().unwrap());
    child.kill().ok();
    let err = read_to_string(err).unwrap();
    let code = status.and_then(|status| status.code());
    assert!(began, "{err}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "run\n", "{err}");
    assert_eq!(
        err.matches("benchmark run provider=ssh repeat=").count(),
        1,
        "{err}"
    );
    assert!(
        err.contains(&format!(
            "benchmark run completed path={at} observations=1 failures=1\n"
        )),
        "{err}"
    );
    // The error of `bench` that some runs have failed.
    assert_eq!(code, Some(1), "{err}");
}

#[test]
fn timings_of_a_run_that_was_made_elsewhere_are_recorded_as_they_are() {
    let place = Place::new();
    let line = r#"{"provider":"other","totalMs":42,"exitCode":0,"mine":"kept"}"#;
    let file = place.write("outside/timing.json", line);
    let recorded = place.run(&[
        "bench",
        "record",
        "--timing-json",
        file.to_str().unwrap(),
        "--command",
        "make all",
        "--cold",
        "--repeat-index",
        "3",
    ]);
    let store = place.path("home/.config/crabbox/state/timings.jsonl");
    assert_eq!(
        (recorded.code, recorded.err),
        (
            0,
            format!(
                "benchmark timing record appended path={} observations=1\n",
                store.display()
            )
        )
    );
    let record: Value = serde_json::from_str(&fs::read_to_string(&store).unwrap()).unwrap();
    assert_eq!(record["timing"], serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(record["benchmark"]["commandDisplay"], "make all");
    assert_eq!(record["benchmark"]["coldRun"], true);
    assert_eq!(record["source"], "bench-record");
    let text = place.run(&["bench", "report", "--min-samples", "1"]);
    assert!(
        text.out
            .contains("other source=bench-record family=- kind=- machine=- command=sha256:")
            && text.out.contains(" cold=true n=1 median_total=42ms p95_total=- "),
        "{}",
        text.out
    );
    place.write("outside/bad.json", "{\"totalMs\": \"x\"}");
    for (timing, says) in [
        ("../outside/none.json", "read timing JSON ../outside/none.json\n"),
        ("../outside/bad.json", "decode timing JSON: invalid type"),
        ("-", "decode timing JSON: EOF"),
    ] {
        fails(&place.run(&["bench", "record", "--timing-json", timing]), says);
    }
    place.write("outside/anonymous.json", "{}");
    fails(
        &place.run(&["bench", "record", "--timing-json", "../outside/anonymous.json"]),
        "timing JSON is missing provider",
    );
    assert_eq!(fs::read_to_string(&store).unwrap().lines().count(), 1);
    fs::write(&store, "{}\n").unwrap();
    fails(
        &place.run(&["bench", "report"]),
        &format!("decode benchmark timing store {} line 1: ", store.display()),
    );
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_runs() {
    for (words, says) in [
        (&["run"][..], "usage: crabbox bench run "),
        (&["run", "--repeats", "0", "--", "x"], "--repeats must be >= 1"),
        (
            &["run", "--cold", "--warm", "--", "x"],
            "--cold and --warm are mutually exclusive",
        ),
        (
            &["run", "--store", "off", "--", "x"],
            "--store cannot be off for bench run",
        ),
        (&["run", "--provider", "nosuch", "--", "x"], "unknown provider"),
        (
            &["record", "--command", "x", "--", "y"],
            "use either --command or command args after --, not both",
        ),
        (&["record", "--repeat-index", "-1"], "--repeat-index must be >= 0"),
        (&["report", "--min-samples", "0"], "--min-samples must be >= 1"),
        (
            &["report", "--since", "xd"],
            "--since day duration must look like 7d",
        ),
    ] {
        fails(&run(&[&["bench"], words].concat()), says);
    }
}

#[test]
fn caches_of_a_lease_are_shown_and_never_emptied_by_accident() {
    let lease = Entered::new();
    let place = &lease.place;
    place.write(
        "home/.config/crabbox/config.yaml",
        "cache: {pnpm: false, npm: false, git: false, docker: false, maxGB: 5}\n",
    );
    for words in [
        &["stats", "--json", "jade-krill"][..],
        &["list", "--json", "--id", "jade-krill"],
    ] {
        let seen = place.run(&[&["cache"], words].concat());
        assert_eq!((seen.code, seen.out.as_str()), (0, "[]\n"), "{}", seen.err);
    }
    let purged = place.run(&["cache", "purge", "--id", "jade-krill", "--force"]);
    assert_eq!(
        (purged.code, purged.out.as_str()),
        (0, "purged cache kind=all lease=cbx_0123456789ab\n"),
        "{}",
        purged.err
    );
    let id = "jade-krill";
    for (words, says) in [
        (
            &["stats"][..],
            "usage: crabbox cache stats --id <lease-id-or-slug>\n",
        ),
        (
            &["purge"],
            "usage: crabbox cache purge --id <lease-id-or-slug> --kind <kind> --force\n",
        ),
        (&["purge", id], "cache purge requires --force\n"),
        (
            &["purge", "--force", "--kind", "npm", id],
            "cache kind \"npm\" is disabled by config\n",
        ),
        (
            &["purge", "--force", "--kind", "yarn", id],
            "unknown cache kind \"yarn\"; ",
        ),
        (&["warm"], "cache warm requires --id\n"),
        (
            &["warm", "--id", id],
            "usage: crabbox cache warm --id <lease-id-or-slug> -- <command...>\n",
        ),
    ] {
        fails(&place.run(&[&["cache"], words].concat()), says);
    }
    let warm = place.run(&["cache", "warm", "--id", id, "--", "sh", "-c", "pwd; exit 4"]);
    assert_eq!(warm.code, 4, "{}", warm.err);
    assert!(
        warm.out.ends_with("/work/cbx_0123456789ab/repo\n"),
        "{}",
        warm.out
    );
    let show = place.run(&["config", "show", "--json"]);
    let show: Value = serde_json::from_str(&show.out).unwrap();
    assert_eq!(
        show["cache"],
        json!({"pnpm": false, "npm": false, "docker": false, "git": false, "maxGB": 5, "purgeOnRelease": false, "volumes": []})
    );
}

#[test]
fn a_lease_says_which_ports_it_offers_and_is_told_as_json() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warm = place.run(&["warmup", "--json", "--expose", "9090,80", "--expose", "80"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let lease: Value = serde_json::from_str(&warm.out).unwrap();
    for (at, value) in [
        ("/id", json!("static_127-0-0-1")),
        ("/state", json!("ready")),
        ("/ready", json!(true)),
        ("/labels/crabbox_exposed_ports", json!("80-9090")),
    ] {
        assert_eq!(lease.pointer(at), Some(&value), "{at}: {lease}");
    }
    let list = place.run(&["list", "--json"]);
    let list: Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!(
        (&list[0]["status"], &list[0]["labels"]["crabbox_exposed_ports"]),
        (&json!("ready"), &json!("80-9090"))
    );
    let many = "1,2,3,4,5,6,7,8,9,10,11";
    for provider in ["ssh", "firecracker"] {
        fails(
            &place.run(&["warmup", "--provider", provider, "--expose", many]),
            "--expose accepts at most 10 distinct ports per lease\n",
        );
    }
    let bad = place.run(&["warmup", "--expose", "http"]);
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("for flag -expose"), "{}", bad.err);
}
