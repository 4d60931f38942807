use crabbox_core::config::layer::Layer;
use crabbox_core::fault::chain;
use crabbox_core::id::Slug;
use crabbox_testkit::mutate::damaged;
use proptest::prelude::*;

use super::*;
use crate::external::config;

const ID: &str = "cbx_0123456789ab";

fn read(text: &str) -> Result<Request, RequestError> {
    parse(text.as_bytes())
}

fn told(text: &str) -> String {
    crabbox_core::fault::messages(&read(text).unwrap_err()).join(": ")
}

#[test]
fn the_requests_of_the_go_program_are_read() {
    let acquire = read(
        r#"{"protocolVersion":1,"operation":"acquire","config":{"ttl":"2h"},"desired":{"leaseId":"cbx_0123456789ab","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d"},"keep":true,"repo":{"root":"/w/app","name":"app","head":"abc"}}"#,
    )
    .unwrap();
    assert_eq!(acquire.repo, Some("/w/app".into()));
    assert_eq!(acquire.config["ttl"], "2h");
    let desired = External::new(ID, "jade-krill", "crabbox-jade-krill-1a2b3c4d").unwrap();
    assert_eq!(
        acquire.operation,
        Operation::Acquire {
            desired: desired.clone(),
            keep: true
        }
    );
    let resolve = read(
        r#"{"protocolVersion":1,"operation":"resolve","id":" jade-krill ","desired":{"leaseId":"cbx_0123456789ab","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d"},"releaseOnly":true}"#,
    )
    .unwrap();
    assert_eq!(
        resolve.operation,
        Operation::Resolve(Resolve {
            text: "jade-krill".into(),
            known: Some(desired),
            reclaim: false,
            release_only: true
        })
    );
    let touch = read(
        r#"{"protocolVersion":1,"operation":"touch","lease":{"leaseId":"cbx_0123456789ab","labels":{"idle_timeout_secs":"7200"},"ssh":{"user":"x"}},"state":"running"}"#,
    )
    .unwrap();
    assert_eq!(
        touch.operation,
        Operation::Touch {
            lease: LeaseId::parse(ID).unwrap(),
            state: Some(LeaseState::Running),
            idle: Some(Duration::from_hours(2))
        }
    );
    let release = read(
        r#"{"protocolVersion":1,"operation":"release","lease":{"leaseId":"cbx_0123456789ab","cloudId":"c"},"force":true,"expected":{"slug":"s"}}"#,
    )
    .unwrap();
    let Operation::Release(release) = release.operation else {
        panic!("{release:?}");
    };
    assert_eq!(
        (release.fences.slug.as_str(), release.fences.cloud_id.as_str()),
        ("s", "c")
    );
    for (text, operation) in [
        ("doctor", Operation::Doctor),
        ("list", Operation::List),
        ("cleanup", Operation::Cleanup { dry_run: false }),
    ] {
        let request = read(&format!(
            r#"{{"protocolVersion":1,"operation":"{text}","later":{{"a":[1]}},"config":null}}"#
        ));
        assert_eq!(request.unwrap().operation, operation);
    }
}

#[test]
fn what_cannot_be_acted_on_is_told_with_its_place() {
    for (text, message) in [
        ("", "no request: one JSON object is expected on standard input"),
        (" \n", "no request: one JSON object is expected on standard input"),
        (
            "{",
            "the request is not one JSON object: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"{"protocolVersion":1,"protocolVersion":1}"#,
            "the request is not one JSON object: duplicate key",
        ),
        (
            "[]",
            "protocolVersion (none) is not supported: this adapter speaks version 1",
        ),
        (
            r#"{"protocolVersion":2,"operation":7}"#,
            r#"protocolVersion "2" is not supported: this adapter speaks version 1"#,
        ),
        (
            r#"{"protocolVersion":"1","operation":"list"}"#,
            r#"protocolVersion "\"1\"" is not supported: this adapter speaks version 1"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"reboot"}"#,
            r#"unknown operation "reboot": expected one of doctor, acquire, resolve, list, release, touch, cleanup"#,
        ),
        (
            r#"{"protocolVersion":1}"#,
            r#"unknown operation "": expected one of doctor, acquire, resolve, list, release, touch, cleanup"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"list","keep":"yes"}"#,
            "the request does not match version 1 of the protocol: invalid type: string \"yes\", expected a boolean",
        ),
        (
            r#"{"protocolVersion":1,"operation":"acquire"}"#,
            "operation acquire needs desired",
        ),
        (
            r#"{"protocolVersion":1,"operation":"acquire","desired":{"leaseId":"static_box","slug":"a","name":"a"}}"#,
            "desired cannot be used: leaseId must be cbx_ and 12 lowercase hexadecimal digits",
        ),
        (
            r#"{"protocolVersion":1,"operation":"resolve"}"#,
            "operation resolve needs id",
        ),
        (
            r#"{"protocolVersion":1,"operation":"touch"}"#,
            "operation touch needs lease.leaseId",
        ),
        (
            r#"{"protocolVersion":1,"operation":"release","lease":{}}"#,
            "operation release needs lease.leaseId",
        ),
        (
            r#"{"protocolVersion":1,"operation":"release","lease":{"leaseId":"static_box"}}"#,
            r#"lease.leaseId "static_box" cannot be used: expected cbx_ and 12 lowercase hexadecimal digits"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"touch","lease":{"leaseId":"cbx_0123456789ab"},"state":"released"}"#,
            r#"state "released" cannot be used: expected leased, ready, running, active or touched"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"touch","lease":{"leaseId":"cbx_0123456789ab","labels":{"idle_timeout_secs":"-1"}}}"#,
            r#"lease.labels.idle_timeout_secs "-1" cannot be used: expected whole seconds, from 1 to those of a year"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"list","repo":{"root":"w/app"}}"#,
            r#"repo.root "w/app" cannot be used: expected an absolute path"#,
        ),
        (
            r#"{"protocolVersion":1,"operation":"resolve","id":"a\u001b[2Jb"}"#,
            r#"id "a\u{1b}[2Jb" cannot be used: expected at most 256 bytes without control characters"#,
        ),
    ] {
        assert_eq!(told(text), message, "{text}");
    }
}

