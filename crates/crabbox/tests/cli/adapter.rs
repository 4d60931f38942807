//! `adapter external` without a host to lease on: how requests that cannot be carried out are answered, and
//! which leases belong to which program.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Stdio;

use crabbox_testkit::schemas;
use serde_json::{Value, json};

use crate::place::Place;
use crate::world::{Machine, Record, claim, read_claim, record};

/// The other program's id of the lease.
const THEIRS: &str = "cbx_0123456789ab";
/// This program's id of it.
const OURS: &str = "cbx_aaaaaaaaaaaa";
/// A lease made here by hand.
const NATIVE: &str = "cbx_bbbbbbbbbbbb";
const NAME: &str = "crabbox-jade-krill-1a2b3c4d";

/// The outcome of a request.
struct Said {
    code: i32,
    answer: Value,
    err: String,
}

impl Said {
    /// The error of the answer, after checking that the answer has nothing else, that standard error says the
    /// same, and that the exit code is `code`.
    #[track_caller]
    fn fails(self, code: i32) -> String {
        let error = self.answer["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(self.code, code, "{} {}", self.answer, self.err);
        assert_eq!(self.answer, json!({"protocolVersion": 1, "error": error}));
        let first = error.split(": ").next().unwrap();
        assert!(
            !error.is_empty() && self.err.contains(first),
            "{error} / {}",
            self.err
        );
        error
    }

    /// The answer, after checking that the request succeeded.
    #[track_caller]
    fn works(self) -> Value {
        assert_eq!(self.code, 0, "{} {}", self.answer, self.err);
        assert_eq!(self.answer["protocolVersion"], 1);
        assert_eq!(self.answer.get("error"), None);
        self.answer
    }
}

/// A place shared with the Go program: its configuration, its variable.
fn place() -> Place {
    let place = Place::new();
    let run = place.path("run");
    fs::DirBuilder::new().mode(0o700).create(&run).unwrap();
    place.write(
        "home/.config/crabbox/config.yaml",
        "provider: external\nexternal:\n  command: crabbox\n  args: [adapter, external]\n",
    );
    place.write("repo/.crabbox.yaml", "provider: external\nttl: [what]\n");
    place
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("XDG_RUNTIME_DIR", run)
        .env("CRABBOX_PROVIDER", "external")
}

#[track_caller]
fn say(place: &Place, bytes: &[u8], words: &[&str]) -> Said {
    let mut all = vec!["adapter", "external"];
    all.extend(words);
    let mut child = place
        .command(&all)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may exit before it has read everything.
    child.stdin.take().unwrap().write_all(bytes).ok();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let (line, rest) = out.split_once('\n').expect("one line");
    assert_eq!(rest, "", "one document and nothing else");
    let answer = serde_json::from_str(line).unwrap();
    assert_eq!(schemas::problems("adapter-external", &answer), [""; 0], "{line}");
    Said {
        code: output.status.code().unwrap(),
        answer,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn ask(place: &Place, mut request: Value) -> Said {
    request["protocolVersion"] = 1.into();
    say(place, &serde_json::to_vec(&request).unwrap(), &[])
}

fn desired() -> Value {
    json!({"leaseId": THEIRS, "slug": "jade-krill", "name": NAME})
}

/// A lease made by the other program.
fn made() -> Record {
    Record::new(OURS, "cbx-0123456789ab")
        .label("external_lease", THEIRS)
        .label("external_slug", "jade-krill")
        .label("external_name", NAME)
}

#[test]
fn a_request_that_cannot_be_acted_on_is_answered_with_an_error_and_an_exit_code() {
    let place = place();
    let big = format!(
        r#"{{"protocolVersion":1,"operation":"list","id":"{}"}}"#,
        "x".repeat(1 << 20)
    );
    for (bytes, told) in [
        ("", "no request"),
        ("\n\n", "no request"),
        (r#"{"protocolVersion":1,"operation":"#, "not one JSON object: EOF"),
        (
            r#"{"protocolVersion":1,"operation":"list"} {"protocolVersion":1,"operation":"list"}"#,
            "not one JSON object: trailing characters",
        ),
        (
            r#"{"operation":"list"}"#,
            "protocolVersion (none) is not supported",
        ),
        (
            r#"{"protocolVersion":2,"operation":"list"}"#,
            "protocolVersion \"2\" is not supported",
        ),
        (
            r#"{"protocolVersion":1,"operation":"format"}"#,
            "unknown operation \"format\"",
        ),
        (
            r#"{"protocolVersion":1,"operation":"list","operation":"list"}"#,
            "duplicate key",
        ),
        (
            r#"{"protocolVersion":1,"operation":"acquire","desired":{"leaseId":"static_box"}}"#,
            "leaseId must be cbx_",
        ),
        (&big, "larger than 1048576 bytes"),
    ] {
        let error = say(&place, bytes.as_bytes(), &[]).fails(2);
        assert!(error.contains(told), "{error}");
    }
    let binary = say(&place, b"\xff\xfe\x00", &[]).fails(2);
    assert!(binary.contains("not one JSON object"), "{binary}");
}

#[test]
fn another_host_or_provider_is_refused_and_a_repository_is_not_believed_about_it() {
    let place = place();
    let acquire = |config: Value| {
        ask(
            &place,
            json!({"operation": "acquire", "desired": desired(), "config": config}),
        )
        .fails(2)
    };
    let told = acquire(json!({"firecracker": {"kernel": "/evil"}}));
    assert!(
        told.contains("external.config:3:") && told.contains("firecracker.kernel"),
        "{told}"
    );
    let told = acquire(json!({"sync": {"delete": false}}));
    assert!(told.contains("external.config cannot have \"sync\""), "{told}");
    // An unreadable repository file only blocks a new lease.
    let told = acquire(json!({}));
    assert!(told.contains(".crabbox.yaml") && told.contains("ttl"), "{told}");
    let list = br#"{"protocolVersion":1,"operation":"list","config":{"firecracker":{"kernel":"/evil"}}}"#;
    assert_eq!(say(&place, list, &[]).works()["leases"], json!([]));
    let told = say(&place, list, &["--provider", "ssh"]).fails(2);
    assert!(told.contains("provider=ssh makes no machines"), "{told}");
}

#[test]
fn only_leases_that_were_made_through_it_are_seen_and_under_the_other_program_s_names() {
    let place = place();
    let machine = Machine::start();
    made().on(&machine).write(&place);
    Record::new(NATIVE, "amber-crab").on(&machine).write(&place);
    let answer = ask(&place, json!({"operation": "list", "all": true, "refresh": true})).works();
    let [lease] = answer["leases"].as_array().unwrap().as_slice() else {
        panic!("{answer}");
    };
    assert_eq!(
        [
            &lease["leaseId"],
            &lease["slug"],
            &lease["name"],
            &lease["cloudId"],
            &lease["status"]
        ],
        [THEIRS, "jade-krill", NAME, OURS, "ready"]
    );
    assert_eq!(lease["labels"]["idle_timeout_secs"], "1800");
    assert_eq!(lease["labels"].get("slug"), None, "ours would stand for theirs");
    assert_eq!(lease["ssh"]["user"], "crabbox");
    assert_eq!(
        (&lease["ssh"]["host"], &lease["ssh"]["port"]),
        (&json!("127.0.0.1"), &json!("1"))
    );
    let key = lease["ssh"]["key"].as_str().unwrap();
    assert!(key.ends_with(&format!("/{OURS}/id_ed25519")), "{key}");
    for id in [THEIRS, OURS, "jade-krill", "Jade Krill", NAME] {
        let found = ask(&place, json!({"operation": "resolve", "id": id})).works();
        assert_eq!(found["lease"]["leaseId"], THEIRS, "{id}");
        assert_eq!(found["lease"]["ssh"], lease["ssh"], "{id}");
    }
    for (id, told) in [
        (NATIVE, "was not made through the adapter"),
        ("amber-crab", "lease not found: amber-crab"),
        ("cbx_cccccccccccc", "lease not found"),
        ("static_box", "lease not found"),
    ] {
        let error = ask(&place, json!({"operation": "resolve", "id": id})).fails(4);
        assert!(error.contains(told), "{error}");
    }
    let changed = json!({"leaseId": THEIRS, "slug": "other", "name": NAME});
    let error = ask(
        &place,
        json!({"operation": "resolve", "id": NAME, "desired": changed}),
    )
    .fails(4);
    assert!(
        error.contains("expected slug=other, found slug=jade-krill"),
        "{error}"
    );
}

#[test]
fn a_lease_that_is_gone_or_ended_is_told_so_and_forgotten_when_it_is_given_back() {
    let place = place();
    let gone = json!({"operation": "resolve", "id": NAME, "desired": desired()});
    assert!(ask(&place, gone.clone()).fails(4).contains(THEIRS));
    let mut only = gone.clone();
    only["releaseOnly"] = true.into();
    assert_eq!(
        ask(&place, only.clone()).works()["lease"],
        json!({"leaseId": THEIRS, "slug": "jade-krill", "name": NAME, "status": "released"})
    );
    let touch = json!({"operation": "touch", "lease": {"leaseId": THEIRS}, "state": "ready"});
    assert!(ask(&place, touch.clone()).fails(4).contains(THEIRS));
    let release = json!({"operation": "release", "lease": {"leaseId": THEIRS, "name": NAME}, "force": true});
    let message = ask(&place, release.clone()).works()["message"].clone();
    assert_eq!(message, format!("lease {THEIRS} is gone already"));
    // Its machine is dead.
    let dir = made().write(&place);
    claim(&place, OURS, "cbx-0123456789ab", "firecracker");
    assert!(ask(&place, gone).fails(5).contains("state=stopped"));
    assert!(ask(&place, touch).fails(5).contains("state=stopped"));
    let acquire = json!({"operation": "acquire", "desired": desired()});
    place.write("repo/.crabbox.yaml", "");
    assert!(ask(&place, acquire).fails(5).contains("has ended"));
    let told = ask(&place, json!({"operation": "list"})).works();
    assert_eq!(told["leases"][0]["status"], "stopped");
    assert_eq!(ask(&place, only).works()["lease"]["cloudId"], OURS);
    ask(&place, release.clone()).works();
    assert!(!dir.exists());
    ask(&place, release).works();
}

#[test]
fn a_touch_keeps_a_lease_as_long_as_the_other_program_says_and_says_nothing_of_its_end() {
    let place = place();
    let machine = Machine::start();
    made().on(&machine).write(&place);
    claim(&place, OURS, "cbx-0123456789ab", "firecracker");
    let touch = |state: &str, idle: &str| {
        ask(
            &place,
            json!({"operation": "touch", "state": state,
                   "lease": {"leaseId": THEIRS, "labels": {"idle_timeout_secs": idle, "state": "released"}}}),
        )
    };
    assert_eq!(touch("running", "7200").works(), json!({"protocolVersion": 1}));
    let labels = record(&place, OURS)["labels"].clone();
    assert_eq!(
        (&labels["state"], &labels["idle_timeout_secs"]),
        (&json!("running"), &json!("7200"))
    );
    assert_eq!(read_claim(&place, OURS)["idleTimeoutSeconds"], 7200);
    for (state, idle) in [
        ("released", "1"),
        ("expired", "1"),
        ("ready", "0"),
        ("ready", "x"),
    ] {
        touch(state, idle).fails(2);
    }
    assert_eq!(record(&place, OURS)["labels"], labels);
}

#[test]
fn nothing_is_given_back_that_is_not_the_lease_that_is_meant() {
    let place = place();
    let machine = Machine::start();
    let dir = made().write(&place);
    let native = Record::new(NATIVE, "amber-crab").on(&machine).write(&place);
    for (lease, expected, told) in [
        (
            json!({"leaseId": NATIVE}),
            json!(null),
            "was not made through the adapter",
        ),
        (
            json!({"leaseId": THEIRS, "cloudId": NATIVE}),
            json!(null),
            "expected cloudId=cbx_bbbbbbbbbbbb",
        ),
        (
            json!({"leaseId": THEIRS}),
            json!({"slug": "amber-crab"}),
            "expected slug=amber-crab",
        ),
        (
            json!({"leaseId": THEIRS}),
            json!({"leaseId": NATIVE}),
            "expected leaseId=",
        ),
        (
            json!({"leaseId": THEIRS}),
            json!({"attemptLeaseId": NATIVE}),
            "expected attemptLeaseId=",
        ),
    ] {
        let error = ask(
            &place,
            json!({"operation": "release", "lease": lease, "expected": expected, "force": true}),
        )
        .fails(4);
        assert!(error.contains(told), "{error}");
    }
    ask(
        &place,
        json!({"operation": "release", "lease": {"leaseId": "static_box"}}),
    )
    .fails(2);
    assert!(dir.exists() && native.exists());
    let all = json!({"leaseId": THEIRS, "attemptLeaseId": THEIRS, "slug": "jade-krill", "cloudId": OURS});
    ask(
        &place,
        json!({"operation": "release", "lease": {"leaseId": THEIRS, "cloudId": OURS}, "expected": all}),
    )
    .works();
    assert!(!dir.exists() && native.exists());
}

#[test]
fn a_lease_whose_record_cannot_be_read_is_not_forgotten() {
    let place = place();
    let dir = made().write(&place);
    claim(&place, OURS, "cbx-0123456789ab", "firecracker");
    let path = place
        .path("home/.config/crabbox/state/claims")
        .join(format!("{OURS}.json"));
    let mut standing = read_claim(&place, OURS);
    standing["labels"] = record(&place, OURS)["labels"].clone();
    fs::write(path, serde_json::to_vec(&standing).unwrap()).unwrap();
    fs::write(dir.join("metadata.json"), "{").unwrap();
    let told = ask(&place, json!({"operation": "list"})).works();
    assert_eq!(told["leases"][0]["leaseId"], THEIRS);
    assert_eq!(told["leases"][0]["status"], "unreadable");
    let resolve = json!({"operation": "resolve", "id": THEIRS});
    assert!(ask(&place, resolve).fails(2).contains(OURS));
}

#[test]
fn cleanup_says_what_it_did_and_the_doctor_what_is_wrong() {
    let place = place();
    let dir = made().write(&place);
    let dry = ask(&place, json!({"operation": "cleanup", "dryRun": true}));
    assert!(dry.err.contains("would remove firecracker"), "{}", dry.err);
    assert_eq!(dry.works()["message"], "dry_run=true removed=1 kept=0 failed=0");
    assert!(dir.exists());
    let done = ask(&place, json!({"operation": "cleanup"})).works();
    assert_eq!(done["message"], "dry_run=false removed=1 kept=0 failed=0");
    assert!(!dir.exists());
    place.write("repo/.crabbox.yaml", "");
    let doctor = say(
        &place,
        br#"{"protocolVersion":1,"operation":"doctor"}"#,
        &["--firecracker-binary", "/nonexistent/firecracker"],
    );
    let error = doctor.fails(1);
    assert!(
        error.starts_with("this host cannot lease machines: ") && error.contains("binary: "),
        "{error}"
    );
}
