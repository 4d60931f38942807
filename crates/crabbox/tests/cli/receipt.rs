//! Signed receipts of runs: written by `run --attest`, checked by `verify`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crabbox_host::digest;
use serde_json::Value;

use crate::place::Place;
use crate::run::entered;

/// A receipt written by hand after the Go program's format and signed by OpenSSL.
const SIGNED_ELSEWHERE: &str = include_str!("receipt-openssl.json");

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_leaves_a_receipt_that_verifies_until_a_letter_of_it_is_changed() {
    let lease = entered();
    let done = lease.script(
        &["--attest", "out/r.json", "--timing-json"],
        "echo '<a>'; echo & >&2; wait",
    );
    assert_eq!(done.code, 0, "{}", done.err);
    let file = lease.place.path("repo/out/r.json");
    let bytes = file.metadata().unwrap().len();
    assert!(
        done.err
            .contains(&format!("artifact kind=receipt path=out/r.json bytes={bytes}\n")),
        "{}",
        done.err
    );
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    let receipt = read(&file);
    for (name, value) in [
        ("provider", "firecracker"),
        ("lease_id", "cbx_0123456789ab"),
        ("slug", "jade-krill"),
        ("command", "'echo '\\''<a>'\\''; echo & >&2; wait'"),
    ] {
        assert_eq!(receipt[name], value, "{receipt}");
    }
    let timing: Value = serde_json::from_str(done.err.lines().last().unwrap()).unwrap();
    assert_eq!(
        (
            &receipt["schema_version"],
            &receipt["exit_code"],
            &receipt["run_id"]
        ),
        (&1.into(), &0.into(), &timing["runId"])
    );
    assert_eq!(timing["artifacts"][0]["kind"], "receipt");
    let digests = ["<a>\n\n", "\n<a>\n"].map(|seen| format!("sha256:{}", digest::sha256(seen.as_bytes())));
    assert!(digests.contains(&receipt["log_sha256"].as_str().unwrap().to_owned()));

    let key = lease.place.path("home/.config/crabbox/attest/id_ed25519.pem");
    assert_eq!((mode(&key), mode(key.parent().unwrap())), (0o600, 0o700));
    let good = lease.place.run(&["verify", "out/r.json"]);
    assert_eq!((good.code, good.err.as_str()), (0, ""));
    let signer = good
        .out
        .strip_prefix("PASS out/r.json signer=sha256:")
        .and_then(|rest| rest.strip_suffix(" trust=self-signed\n"))
        .unwrap();
    assert_eq!(signer.len(), 64);

    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("jade-krill", "jade-krall")).unwrap();
    let bad = lease.place.run(&["verify", "out/r.json"]);
    assert_eq!(
        (bad.code, bad.out, bad.err),
        (
            1,
            format!("FAIL out/r.json signer=sha256:{signer} trust=self-signed: signature mismatch\n"),
            String::new()
        )
    );

    // The next run signs with the same key and replaces the file.
    assert_eq!(lease.script(&["--attest", "out/r.json"], "true").code, 0);
    let again = lease.place.run(&["verify", "out/r.json"]);
    assert!(again.out.contains(signer), "{}", again.out);
}

#[test]
fn a_run_that_fails_leaves_a_receipt_of_that() {
    let lease = entered();
    let failed = lease.script(&["--attest", "r.json"], "echo out; exit 17");
    assert_eq!(failed.code, 17, "{}", failed.err);
    assert!(
        failed.err.contains("artifact kind=receipt path=r.json bytes="),
        "{}",
        failed.err
    );
    let receipt = read(&lease.place.path("repo/r.json"));
    assert_eq!(
        (
            &receipt["schema_version"],
            &receipt["exit_code"],
            &receipt["log_truncated"]
        ),
        (&2.into(), &17.into(), &false.into())
    );
    let log = format!("sha256:{}", digest::sha256(b"out\n"));
    assert_eq!(
        (&receipt["log_sha256"], &receipt["retained_log_sha256"]),
        (&log.as_str().into(), &log.as_str().into())
    );
    let words = b"crabbox-command-v1\0\0\0\0\x11echo out; exit 17";
    assert_eq!(
        receipt["command_sha256"],
        format!("sha256:{}", digest::sha256(words))
    );
    let good = lease.place.run(&["verify", "r.json"]);
    let end = format!(
        "signer={} trust=self-signed exit=17\n",
        receipt["signer"].as_str().unwrap()
    );
    assert_eq!((good.code, good.out), (0, format!("PASS r.json {end}")));

    // The command succeeded, but the run did not.
    let missing = lease.script(&["--attest", "m.json", "--require-artifact", "none"], "true");
    assert_eq!(missing.code, 7, "{}", missing.err);
    assert_eq!(read(&lease.place.path("repo/m.json"))["exit_code"], 7);
}

