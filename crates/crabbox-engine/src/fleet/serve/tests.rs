use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use crabbox_core::config::{ConfigFile, Inputs, resolve};
use crabbox_store::places::Places;

use super::*;

fn engine(root: &Path) -> Engine {
    let places = Places::below(root);
    for (id, slug, owner) in [
        ("cbx_000000000001", "one", r#","owner":"alice""#),
        ("cbx_000000000002", "two", r#","owner":"bob""#),
        ("cbx_000000000003", "three", ""),
    ] {
        let dir = places.leases().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let record = format!(
            r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"{slug}","name":"crabbox-{slug}","vmid":"crabbox-{slug}","provider":"firecracker",
            "guestIP":"192.168.127.5","sshUser":"crabbox","sshPort":"22","pid":4194305,"processStarted":"7","bootID":"b",
            "labels":{{"state":"ready","work_root":"/work/crabbox"{owner}}}}}"#
        );
        std::fs::write(dir.join("metadata.json"), record).unwrap();
    }
    crate::fixture::engine(root)
}

#[expect(clippy::unnecessary_wraps, reason = "it stands for one that may fail")]
fn settings(flags: &[FlagValue]) -> Result<Settings, LeaseError> {
    let resolution = resolve(&Inputs {
        files: &[] as &[ConfigFile],
        environment: &|_| None,
        flags,
        home: Some(Path::new("/h")),
        cwd: Path::new("/"),
        user_file: None,
    });
    Ok(resolution.unwrap().settings)
}

/// The replies to `owner` when the client sends `said`.
fn heard(engine: &Engine, owner: &str, said: &[u8]) -> (Vec<String>, Result<(), ServeError>) {
    let (input, mut to) = std::io::pipe().unwrap();
    let (from, output) = std::io::pipe().unwrap();
    to.write_all(said).unwrap();
    drop(to);
    let interrupts = Interrupts::install().unwrap();
    let serve = Serve {
        engine,
        owner: owner.to_owned(),
        role: Role::Host,
        settings: &settings,
        interrupts: &interrupts,
    };
    let file = |fd: std::os::fd::OwnedFd| File::from(fd);
    let ended = serve.run(file(input.into()), &file(output.into()));
    let lines = BufReader::new(from).lines().map(Result::unwrap).collect();
    (lines, ended)
}

fn ask(verb: &str, lease: &str) -> String {
    format!(r#"{{"protocol":1,"verb":"{verb}","lease":"{lease}","aim":"look","source":"vmm"}}"#) + "\n"
}

#[test]
fn an_owner_sees_what_is_theirs_and_cannot_tell_another_s_lease_from_none() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (lines, ended) = heard(&engine, "alice", b"{\"protocol\":1,\"verb\":\"list\"}\n");
    ended.unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].contains(r#""owner":"alice""#)
            && lines[0].as_bytes().starts_with(super::super::wire::GREETING)
    );
    assert!(lines[1].contains("cbx_000000000001"), "{lines:?}");
    for verb in ["resolve", "touch", "release", "logs", "connect"] {
        let refusal = |name: &str| {
            let (lines, _) = heard(&engine, "alice", ask(verb, name).as_bytes());
            assert!(
                lines[1].contains(r#""reply":"failed","kind":"not_found""#),
                "{lines:?}"
            );
            lines[1].replace(name, "NAME")
        };
        let none = refusal("cbx_00000000000f");
        // By id, slug and name: another owner's lease and the host's own.
        for name in [
            "cbx_000000000002",
            "two",
            "crabbox-two",
            "cbx_000000000003",
            "three",
        ] {
            assert_eq!(refusal(name), none, "{verb} {name}");
        }
    }
    for id in ["cbx_000000000002", "cbx_000000000003"] {
        assert!(engine.places.leases().join(id).join("metadata.json").exists());
    }
}

