//! The bytes of every message, which other versions must be able to read, and the messages that no honest
//! peer sends.

use crabbox_core::fault;
use crabbox_testkit::mutate;
use proptest::prelude::*;

use super::*;

const ASKS: [&str; 11] = [
    r#"{"protocol":1,"verb":"acquire","key":"ssh-ed25519 AAAA","settings":{"firecracker.cpus":"2"},"slug":"jade-krill","keep":true}"#,
    r#"{"protocol":1,"verb":"claimed"}"#,
    r#"{"protocol":1,"verb":"resolve","lease":"jade-krill","aim":"use"}"#,
    r#"{"protocol":1,"verb":"list"}"#,
    r#"{"protocol":1,"verb":"touch","lease":"cbx_0123456789ab","state":"running","idle_seconds":60}"#,
    r#"{"protocol":1,"verb":"release","lease":"cbx_0123456789ab","discard":true}"#,
    r#"{"protocol":1,"verb":"logs","lease":"cbx_0123456789ab","source":"console"}"#,
    r#"{"protocol":1,"verb":"connect","lease":"cbx_0123456789ab"}"#,
    r#"{"protocol":1,"verb":"enter","node":"h1"}"#,
    r#"{"protocol":1,"verb":"fate","lease":"cbx_0123456789ab","job":7}"#,
    r#"{"protocol":1,"verb":"speak_for","owner":"alice"}"#,
];

const LEASE: &str = r#"{"reply":"lease","id":"cbx_0123456789ab","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d","server_type":"microvm","state":"ready","labels":{"owner":"alice"},"user":"crabbox","port":22,"work_root":"/work/crabbox","has_address":true,"unjailed":false,"capacity":null}"#;

