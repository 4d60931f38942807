//! The smoke scripts: `live-firecracker-smoke.sh` with a fake crabbox, `live-ssh-localhost-smoke.sh` with the
//! real one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crabbox_host::command::Cmd;

/// A doctor's document with these checks.
fn document(ok: bool, checks: &str) -> String {
    format!(r#"{{"ok":{ok},"provider":"firecracker","checks":[{checks}]}}"#)
}

const OK: &str = r#"{"status":"ok","check":"host","provider":"firecracker"}"#;
const FAILED: &str = r#"{"status":"failed","check":"kernel","provider":"firecracker","details":{"class":"environment_blocked"}}"#;
const MISSING: &str = r#"{"status":"missing","check":"rsync"}"#;

/// Runs the script; `fake` is the body of a shell script in crabbox's place. Returns exit code, standard
/// output, standard error.
fn smoke(fake: &str, options: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("crabbox");
    fs::write(
        &program,
        format!("#!/bin/sh\ncd {}\n{fake}\n", dir.path().display()),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/live-firecracker-smoke.sh");
    let done = Cmd::new("bash")
        .arg(script)
        .args(options)
        .env("CRABBOX_BIN", &program)
        .capture()
        .unwrap();
    (
        done.status.code().unwrap(),
        done.stdout_text(),
        done.stderr_text(),
    )
}

/// A doctor that prints `document`, says something on standard error and exits with `code`.
fn doctor(document: &str, code: i32) -> String {
    format!("cat <<'J'\n{document}\nJ\necho 'two\nlines' >&2\nexit {code}")
}

#[test]
fn a_ready_host_passes() {
    let (code, out, _) = smoke(&doctor(&document(true, OK), 0), &[]);
    let line = "classification=readiness_passed provider=firecracker mutation=false checks=host=ok";
    assert_eq!((code, out.as_str()), (0, line));
}

#[test]
fn a_blocked_host_names_what_blocks_and_its_class() {
    let (code, out, _) = smoke(
        &doctor(&document(false, &[OK, FAILED, MISSING].join(",")), 1),
        &[],
    );
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "classification=environment_blocked provider=firecracker mutation=false checks=host=ok,kernel=failed \
         blocking_checks=kernel:environment_blocked,rsync:failed\nstderr=two lines"
    );
}

#[test]
fn what_is_no_doctor_s_document_is_rejected_with_its_reason() {
    let other = document(true, OK).replace(
        "\"provider\":\"firecracker\",\"checks\"",
        "\"provider\":\"ssh\",\"checks\"",
    );
    for (document, code, reason) in [
        ("not json".to_owned(), 1, "malformed_doctor_json"),
        (String::new(), 0, "malformed_doctor_json"),
        ("{}".to_owned(), 0, "malformed_doctor_json"),
        (
            format!("{}{}", document(true, OK), document(true, OK)),
            0,
            "malformed_doctor_json",
        ),
        (other, 0, "malformed_doctor_json"),
        (document(true, MISSING), 0, "missing_firecracker_checks"),
        (document(false, OK), 3, "doctor_failed_without_blocking_checks"),
    ] {
        let (exit, out, _) = smoke(&doctor(&document, code), &[]);
        let line = format!(
            "classification=validation_failed provider=firecracker mutation=false reason={reason} doctor_exit={code}\nstderr=two lines"
        );
        assert_eq!((exit, out), (1, line), "{document}");
    }
}

#[test]
fn a_dry_run_runs_nothing_and_wrong_usage_is_exit_2() {
    let (code, out, _) = smoke("echo ran >&2; exit 1", &["--dry-run"]);
    assert_eq!(code, 0);
    assert!(
        out.starts_with("classification=dry_run provider=firecracker mutation=false\ncommand="),
        "{out}"
    );
    let (code, out, err) = smoke("exit 0", &["--no-such-option"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("usage: "), "{err}");
    assert_eq!(smoke("exit 0", &["--help"]).0, 0);
}

/// A crabbox with leases kept in files; `stop` and `run` as given.
fn leasing(run: &str, stop: &str) -> String {
    let document = document(true, OK);
    format!(
        r#"case $1 in
doctor) echo '{document}' ;;
list) if [ -e lease ]; then echo '[{{"CloudID":"old"}},{{"CloudID":"new"}}]'; else echo '[{{"CloudID":"old"}}]'; fi ;;
warmup) touch lease; echo 'leased cbx_0123456789ab slug=blue-crab provider=firecracker' ;;
run) {run} ;;
stop) {stop} ;;
esac"#
    )
}

const GOOD_RUN: &str = "echo changed; echo problem >&2; exit 7";

#[test]
fn a_full_run_leases_runs_and_gives_back() {
    let (code, out, err) = smoke(&leasing(GOOD_RUN, "rm lease"), &["--full"]);
    assert_eq!(code, 0, "{out} {err}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines[0],
        "classification=readiness_passed provider=firecracker mutation=false checks=host=ok"
    );
    let passed =
        "classification=full_passed provider=firecracker mutation=true lease=cbx_0123456789ab seconds=";
    assert!(
        lines[1].starts_with(passed) && lines[1].ends_with(" machines=1"),
        "{out}"
    );
}

#[test]
fn a_full_run_tells_the_step_that_failed_and_gives_the_lease_back_all_the_same() {
    for (run, stop, step) in [
        (
            "echo changed; echo problem >&2; exit 0",
            "rm lease",
            "run_exit_code",
        ),
        (
            "echo committed; echo problem >&2; exit 7",
            "rm lease",
            "run_output",
        ),
        ("echo changed; echo problem; exit 7", "rm lease", "run_stderr"),
        (GOOD_RUN, "exit 5", "stop"),
        (GOOD_RUN, "true", "residue"),
    ] {
        let notes = tempfile::NamedTempFile::new().unwrap();
        let noting = format!("echo $4 >> {}; {stop}", notes.path().display());
        let (code, out, _) = smoke(&leasing(run, &noting), &["--full"]);
        assert_eq!(code, 1, "{step}: {out}");
        let stopped = fs::read_to_string(notes.path()).unwrap();
        assert!(stopped.starts_with("cbx_0123456789ab\n"), "{step}: {stopped}");
        let failed = format!("classification=full_failed provider=firecracker mutation=true step={step} ");
        assert!(
            out.lines().nth(1).is_some_and(|line| line.starts_with(&failed)),
            "{step}: {out}"
        );
    }
}

fn localhost_smoke(crabbox: &Path) -> (i32, String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/live-ssh-localhost-smoke.sh");
    let done = Cmd::new("bash")
        .arg(script)
        .env("CRABBOX_BIN", crabbox)
        .capture()
        .unwrap();
    (
        done.status.code().unwrap(),
        done.stdout_text(),
        done.stderr_text(),
    )
}

#[test]
fn a_lease_on_localhost_lives_its_whole_life() {
    let (code, out, err) = localhost_smoke(Path::new(env!("CARGO_BIN_EXE_crabbox")));
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(
        out.starts_with("classification=live_passed provider=ssh "),
        "{out}"
    );
}

#[test]
fn a_step_on_localhost_that_fails_is_named() {
    let (code, out, _) = localhost_smoke(Path::new("/bin/false"));
    assert_eq!(code, 1);
    assert!(
        out.starts_with("classification=live_failed provider=ssh step=warmup exit=1\n"),
        "{out}"
    );
}
