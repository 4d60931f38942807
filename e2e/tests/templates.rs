//! Faults in templates and in leases restored from them, on pretended hosts with a fake VMM whose guest
//! implements the handshake. `warm.rs` shows on real machines that two restored ones share nothing.

use crabbox_e2e::{Host, KILL_BOTH, OURS, assert_nothing_left};

#[path = "templates/making.rs"]
mod making;

const TEMPLATES: &str = "/srv/.config/crabbox/state/firecracker/templates";

/// The directory of the only template.
#[track_caller]
fn template(host: &Host) -> String {
    let found = host.sh(&format!("ls -d {TEMPLATES}/????????????????*")).exits(0);
    assert_eq!(found.stdout.lines().count(), 1, "{found:?}");
    found.stdout.trim().to_owned()
}

/// How the machine of a new lease started, according to its guest, and the output on standard error. The
/// lease is given back.
#[track_caller]
fn leased(host: &Host) -> (&'static str, String) {
    let warmup = host
        .crabbox(&format!("warmup {OURS} --slug one --timing-json"))
        .exits(0);
    let ran = host.crabbox("run --id one --no-sync -- echo alive").exits(0);
    assert_eq!(ran.stdout, "alive\n");
    drop(host.crabbox("stop one").exits(0));
    let source = if warmup.stderr.contains("\"leaseSource\":\"restored\"") {
        "restored"
    } else {
        assert!(warmup.stderr.contains("\"leaseSource\":\"cold\""), "{warmup:?}");
        "cold"
    };
    (source, warmup.stderr)
}