#[test]
fn a_receipt_that_others_signed_verifies_and_one_that_is_none_is_named() {
    let place = Place::new();
    place.write("repo/r.json", SIGNED_ELSEWHERE);
    let good = place.run(&["verify", "r.json"]);
    assert_eq!(
        (good.code, good.out.as_str()),
        (
            0,
            "PASS r.json signer=sha256:bba8feba25151449d10ed8811aa3765e0473bca7bf264713073b40c32e00da6d trust=self-signed\n"
        ),
        "{}",
        good.err
    );
    // A name does not make a verdict of its own.
    let forged = "r.json signer=x\nPASS \u{1b}[2Jother.json";
    place.write(
        &format!("repo/{forged}"),
        SIGNED_ELSEWHERE.replace("\"exit_code\": 0", "\"exit_code\": 1"),
    );
    let bad = place.run(&["verify", forged]);
    assert_eq!(bad.code, 1, "{}", bad.err);
    assert!(
        bad.out
            .starts_with("FAIL r.json signer=x PASS other.json signer=")
            && bad.out.lines().count() == 1,
        "{:?}",
        bad.out
    );
    let told = |name: &str| {
        let answer = place.run(&["verify", name]);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{}", answer.err);
        answer.err
    };
    place.write(
        "repo/twice.json",
        SIGNED_ELSEWHERE.replace("\"slug\"", "\"run_id\""),
    );
    assert_eq!(told("twice.json"), "malformed receipt: duplicate key\n");
    place.write("repo/new.json", SIGNED_ELSEWHERE.replace(": 1,", ": 9,"));
    assert_eq!(
        told("new.json"),
        "malformed receipt: unsupported schema_version 9\n"
    );
    place.write("repo/half.json", &SIGNED_ELSEWHERE[..60]);
    assert!(told("half.json").starts_with("malformed receipt: "));
    assert!(told("none.json").starts_with("read receipt none.json\n"));
    for words in [&["verify"][..], &["verify", "a", "b"]] {
        let answer = place.run(words);
        assert_eq!(
            (answer.code, answer.err.as_str()),
            (2, "usage: crabbox verify <receipt.json>\n")
        );
    }
}

#[test]
fn a_key_that_others_could_have_had_signs_nothing() {
    let lease = entered();
    assert_eq!(lease.script(&["--attest", "r.json"], "true").code, 0);
    let own = lease.place.path("home/.config/crabbox/attest/id_ed25519.pem");
    let key = lease.place.path("repo/key.pem");
    lease.place.write("repo/key.pem", fs::read(&own).unwrap());
    let with_key = &["--attest", "k.json", "--attest-key", "key.pem"];
    assert_eq!(lease.script(with_key, "true").code, 0);
    assert_eq!(
        read(&lease.place.path("repo/k.json"))["public_key"],
        read(&lease.place.path("repo/r.json"))["public_key"]
    );
    fs::remove_file(lease.place.path("repo/k.json")).unwrap();
    let refused = |flags: &[&str], why: &str| {
        let answer = lease.script(flags, "touch ran");
        assert_eq!(answer.code, 2, "{}", answer.err);
        assert!(answer.err.contains(why), "{}", answer.err);
    };
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    refused(with_key, "is accessible to other users (mode 0640)");
    fs::remove_file(&key).unwrap();
    symlink(&own, &key).unwrap();
    refused(with_key, "is a symbolic link");
    fs::remove_file(&key).unwrap();
    refused(with_key, "cannot read");
    assert!(!key.exists(), "a key that was named is never made");
    lease.place.write("repo/key.pem", "none");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    refused(with_key, "is not PEM encoded");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o604)).unwrap();
    refused(
        &["--attest", "k.json"],
        "is accessible to other users (mode 0604)",
    );
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();

    // A receipt overwrites neither the key nor another result of the run, and follows no symlink out of the
    // repository.
    let before = fs::read(&own).unwrap();
    refused(
        &["--attest", own.to_str().unwrap()],
        "attest receipt and attest key paths must be different",
    );
    assert_eq!(fs::read(&own).unwrap(), before);
    refused(
        &["--attest", "k.json", "--capture-stdout", "./k.json"],
        "attest receipt and capture stdout paths must be different",
    );
    symlink(lease.place.path("home"), lease.place.path("repo/away")).unwrap();
    refused(&["--attest", "away/k.json"], "symbolic link");
    refused(&["--attest-key", "key.pem"], "--attest-key requires --attest");
    assert!(!lease.place.path("repo/k.json").exists() && !lease.place.path("home/k.json").exists());
    let ran = lease.script(&[], "test ! -e ran");
    assert_eq!(ran.code, 0, "nothing ran: {}", ran.err);
}