#[test]
fn what_is_not_served_is_refused_by_name_and_the_conversation_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let acquire = |key: &str, value: &str| {
        format!(r#"{{"protocol":1,"verb":"acquire","key":"ssh-ed25519 x","settings":{{"{key}":"{value}"}}}}"#)
    };
    let said = [
        r#"{"protocol":1,"verb":"freeze"}"#.to_owned(),
        r#"{"protocol":9,"verb":"list"}"#.to_owned(),
        r#"{"protocol":1,"verb":"claimed"}"#.to_owned(),
        acquire("firecracker.binary", "/tmp/evil"),
        acquire("firecracker.image", "x"),
        acquire("firecracker.cpus", "2"),
        "garbage".to_owned(),
        r#"{"protocol":1,"verb":"list"}"#.to_owned(),
    ];
    let (lines, ended) = heard(&engine, "alice", (said.join("\n") + "\n").as_bytes());
    ended.unwrap();
    for (line, word) in lines[1..].iter().zip([
        "freeze",
        "protocol version 9",
        "no lease is waiting",
        "a client cannot set firecracker.binary",
        "a client cannot set firecracker.image",
        "public key cannot be used",
        "malformed",
    ]) {
        assert!(
            line.contains(r#""reply":"failed""#) && line.contains(word),
            "{word}: {line}"
        );
    }
    assert_eq!(lines.len(), 1 + 7 + 2, "{lines:?}");
}

#[test]
fn a_line_without_an_end_and_an_owner_without_a_name_end_the_conversation() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (lines, ended) = heard(&engine, "alice", b"{\"protocol\":1");
    assert!(
        matches!(ended, Err(ServeError::Line(LineError::Cut { .. }))),
        "{ended:?}"
    );
    assert!(lines[1].contains("disconnected"), "{lines:?}");
    let (lines, ended) = heard(&engine, "al ice", b"");
    assert!(
        matches!(ended, Err(ServeError::Owner(_))) && lines.is_empty(),
        "{lines:?}"
    );
}

#[test]
fn a_use_puts_a_lease_into_no_state_but_ready_and_running() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let touch = |state: &str| {
        let said = format!(
            r#"{{"protocol":1,"verb":"touch","lease":"cbx_000000000001","state":"{state}","idle_seconds":60}}"#
        );
        heard(&engine, "alice", (said + "\n").as_bytes()).0[1].clone()
    };
    for state in [
        "released",
        "pooled",
        "provisioning",
        "deleting",
        "",
        "whatever",
        "Ready",
    ] {
        let line = touch(state);
        assert!(
            line.contains(r#""reply":"failed","kind":"usage""#) && line.contains("cannot set the state"),
            "{line}"
        );
    }
    for state in ["running", "ready"] {
        let line = touch(state);
        assert!(
            line.contains(r#""reply":"labels""#) && line.contains(&format!(r#""state":"{state}""#)),
            "{line}"
        );
    }
}

#[test]
fn nothing_is_not_found_while_a_record_cannot_be_read() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let damaged = engine.places.leases().join("cbx_000000000004");
    std::fs::create_dir_all(&damaged).unwrap();
    std::fs::write(damaged.join("metadata.json"), "{").unwrap();
    let refusal = |name: &str| {
        let (lines, _) = heard(&engine, "alice", ask("release", name).as_bytes());
        assert!(
            lines[1].contains(r#""kind":"unavailable""#) && lines[1].contains("are unreadable"),
            "{lines:?}"
        );
        lines[1].replace(name, "NAME")
    };
    // Another owner's lease, the damaged one and a missing one are refused alike.
    let none = refusal("cbx_00000000000f");
    assert_eq!(refusal("cbx_000000000004"), none);
    assert_eq!(refusal("cbx_000000000002"), none);
    // A lease that is found for certain is still reported.
    let (lines, _) = heard(&engine, "alice", ask("resolve", "one").as_bytes());
    assert!(lines[1].contains(r#""reply":"lease""#), "{lines:?}");
}

#[test]
fn a_work_root_that_no_guest_takes_is_refused_before_a_machine_is_made() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let key = crabbox_ssh::keys::generate("test").unwrap().public_openssh;
    let long = "/".to_owned() + &"x".repeat(1024);
    for path in ["", "work", "/", "//", "/.", "/work/.", "/work/../etc", &long] {
        let said = serde_json::json!({
            "protocol": 1, "verb": "acquire", "key": key, "settings": { "firecracker.workRoot": path },
        });
        let (lines, _) = heard(&engine, "alice", (said.to_string() + "\n").as_bytes());
        assert!(
            lines[1].contains(r#""reply":"failed","kind":"usage""#)
                && lines[1].contains("firecracker.workRoot"),
            "{path:?}: {lines:?}"
        );
    }
}
