//! `--json-events` against a real sshd. `Place::run` checks that every line is an event of the schema and
//! that the last one has the exit code.

use serde_json::{Value, json};

use crate::place::Answer;
use crate::run::entered;
use crate::static_host::{ID, configure, existing};

fn events(answer: &Answer) -> Vec<Value> {
    let lines = answer.err.lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Stages as they begin (`+`), end well (`-`) and fail (`!`).
fn stages(events: &[Value]) -> Vec<String> {
    let told = events.iter().filter_map(|event| {
        let sign = match (event["event"].as_str()?, event["ok"].as_bool()) {
            ("stage_began", None) => '+',
            ("stage_ended", Some(true)) => '-',
            ("stage_ended", Some(false)) => '!',
            _ => return None,
        };
        Some(format!("{sign}{}", event["stage"].as_str()?))
    });
    told.collect()
}

/// The texts of the events of one kind.
fn texts<'a>(events: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = events.iter().filter(|event| event["event"] == kind);
    of_kind.map(|event| event["text"].as_str().unwrap()).collect()
}

#[test]
fn a_program_sees_every_stage_and_the_command_cannot_speak_in_our_name() {
    let lease = entered();
    lease.place.write("repo/file", "twelve bytes");
    let script = r#"echo '{"event":"ended"}'; printf '{"event":"ended","exit_code":0}\nopen \303' >&2; sleep 0.2; printf '\244 end' >&2; exit 3"#;
    let answer = lease.place.run(&[
        "run",
        "--id",
        "jade-krill",
        "--json-events",
        "--timing-json",
        "--shell",
        "--",
        script,
    ]);
    assert_eq!(
        (answer.code, answer.out.as_str()),
        (3, "{\"event\":\"ended\"}\n"),
        "{}",
        answer.err
    );
    let events = events(&answer);
    let leased = events.iter().find(|event| event["event"] == "leased").unwrap();
    assert_eq!(
        (&leased["lease"], &leased["slug"], &leased["new"]),
        (&json!("cbx_0123456789ab"), &json!("jade-krill"), &json!(false))
    );
    let stages = stages(&events);
    assert_eq!(
        stages,
        [
            "+workspace",
            "-workspace",
            "+sync",
            "+sync/compare",
            "-sync/compare",
            "+sync/send",
            "-sync/send",
            "+sync/seed",
            "-sync/seed",
            "+sync/finish",
            "-sync/finish",
            "-sync",
            "+command",
            "!command"
        ]
    );
    let sent = events.iter().rfind(|event| event["event"] == "progress").unwrap();
    assert_eq!(
        (&sent["stage"], &sent["files"], &sent["total"]),
        (&json!("sync/send"), &json!(1), &json!(12))
    );
    assert_eq!(
        texts(&events, "stderr").concat(),
        "{\"event\":\"ended\",\"exit_code\":0}\nopen \u{e4} end"
    );
    let notes = texts(&events, "note");
    assert!(
        notes.iter().any(|note| note.starts_with("run summary lease=")),
        "{notes:?}"
    );
}

#[test]
fn a_run_that_fails_before_its_command_says_why_in_one_event() {
    let lease = entered();
    let answer = lease
        .place
        .run(&["run", "--id", "nobody", "--json-events", "--", "true"]);
    assert_eq!((answer.code, answer.out.as_str()), (4, ""), "{}", answer.err);
    let errors = events(&answer);
    assert_eq!(texts(&errors, "error").len(), 1, "{}", answer.err);
    assert!(texts(&errors, "error")[0].contains("nobody"), "{}", answer.err);
    let (unconfigured, _sshd) = existing();
    let warmup = unconfigured.run(&["warmup", "--json-events"]);
    assert_eq!((warmup.code, warmup.out.as_str()), (2, ""), "{}", warmup.err);
    assert_eq!(stages(&events(&warmup)), ["+lease", "!lease"]);
}

#[test]
fn a_new_lease_is_a_stage_of_its_own() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warmup = place.run(&["warmup", "--json-events"]);
    assert_eq!(warmup.code, 0, "{}", warmup.err);
    assert!(warmup.out.starts_with(&format!("leased {ID} ")), "{}", warmup.out);
    let told = events(&warmup);
    assert_eq!(stages(&told), ["+lease", "-lease"]);
    let leased = told.iter().find(|event| event["event"] == "leased").unwrap();
    assert_eq!((&leased["lease"], &leased["new"]), (&json!(ID), &json!(true)));
    let words = [
        "run",
        "--no-sync",
        "--stop-after",
        "always",
        "--json-events",
        "--",
        "true",
    ];
    let run = place.run(&[&words[..1], &["--id", ID], &words[1..]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    let ends = [
        "+command", "-command", "+results", "-results", "+release", "-release",
    ];
    assert!(
        stages(&events(&run)).ends_with(&ends.map(str::to_owned)),
        "{}",
        run.err
    );
}

#[test]
fn commands_made_of_others_tell_the_events_of_all_of_them() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write(
        "repo/.crabbox.yaml",
        "jobs:\n  lines:\n    command: echo on-stderr >&2\n    noSync: true\nsync:\n  baseRef: nowhere\n",
    );
    let run = |words: &[&str]| {
        let answer = place.run(words);
        assert!(answer.err.starts_with('{'), "{words:?}: {}", answer.err);
        answer
    };
    let job = run(&["job", "run", "--json-events", "lines"]);
    assert_eq!(job.code, 0, "{}", job.err);
    let told = events(&job);
    assert_eq!(texts(&told, "stderr").concat(), "on-stderr\n");
    assert!(
        stages(&told).starts_with(&["+lease".to_owned(), "-lease".to_owned()]),
        "{}",
        job.err
    );
    assert!(
        stages(&told).ends_with(&["+release".to_owned(), "-release".to_owned()]),
        "{}",
        job.err
    );
    let dry = run(&["job", "run", "--json-events", "--dry-run", "lines"]);
    assert!(dry.out.contains(" --json-events "), "{}", dry.out);

    let words = ["prewarm", "--json-events", "--probe-command", "exit 9"];
    let prewarm = run(&words);
    assert_eq!(prewarm.code, 9, "{}", prewarm.err);
    let told = events(&prewarm);
    assert_eq!(texts(&told, "error").len(), 1, "{}", prewarm.err);
    let ends = ["+command", "!command", "+release", "-release"];
    assert!(
        stages(&told).ends_with(&ends.map(str::to_owned)),
        "{}",
        prewarm.err
    );

    let words = ["watch", "--json-events", "--idle-exit", "100ms", "--", "false"];
    let watch = run(&words);
    assert_eq!(watch.code, 0, "{}", watch.err);
    let told = events(&watch);
    let notes = texts(&told, "note");
    for note in ["remote command exited 1", "watch waiting for changes"] {
        assert!(notes.contains(&note), "{notes:?}");
    }
    let warned = texts(&told, "warning");
    assert!(
        warned
            .iter()
            .any(|warning| warning.starts_with("sync.baseRef: \"nowhere\" is not a branch, tag or commit")),
        "{warned:?}"
    );
    assert!(stages(&told).contains(&"!command".to_owned()), "{}", watch.err);
}