/// The doctor's findings about warm leases.
#[track_caller]
fn doctor(host: &Host) -> String {
    let report = host.crabbox(&format!("doctor {OURS} --json")).json();
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let warm = checks.find(|check| check["check"] == "warm");
    let word = |name: &str| {
        warm.and_then(|warm| warm[name].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    format!("{} {}", word("status"), word("message"))
}

#[test]
fn a_lease_comes_of_a_template_and_both_leave_nothing() {
    let host = Host::pretend_ours();
    let empty = host.settled();
    let none = "warning warm=no reason=no_template";
    assert!(doctor(&host).starts_with(none), "{}", doctor(&host));
    assert_nothing_left(&empty, &host.settled());
    assert_eq!(leased(&host).0, "cold", "there is no template yet");
    let made = host.crabbox(&format!("image warm {OURS} --json")).exits(0).json();
    assert_eq!(made["path"].as_str(), Some(template(&host).as_str()), "{made}");
    let ready = format!(
        "ok warm=ready template={} age=",
        &made["key"].as_str().unwrap()[..12]
    );
    assert!(doctor(&host).starts_with(&ready), "{}", doctor(&host));
    // A new copy of the same Firecracker counts as the same; other bytes do not.
    drop(
        host.sh("cd /srv/fake && cp firecracker again && chmod 700 again && chmod 755 again && mv again firecracker")
            .exits(0),
    );
    assert!(doctor(&host).starts_with(&ready), "{}", doctor(&host));
    let before = host.settled();
    let modes = host
        .sh(&format!(
            "cd {} && stat -c '%a %n' .. . memory vmstate layer",
            template(&host)
        ))
        .exits(0);
    assert_eq!(
        modes.stdout,
        "700 ..\n700 .\n444 memory\n444 vmstate\n444 layer\n"
    );
    let (source, said) = leased(&host);
    assert_eq!((source, said.contains("warning")), ("restored", false), "{said}");
    // Another size is another machine, and templates may be switched off.
    for more in [
        "--firecracker-memory-mib 256",
        "--firecracker-warm off",
        "--firecracker-disk-mib 65",
    ] {
        let cold = host
            .crabbox(&format!("warmup {OURS} {more} --slug one --timing-json"))
            .exits(0);
        assert!(
            cold.stderr.contains("\"leaseSource\":\"cold\"") && !cold.stderr.contains("warning"),
            "{more}: {cold:?}"
        );
        drop(host.crabbox("stop one").exits(0));
    }
    assert_nothing_left(&before, &host.settled());
    // When its image goes, so does the template.
    drop(host.crabbox("image rm default").exits(0));
    let swept = host.crabbox("image gc --dry-run --json").exits(0).json();
    assert_eq!(swept["templates"][0]["action"], "would_remove", "{swept}");
    drop(template(&host));
    let swept = host.crabbox("image gc --json").exits(0).json();
    assert_eq!(swept["templates"][0]["reason"], "its image is gone", "{swept}");
    drop(
        host.sh(&format!(
            "rm {TEMPLATES}/secret {TEMPLATES}/programs {TEMPLATES}/make.lock && rmdir {TEMPLATES}"
        ))
        .exits(0),
    );
    assert_nothing_left(&empty, &host.settled());
}

#[test]
fn a_template_that_is_not_what_it_was_costs_a_boot_and_a_warning() {
    let host = Host::pretend_ours();
    for (damage, said) in [
        (
            "printf x | dd of=memory conv=notrunc status=none",
            "its memory has changed (written to)",
        ),
        (
            "truncate -s 5 vmstate",
            "its vmstate has changed (another length)",
        ),
        ("chmod 644 layer", "its layer has changed (another mode)"),
        (
            "cp -p memory m && mv m memory",
            "its memory has changed (another file)",
        ),
        ("rm manifest.json", "its manifest cannot be read"),
        (
            "t=$(stat -c %y vmstate); printf x | dd of=vmstate conv=notrunc status=none; touch -d \"$t\" vmstate; echo no > checked",
            "its vmstate has changed (other bytes)",
        ),
    ] {
        drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
        drop(host.sh(&format!("cd {} && {damage}", template(&host))).exits(0));
        let before = host.settled();
        if damage != "rm manifest.json" && !said.contains("other bytes") {
            let seen = doctor(&host);
            assert!(
                seen.starts_with("warning warm=no reason=damaged") && seen.contains(said),
                "{seen}"
            );
        }
        let (source, told) = leased(&host);
        assert_eq!(source, "cold", "{damage}: {told}");
        assert_eq!(told.matches("warning: ").count(), 1, "{damage}: {told}");
        assert!(told.contains(said), "{damage}: {told}");
        assert_nothing_left(&before, &host.settled());
    }
}

#[test]
fn a_machine_that_does_not_come_of_its_template_is_booted_and_the_template_set_aside() {
    let host = Host::pretend_ours();
    drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
    // The fake freezes only the token: its guest wakes as if from another template.
    drop(
        host.sh(&format!(
            "cd {} && old=$(grep -o '\"token\": *\"[0-9a-f]*' manifest.json | grep -o '[0-9a-f]*$') && \
             sed -i \"s/$old/00000000000000000000000000000000/\" manifest.json",
            template(&host)
        ))
        .exits(0),
    );
    let before = host.settled();
    for said in [
        "expected \"hello\"",
        "expected \"hello\"",
        "it was set aside after 2 machines failed to start from it",
    ] {
        let (source, told) = leased(&host);
        assert_eq!((source, told.matches("warning: ").count()), ("cold", 1), "{told}");
        assert!(
            told.contains(said) && told.contains("crabbox image warm"),
            "{told}"
        );
    }
    let seen = doctor(&host);
    assert!(
        seen.starts_with("warning warm=no reason=set_aside failures=2"),
        "{seen}"
    );
    let after = host.settled();
    let news: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(news.len() == 1 && news[0].ends_with("/failures"), "{news:?}");
    drop(host.crabbox(&format!("image warm {OURS}")).exits(0));
    assert_eq!(leased(&host).0, "restored", "a new one starts anew");
    for request in ["PUT /snapshot/load", "PATCH /vm"] {
        host.script(&format!(
            r#"{{"sshd": true, "ready": true, "exit_on": "{request}"}}"#
        ));
        let (source, told) = leased(&host);
        assert_eq!(
            (source, told.matches("warning: ").count()),
            ("cold", 1),
            "{request}: {told}"
        );
        host.script(r#"{"sshd": true, "ready": true}"#);
        assert_eq!(leased(&host).0, "restored", "one failure is none");
    }
}

#[test]
fn nothing_is_published_that_was_not_seen_to_work() {
    let host = Host::pretend_ours();
    let before = host.settled();
    for (text, said) in [
        (
            r#"{"sshd": true, "ready": true, "alike": true}"#,
            "two machines restored from the template have the same random numbers",
        ),
        (
            r#"{"sshd": true, "ready": true, "exit_on": "PUT /snapshot/create"}"#,
            "the machine of the template failed",
        ),
        (
            r#"{"sshd": true, "ready": true, "exit_on": "PUT /snapshot/load"}"#,
            "a machine of the template failed",
        ),
    ] {
        host.script(text);
        let failed = host.crabbox(&format!("image warm {OURS}")).exits(5);
        assert!(failed.stderr.contains(said), "{text}: {failed:?}");
        let left = host.sh(&format!("ls -A {TEMPLATES}")).exits(0).stdout;
        assert_eq!(left, "make.lock\nprograms\nsecret\n", "{text}");
    }
    drop(host.sh(&format!("rm -r {TEMPLATES}")).exits(0));
    assert_nothing_left(&before, &host.settled());
    let foreign = host
        .crabbox(&format!("image warm {}", crabbox_e2e::PRETEND))
        .exits(2);
    assert!(
        foreign.stderr.contains("only crabbox's own images"),
        "{foreign:?}"
    );
    let off = host
        .crabbox(&format!("image warm {OURS} --firecracker-warm off"))
        .exits(2);
    assert!(off.stderr.contains("firecracker.warm is off"), "{off:?}");
    let neither = host
        .crabbox(&format!("warmup {OURS} --firecracker-warm maybe"))
        .exits(2);
    assert!(neither.stderr.contains("auto or off only"), "{neither:?}");
}

#[test]
fn setup_makes_a_template_says_so_in_one_line_and_takes_it_away_again() {
    let host = Host::pretend_ours();
    let empty = host.settled();
    let setup = format!("setup firecracker {OURS}");
    let planned = host.crabbox(&format!("{setup} --dry-run")).exits(0);
    assert!(
        planned.stdout.starts_with("freeze a machine of 128 MiB"),
        "{planned:?}"
    );
    assert_nothing_left(&empty, &host.settled());
    // Leases can still be made.
    host.script(r#"{"sshd": true, "ready": true, "alike": true}"#);
    let failed = host.crabbox(&format!("{setup} --yes")).exits(0);
    assert!(
        failed
            .stderr
            .contains("warning: no template was made, so leases boot: two machines restored from the template have the same"),
        "{failed:?}"
    );
    host.script(r#"{"sshd": true, "ready": true}"#);
    let made = host.crabbox(&format!("{setup} --yes")).exits(0);
    let line = made.stdout.lines().last().unwrap_or_default();
    assert!(
        line.starts_with("template=") && line.contains(" made in "),
        "{made:?}"
    );
    assert!(doctor(&host).starts_with("ok warm=ready"), "{}", doctor(&host));
    for more in ["", " --firecracker-warm off"] {
        let again = host.crabbox(&format!("{setup}{more} --yes")).exits(0);
        assert_eq!(again.stdout, "nothing to do: this host is set up\n", "{again:?}");
    }
    assert_eq!(leased(&host).0, "restored");
    let told = host.crabbox("setup firecracker --remove --dry-run").exits(0);
    assert_eq!(told.stdout.matches("remove template ").count(), 1, "{told:?}");
    drop(template(&host));
    drop(host.crabbox("setup firecracker --remove --yes").exits(0));
    assert_nothing_left(&empty, &host.settled());
    assert_eq!(leased(&host).0, "cold");
}

#[test]
fn whoever_is_killed_while_a_template_is_made_or_used_leaves_what_one_command_sweeps() {
    let host = Host::pretend_ours();
    let empty = host.settled();
    let swept = |what: &str| {
        // A supervisor whose client has died takes its lease back by itself, and cleanup leaves that to it.
        let mut after = Vec::new();
        for _ in 0..50 {
            drop(host.crabbox("cleanup --provider firecracker"));
            after = host.residue();
            after.retain(|line| !line.starts_with(&format!("file {TEMPLATES}")));
            if after == empty {
                break;
            }
            drop(host.sh("sleep 0.1"));
        }
        assert_nothing_left(&empty, &after);
        drop(host.crabbox("image gc").exits(0));
        // A process killed early has not started making it.
        let left = host.sh(&format!("ls -A {TEMPLATES} 2>&1")).stdout;
        assert!(!left.contains("making"), "{what}: {left}");
    };
    host.kill_at_every_moment(
        &format!("crabbox image warm {OURS}"),
        &format!("rm -r {TEMPLATES}"),
        |limit| swept(&format!("killed after {limit} s")),
    );
    // It exists now, undamaged.
    for step in ["jail", "mount", "vmm", "attach"] {
        for phase in ["begun", "made", "done"] {
            let before = host.settled();
            let point = format!("{step}:{phase}");
            host.kill_at(&point, OURS, KILL_BOTH);
            drop(host.crabbox("cleanup --provider firecracker"));
            assert_nothing_left(&before, &host.settled());
        }
    }
    assert_eq!(leased(&host).0, "restored");
}