#[test]
fn a_request_is_bounded_and_so_is_what_is_told_of_it() {
    let long = "x".repeat(BYTES + 1);
    assert!(matches!(read(&long), Err(RequestError::TooLarge)));
    let word = "y".repeat(BYTES / 2);
    let message = told(&format!(r#"{{"protocolVersion":1,"operation":"{word}"}}"#));
    assert!(message.len() < 300 && message.contains("..."), "{message}");
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let message = told(&format!(
        r#"{{"protocolVersion":1,"operation":"list","config":{{"a":{deep}}}}}"#
    ));
    assert!(message.contains("nested deeper than 32 levels"), "{message}");
}

fn samples() -> Vec<Vec<u8>> {
    [
        r#"{"protocolVersion":1,"operation":"acquire","config":{"firecracker":{"cpus":2,"memoryMiB":512},"ttl":"2h"},"desired":{"leaseId":
        "cbx_0123456789ab","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d"},"keep":true,"repo":{"root":"/w/app","head":"0123"}}"#,
        r#"{"protocolVersion":1,"operation":"resolve","id":"jade-krill","releaseOnly":true,"desired":{"leaseId":"cbx_0123456789ab","slug":
        "jade-krill","name":"crabbox-jade-krill-1a2b3c4d"}}"#,
        r#"{"protocolVersion":1,"operation":"touch","state":"running","lease":{"leaseId":"cbx_0123456789ab","labels":{"idle_timeout_secs":
        "1800","keep":"false"},"ssh":{"user":"crabbox","host":"192.168.127.5","port":"22"}}}"#,
        r#"{"protocolVersion":1,"operation":"release","force":true,"lease":{"leaseId":"cbx_0123456789ab","cloudId":"cbx_ba9876543210"},
        "expected":{"leaseId":"cbx_0123456789ab","slug":"jade-krill"}}"#,
        r#"{"protocolVersion":1,"operation":"cleanup","dryRun":true}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

proptest! {
    #[test]
    fn a_damaged_request_is_refused_or_can_be_acted_on(bytes in damaged(samples())) {
        let plain = |text: &str| text.len() <= TEXT_LIMIT && !text.contains(char::is_control);
        match parse(&bytes) {
            Ok(request) => {
                prop_assert!(request.repo.is_none_or(|root| root.is_absolute()));
                match request.operation {
                    Operation::Acquire { desired, .. } => {
                        let mut labels = Labels::new();
                        desired.put(&mut labels);
                        prop_assert_eq!(External::of(&labels), Some(desired.clone()));
                        let here = desired.slug_here();
                        prop_assert!(Slug::requested(&here).is_ok_and(|slug| slug.as_str() == here));
                    }
                    Operation::Touch { state, idle, .. } => {
                        // A touch can neither end a lease nor keep it for ever.
                        prop_assert!(state.is_none_or(|state| state.is_usable() && state != LeaseState::Pooled));
                        prop_assert!(idle.is_none_or(|idle| !idle.is_zero() && idle.as_secs() <= SECONDS_LIMIT));
                    }
                    Operation::Resolve(resolve) => prop_assert!(plain(&resolve.text)),
                    Operation::Release(release) => {
                        prop_assert!(plain(&release.fences.slug) && plain(&release.fences.cloud_id));
                    }
                    Operation::Doctor | Operation::List | Operation::Cleanup { .. } => {}
                }
                if let Ok(file) = config::file(&request.config) {
                    // It is trusted no more than a repository's file.
                    prop_assert_eq!(file.layer, Layer::RepoFile);
                }
            }
            Err(error) => {
                let told = chain(&error);
                prop_assert_eq!(error.kind(), Kind::Usage);
                prop_assert!(told.len() < 1000 && !told.contains(char::is_control), "{told:?}");
            }
        }
    }
}
