//! `-v`, `-vv` and `CRABBOX_LOG`: what they show, where it goes, and what must never appear in it.

use crate::place::Place;
use crate::remote::Entered;
use crate::run::with_repository;
use crate::world::{Machine, Record};

/// What must never be logged.
const SECRET: &str = "marked-s3cr3t-4711";

#[test]
fn flags_and_the_variable_show_diagnostics_on_standard_error_alone() {
    let machine = Machine::start();
    let place = Place::new();
    Record::new("cbx_0123456789ab", "jade-krill")
        .on(&machine)
        .write(&place);
    place.write("home/.config/crabbox/config.yaml", "provider: firecracker\n");
    let quiet = place.run(&["list", "--json"]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
    for words in [["list", "-v", "--json"], ["list", "--json", "-vv"]] {
        let told = place.run(&words);
        assert_eq!((told.code, &told.out), (0, &quiet.out));
        assert!(
            told.err.contains("DEBUG") && told.err.contains("config.yaml"),
            "{}",
            told.err
        );
        assert!(!told.err.contains('\u{1b}'), "{}", told.err);
    }
    // Switched off again by the flag's value.
    assert_eq!(place.run(&["list", "-v=false", "--json"]).err, "");
    let place = place.env("CRABBOX_LOG", "off,crabbox=debug");
    let told = place.run(&["list", "--json"]);
    assert_eq!((told.code, &told.out), (0, &quiet.out));
    assert!(told.err.contains("config.yaml"), "{}", told.err);
}

#[test]
fn every_command_takes_the_flags_for_diagnostics() {
    let place = Place::new();
    let commands = [
        "warmup",
        "run",
        "watch",
        "prewarm",
        "job run",
        "job list",
        "list",
        "stop",
        "status",
        "doctor",
        "pool fill",
        "setup firecracker",
    ];
    for command in commands {
        for flag in ["-v", "-vv"] {
            let mut words: Vec<&str> = command.split(' ').collect();
            words.extend([flag, "--no-such-flag"]);
            let told = place.run(&words);
            let wrong = "flag provided but not defined: -no-such-flag\n";
            assert!(
                told.code == 2 && told.err.starts_with(wrong),
                "{words:?}: {}",
                told.err
            );
        }
    }
}

#[test]
fn a_filter_that_is_none_is_refused_even_under_a_flag_that_wins() {
    let place = Place::new().env("CRABBOX_LOG", "debugg");
    for words in [&["config", "path"][..], &["config", "path", "-v"]] {
        let refused = place.run(words);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""));
        assert!(
            refused
                .err
                .starts_with("invalid log filter \"debugg\": there is no such level\nhint: "),
            "{}",
            refused.err
        );
    }
}

#[test]
fn events_stay_json_lines_under_the_most_verbose_level() {
    let lease = with_repository(Entered::new());
    let words = [
        "run",
        "--id",
        "jade-krill",
        "--no-sync",
        "-vv",
        "--json-events",
        "--",
        "true",
    ];
    let done = lease.place.run(&words);
    assert_eq!(done.code, 0, "{}", done.err);
    let mut diagnostics = 0;
    for line in done.err.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        diagnostics += usize::from(event.to_string().contains("crabbox_host::command"));
    }
    assert!(diagnostics > 0, "{}", done.err);
}

#[test]
fn no_secret_is_logged_at_the_most_verbose_level() {
    let mut lease = with_repository(Entered::new());
    lease.place = lease
        .place
        .env("CRABBOX_LOG", "trace")
        .env("MARKED_TOKEN", SECRET)
        .env("CRABBOX_COORDINATOR_TOKEN", format!("{SECRET}-coordinator"));
    lease
        .place
        .write("repo/vars.env", format!("PROFILE_TOKEN='{SECRET}-profile'\n"));
    let script = format!("echo \"$MARKED_TOKEN\" | wc -c; : {SECRET}-argument; echo {SECRET}-file > out.txt");
    let words = [
        "run",
        "--id",
        "jade-krill",
        "-vv",
        "--allow-env",
        "MARKED_TOKEN,PROFILE_TOKEN",
        "--env-from-profile",
        "vars.env",
        "--shell",
        "--",
        &script,
    ];
    let done = lease.place.run(&words);
    assert_eq!((done.code, done.out.trim()), (0, "19"), "{}", done.err);
    assert!(
        done.err.contains("TRACE") && done.err.contains("program=ssh"),
        "{}",
        done.err
    );
    // Normal output may show the command that the user typed; diagnostics must not.
    let logged: Vec<&str> = done
        .err
        .lines()
        .filter(|line| {
            ["TRACE", "DEBUG", " INFO", " WARN", "ERROR"]
                .iter()
                .any(|level| line.starts_with(level))
        })
        .collect();
    assert!(logged.len() > 5, "{}", done.err);
    let key = std::fs::read_to_string(lease.sshd.client_key()).unwrap();
    let body = key.lines().nth(1).unwrap();
    for line in &logged {
        assert!(!line.contains(SECRET) && !line.contains(body), "{line}");
    }
    assert!(!done.err.contains(&format!("{SECRET}-profile")), "{}", done.err);
}