#[test]
fn what_begins_somebody_s_work_is_not_begun_after_an_interruption_and_all_else_is_asked() {
    let begins = |line: &str| FleetRequest::read(line.as_bytes()).unwrap().begins_work();
    let told = ASKS.map(begins);
    // acquire, claimed, resolve, list, touch, release, logs, connect, enter, fate, speak_for.
    assert_eq!(
        told,
        [
            true, false, true, false, true, false, false, true, true, false, false
        ]
    );
    for (line, expected) in [
        (r#"{"protocol":1,"verb":"resolve","lease":"a","aim":"use"}"#, true),
        (
            r#"{"protocol":1,"verb":"resolve","lease":"a","aim":"look"}"#,
            false,
        ),
        (
            r#"{"protocol":1,"verb":"touch","lease":"a","state":"running"}"#,
            true,
        ),
        (
            r#"{"protocol":1,"verb":"touch","lease":"a","state":"ready"}"#,
            false,
        ),
        (r#"{"protocol":1,"verb":"touch","lease":"a"}"#, false),
    ] {
        assert_eq!(begins(line), expected, "{line}");
    }
}

#[test]
fn every_request_has_its_bytes_and_its_verb_is_known() {
    for (line, verb) in ASKS.into_iter().zip(VERBS) {
        let ask = FleetRequest::read(line.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(ask.line(1).unwrap()).unwrap(),
            format!("{line}\n")
        );
        assert!(line.contains(&format!(r#""verb":"{verb}""#)), "{line}");
    }
    // Fields that a gateway adds, and one that a client with queue support sets.
    let bound = r#"{"protocol":1,"verb":"acquire","key":"k","settings":{},"slug":null,"keep":false,"queue":true,"job":{"id":7,"lease":"cbx_0123456789ab","node":"h1","nonce":"n","seconds":60}}"#;
    let ask = FleetRequest::read(bound.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(ask.line(1).unwrap()).unwrap(),
        format!("{bound}\n")
    );
    let refused = FleetRequest::read(bound.replace("cbx_0123456789ab", "../x").as_bytes()).unwrap_err();
    assert!(
        fault::chain(&refused).contains("is not a lease id"),
        "{refused:?}"
    );
    // Another program's names are validated when parsed.
    let named = |slug: &str| {
        format!(
            r#"{{"protocol":1,"verb":"acquire","key":"k","external":{{"lease":"cbx_0123456789ab","slug":"{slug}","name":"n"}}}}"#
        )
    };
    let ask = FleetRequest::read(named("jade-krill").as_bytes()).unwrap();
    assert!(matches!(
        ask,
        FleetRequest::Acquire {
            external: Some(_),
            ..
        }
    ));
    let refused = FleetRequest::read(named("../krill").as_bytes()).unwrap_err();
    assert!(fault::chain(&refused).contains("slug must be"), "{refused:?}");
    // Optional fields may be left out, and a later client's fields are ignored.
    let short = br#"{"protocol":1,"verb":"acquire","key":"k","colour":"blue"}"#;
    assert!(
        matches!(FleetRequest::read(short), Ok(FleetRequest::Acquire { slug: None, keep: false, settings, .. }) if settings.is_empty())
    );
}

#[test]
fn a_later_verb_is_refused_by_its_name_and_another_version_by_its_number() {
    let read = |line: &str| FleetRequest::read(line.as_bytes()).unwrap_err();
    let later = read(r#"{"protocol":1,"verb":"freeze","lease":7}"#);
    assert!(
        later.to_string().contains("\"freeze\"") && later.kind() == Kind::Usage,
        "{later}"
    );
    for version in [0, 2, 99] {
        let error = read(&format!(r#"{{"protocol":{version},"verb":"list"}}"#));
        assert!(error.to_string().contains(&version.to_string()), "{error}");
        assert!(!error.hints().is_empty());
    }
    assert!(matches!(read("{}"), FleetRequestError::Headless));
    assert!(matches!(read("[1]"), FleetRequestError::Malformed(_)));
}

#[test]
fn the_newest_version_of_both_is_spoken() {
    let span = |least, most| Span { least, most };
    for (ours, theirs, common) in [
        (span(1, 1), span(1, 1), Some(1)),
        (span(1, 2), span(1, 1), Some(1)),
        (span(1, 2), span(2, 3), Some(2)),
        (span(1, 2), span(3, 4), None),
        (span(3, 4), span(1, 2), None),
    ] {
        assert_eq!(ours.common(theirs), common);
    }
}

#[test]
fn a_lease_has_its_bytes_and_what_none_can_have_is_refused() {
    let reply: Reply = serde_json::from_str(LEASE).unwrap();
    assert_eq!(serde_json::to_string(&reply).unwrap(), LEASE);
    for (good, bad) in [
        ("cbx_0123456789ab", "../../etc"),
        ("\"jade-krill\"", r#""a\nb""#),
        ("\"crabbox\",\"port\"", r#""-oProxyCommand=x","port""#),
        ("\"crabbox\",\"port\"", r#""","port""#),
        ("\"crabbox\",\"port\"", r#""a b","port""#),
        ("22", "0"),
        ("/work/crabbox", "work"),
        ("/work/crabbox", "/work/../../root"),
        ("/work/crabbox", r"/work\u001b[2J"),
        ("\"ready\"", r#""\u001b]0;x""#),
        ("\"alice\"", r#""a\u0007""#),
    ] {
        let line = LEASE.replacen(good, bad, 1);
        assert_ne!(line, LEASE, "{good}");
        let error = serde_json::from_str::<Reply>(&line).unwrap_err();
        assert!(error.to_string().contains(" of a lease: "), "{bad}: {error}");
    }
}

#[test]
fn a_reply_has_no_more_stages_and_no_longer_names_than_a_lease_can_have() {
    let stage = |name: &str| {
        let line = serde_json::json!({"reply": "stage", "name": name, "micros": 1, "whose": "ours"});
        serde_json::from_value::<Reply>(line).unwrap().judged()
    };
    assert!(stage("boot").is_ok());
    let field = |judged: Result<Reply, InvalidValue>| judged.unwrap_err().field;
    assert_eq!(field(stage(&"x".repeat(TEXT + 1))), "stage");
    assert_eq!(field(stage("\u{1b}[2J")), "stage");
    let ready = |count: usize, name: &str, key: &str| {
        let lease: serde_json::Value = serde_json::from_str(LEASE).unwrap();
        let line = serde_json::json!({
            "reply": "ready", "lease": lease, "host_key": key, "says_ready": true, "seconds": 1,
            "guest_stages": vec![(name, 1); count],
        });
        serde_json::from_value::<Reply>(line).unwrap().judged()
    };
    assert!(ready(STAGES, "init", "ssh-ed25519 AAAA").is_ok());
    assert_eq!(field(ready(STAGES + 1, "init", "k")), "number of stages");
    assert_eq!(field(ready(1, &"x".repeat(TEXT + 1), "k")), "stage");
    assert_eq!(field(ready(1, "init", "k\nother")), "host key");
    assert_eq!(field(ready(1, "init", &"k".repeat(HOST_KEY + 1))), "host key");
}

#[test]
fn no_exit_code_crosses() {
    assert_eq!(crossing(Kind::Passthrough(0)), Kind::Unavailable);
    assert_eq!(crossing(Kind::NotFound), Kind::NotFound);
}

proptest! {
    #[test]
    fn no_damage_to_a_line_is_more_than_an_error(
        ask in mutate::damaged(ASKS.map(|line| line.as_bytes().to_vec()).to_vec()),
        reply in mutate::damaged(vec![LEASE.as_bytes().to_vec()]),
    ) {
        if let Ok(ask) = FleetRequest::read(&ask) {
            prop_assert!(ask.line(1).is_ok());
        }
        if let Ok(Reply::Lease(lease)) = serde_json::from_slice::<Reply>(&reply) {
            prop_assert!(!lease.user.starts_with('-') && lease.work_root.starts_with('/'));
            prop_assert!(!lease.slug.chars().any(char::is_control));
        }
    }
}
