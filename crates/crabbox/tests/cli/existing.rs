//! Flags that say what a new lease is like, given for a lease that exists.

use crabbox_host::clock;
use crabbox_testkit::sshd::Sshd;

use crate::place::Place;
use crate::static_host::{self, configure, ended, existing};
use crate::world::{ID, Machine, Record, claim, read_claim, record};

/// The warning about `flags` of the lease `id`.
fn warned(flags: &str, id: &str) -> String {
    format!("warning: {flags} only when a lease is made; lease {id} stays as it is\n")
}

/// A repository, and a microVM's lease whose SSH server does not answer.
fn microvm() -> (Place, Sshd, Machine) {
    let (place, sshd) = existing();
    let machine = Machine::start();
    Record::new(ID, "jade-krill")
        .on(&machine)
        .label("created_at", &clock::unix_seconds().to_string())
        .write(&place);
    claim(&place, ID, "jade-krill", "firecracker");
    (place, sshd, machine)
}

#[test]
fn a_host_s_lease_takes_a_new_idle_timeout_and_names_what_it_cannot_follow() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let id = static_host::ID;
    ended(&place.run(&["warmup", "--idle-timeout", "20m"]), 0, "");
    let idle = || read_claim(&place, id)["idleTimeoutSeconds"].clone();
    for (command, flags, seconds, says) in [
        (
            "run",
            &["--idle-timeout", "10m", "--ttl", "1h"][..],
            600,
            "--ttl applies",
        ),
        (
            "run",
            &[
                "--class",
                "a",
                "--type",
                "b",
                "--os",
                "ubuntu:24.04",
                "--expose",
                "80",
            ],
            600,
            "--class, --type, --os, --expose apply",
        ),
        (
            "watch",
            &["--idle-timeout", "5m", "--idle-exit", "10ms", "--ttl", "1h"],
            300,
            "--ttl applies",
        ),
    ] {
        let answer = place.run(&[&[command, "--id", id], flags, &["--", "true"]].concat());
        assert_eq!(answer.code, 0, "{flags:?}: {}", answer.err);
        assert_eq!(answer.err.matches(&warned(says, id)).count(), 1, "{}", answer.err);
        assert_eq!(answer.err.matches("warning: ").count(), 1, "{}", answer.err);
        assert_eq!(idle(), seconds, "{flags:?}");
        let details = format!(" idle_timeout={}m0s\n", seconds / 60);
        assert!(answer.err.contains(&details), "{flags:?}: {}", answer.err);
    }
    // A run that says nothing of it, or whose variable is for new leases, leaves it alone.
    let place = place.env("CRABBOX_IDLE_TIMEOUT", "1h").env("CRABBOX_TTL", "2h");
    let port = sshd.port().to_string();
    let plain = place.run(&[
        "run",
        "--id",
        id,
        "--profile",
        "default",
        "--ssh-port",
        &port,
        "--",
        "true",
    ]);
    assert!(
        plain.code == 0 && !plain.err.contains("warning: "),
        "{}",
        plain.err
    );
    assert_eq!(read_claim(&place, id)["idleTimeoutSeconds"], 300);
}

#[test]
fn a_microvm_s_lease_takes_a_new_idle_timeout_and_names_what_it_cannot_follow() {
    let (place, _sshd, _machine) = microvm();
    for (words, idle, seconds) in [
        (&["run"][..], "10m", 600),
        (&["watch", "--idle-exit", "10ms"], "20m", 1200),
    ] {
        let flags = [
            "--id",
            ID,
            "--idle-timeout",
            idle,
            "--ttl",
            "1h",
            "--ssh-port",
            "22",
        ];
        let answer = place.run(&[words, &flags, &["--", "true"]].concat());
        let says = warned("--ssh-port, --ttl apply", ID);
        assert_eq!(answer.err.matches(&says).count(), 1, "{}", answer.err);
        let labels = record(&place, ID)["labels"].clone();
        let number = |name: &str| labels[name].as_str().unwrap().parse::<i64>().unwrap();
        assert_eq!(number("idle_timeout_secs"), seconds, "{labels}");
        assert_eq!(
            number("expires_at") - number("last_touched_at"),
            seconds,
            "{labels}"
        );
        assert_eq!(number("ttl_secs"), 5400, "{labels}");
        assert_eq!(read_claim(&place, ID)["idleTimeoutSeconds"], seconds);
    }
}

#[test]
fn a_class_and_a_type_are_refused_for_a_microvm_that_exists() {
    let (place, _sshd, _machine) = microvm();
    for command in ["run", "watch"] {
        for flag in ["--class", "--type"] {
            let refused = place.run(&[command, "--id", "jade-krill", flag, "x", "--", "true"]);
            let says = format!("{flag} is not supported for provider=firecracker; use ");
            ended(&refused, 2, &says);
        }
    }
    // A variable's class is for new leases.
    let place = place
        .env("CRABBOX_DEFAULT_CLASS", "x")
        .env("CRABBOX_SERVER_TYPE", "y");
    let answer = place.run(&["run", "--id", ID, "--", "true"]);
    assert!(answer.err.contains("\nrun details "), "{}", answer.err);
    assert!(!answer.err.contains("warning: "), "{}", answer.err);
}
