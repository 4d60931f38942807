//! The next steps that a run suggests, pasted into a shell unchanged.

use std::fs;

use crabbox_testkit::sshd::Sshd;

use crate::place::{Answer, Place};
use crate::static_host::{ID, claimed, configure, existing, key};

/// Words with shell metacharacters.
const SCRIPT: &str = "echo \"it's $HOME\" >> trace; exit 3";

/// A host described only by the returned flags.
fn told_by_flags() -> (Place, Sshd, Vec<String>) {
    let (place, sshd) = existing();
    let config = format!("ssh:\n  key: {}\n", key(&place, &sshd));
    place.write("home/.config/crabbox/config.yaml", config);
    let work_root = sshd.dir().join("it's work").display().to_string();
    let flags = [
        ("--provider", "ssh"),
        ("--static-host", "127.0.0.1"),
        ("--static-user", sshd.user()),
        ("--static-port", &sshd.port().to_string()),
        ("--static-work-root", &work_root),
    ];
    let flags = flags
        .iter()
        .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]);
    let flags = flags.collect();
    (place, sshd, flags)
}

fn run(place: &Place, flags: &[String], more: &[&str]) -> Answer {
    let mut words = vec!["run"];
    words.extend(flags.iter().map(String::as_str));
    words.extend(more);
    place.run(&words)
}

fn after<'a>(answer: &'a Answer, begin: &str) -> Vec<&'a str> {
    answer
        .err
        .lines()
        .filter_map(|line| line.strip_prefix(begin))
        .collect()
}

/// The `next:` lines, after checking that they begin with these commands.
fn next<'a>(answer: &'a Answer, commands: &[&str]) -> Vec<&'a str> {
    let lines = after(answer, "  next: ");
    let begin: Vec<String> = lines
        .iter()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(begin, commands, "{}", answer.err);
    lines
}

/// Checks that the command ran there, and only there.
fn ran_there_only(place: &Place, sshd: &Sshd, root: &str) {
    assert!(!place.path("repo/trace").exists(), "the shell here ran it");
    let there = sshd.dir().join(root).join(ID).join("repo/trace");
    let trace = fs::read_to_string(there).unwrap();
    assert_eq!(trace.lines().count(), 1, "not on a fresh tree: {trace}");
    assert!(trace.starts_with("it's /"), "{trace}");
}

#[test]
fn a_host_whose_lease_was_given_back_is_reached_by_the_flags_alone() {
    let (place, sshd, flags) = told_by_flags();
    let failed = run(&place, &flags, &["--timing-json", "--", "sh", "-c", SCRIPT]);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(!claimed(&place, ID), "it was given back");
    let [ssh, again] = next(&failed, &["crabbox ssh", "crabbox run"])[..] else {
        unreachable!("their number was held");
    };
    assert!(!failed.err.contains("\"stopCommand\""), "{}", failed.err);
    let entered = place.paste(ssh);
    assert_eq!(entered.code, 0, "{ssh}: {}", entered.err);
    let repeated = place.paste(again);
    assert_eq!(repeated.code, 3, "{again}: {}", repeated.err);
    ran_there_only(&place, &sshd, "it's work");
}

#[test]
fn a_host_that_only_the_claim_knew_is_told_by_flags_when_the_claim_goes() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warm = place.run(&["warmup", "--slug", "mine"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let config = format!("ssh:\n  key: {}\n", key(&place, &sshd));
    place.write("home/.config/crabbox/config.yaml", config);
    let ended = [
        "run",
        "--id",
        "mine",
        "--stop-after",
        "always",
        "--shell",
        "--",
        SCRIPT,
    ];
    let failed = place.run(&ended);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(!claimed(&place, ID), "it was given back");
    let lines = next(&failed, &["crabbox ssh", "crabbox run"]);
    for (line, code) in lines.iter().zip([0, 3]) {
        let done = place.paste(line);
        assert_eq!(done.code, code, "{line}: {}", done.err);
    }
    ran_there_only(&place, &sshd, "work");
}

#[test]
fn a_lease_that_is_kept_is_named_in_every_line() {
    let (place, sshd, flags) = told_by_flags();
    let failed = run(
        &place,
        &flags,
        &["--keep-on-failure", "--timing-json", "--", "sh", "-c", SCRIPT],
    );
    assert_eq!(failed.code, 3, "{}", failed.err);
    let lines = next(&failed, &["crabbox ssh", "crabbox run", "crabbox stop"]);
    let timing: serde_json::Value =
        serde_json::from_str(failed.err.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!(timing["stopCommand"], lines[2]);
    assert!(
        failed.err.contains(&format!(" stop_command=\"{}\" ", lines[2])),
        "{}",
        failed.err
    );
    for (line, code) in lines.iter().zip([0, 3, 0]) {
        let done = place.paste(line);
        assert_eq!(done.code, code, "{line}: {}", done.err);
    }
    ran_there_only(&place, &sshd, "it's work");
    assert!(!claimed(&place, ID), "the last line stopped it");
    // The block about the kept lease has the same commands in the Go program's form.
    for (begin, code) in [("ssh: ", 0), ("inspect: ", 0), ("stop: ", 0)] {
        let done = place.paste(after(&failed, begin)[0]);
        assert_eq!(done.code, code, "{begin}: {}", done.err);
    }
}

#[test]
fn a_hint_names_the_provider_and_the_host_that_the_command_was_given() {
    let (place, _sshd, flags) = told_by_flags();
    let mut words = vec!["status"];
    words.extend(flags.iter().map(String::as_str));
    words.push("nobody");
    let missing = place.run(&words);
    assert_eq!(missing.code, 4, "{}", missing.err);
    let hint = after(&missing, "hint: ")[0];
    let line = hint.split('`').nth(1).unwrap();
    let listed = place.paste(line);
    assert_eq!(listed.code, 0, "{line}: {}", listed.err);
    assert!(listed.out.contains("127.0.0.1"), "{line}: {}", listed.out);
}
