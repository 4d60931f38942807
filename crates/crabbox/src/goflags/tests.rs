//! The rules one by one, on a small command tree, and random vectors on the real one.

use clap::{Arg, ArgAction, Command};
use proptest::prelude::*;

use super::*;

fn boolean(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
}

fn tree() -> Command {
    let value = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Set);
    let words = Arg::new("words")
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true);
    let mut root = Command::new("crabbox")
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .subcommand(Command::new("run").args([value("id"), value("ttl"), boolean("keep"), words.clone()]))
        .subcommand(Command::new("ssh").args([value("id"), words]))
        .subcommand(
            Command::new("pool")
                .subcommand_required(true)
                .subcommand(Command::new("list")),
        );
    root.build();
    root
}

fn argv(words: &[&str]) -> Vec<OsString> {
    std::iter::once(&"crabbox").chain(words).map(Into::into).collect()
}

/// What follows the program's name.
fn texts(argv: &[OsString]) -> Vec<String> {
    let text = |word: &OsString| word.to_str().unwrap().to_owned();
    argv[1..].iter().map(text).collect()
}

fn run(words: &[&str]) -> Result<Vec<String>, String> {
    match normalise(&argv(words), &tree()) {
        Ok(out) => Ok(texts(&out)),
        Err(Stop::Help(path)) => Err(format!("help:{}", path.join(" "))),
        Err(Stop::Usage(error)) => Err(error.problem.to_string()),
        Err(Stop::Refused(refused)) => Err(format!("{refused:?}")),
    }
}

fn ok(words: &[&str], want: &[&str]) {
    assert_eq!(
        run(words),
        Ok(want.iter().map(ToString::to_string).collect()),
        "{words:?}"
    );
}

fn stops(words: &[&str], want: &str) {
    assert_eq!(run(words), Err(want.to_owned()), "{words:?}");
}

#[test]
fn one_dash_and_two_are_the_same_and_values_may_begin_with_a_dash() {
    ok(
        &["run", "-id", "x", "--ttl", "-5m"],
        &["run", "--id=x", "--ttl=-5m", "--"],
    );
    ok(
        &["run", "-id=x=y", "--ttl="],
        &["run", "--id=x=y", "--ttl=", "--"],
    );
}

#[test]
fn an_empty_text_is_as_good_as_no_flag() {
    let root = crate::args::command();
    let normalised = |words: &[&str]| texts(&normalise(&argv(words), &root).unwrap());
    for flag in [
        "stop-after",
        "slug",
        "script",
        "capture-stdout",
        "capture-stderr",
        "preset",
        "emit-proof",
        "attest",
        "attest-key",
        "env-helper",
        "timing-record",
        "market",
        "pond",
        "pool",
        "lease-output",
    ] {
        let flag = format!("--{flag}");
        assert_eq!(
            normalised(&["run", &flag, "", "ls"]),
            ["run", "--", "ls"],
            "{flag}"
        );
        assert_eq!(
            normalised(&["run", &flag, "x", &flag, ""]),
            ["run", "--"],
            "{flag}"
        );
    }
    assert_eq!(normalised(&["job", "run", "--stop="]), ["job", "run", "--"]);
    // Flags of configuration keys, where an empty value replaces that of a file, and lists.
    for kept in [
        "--profile=",
        "--provider=",
        "--type=",
        "--ttl=",
        "--junit=",
        "--allow-env=",
    ] {
        assert_eq!(normalised(&["run", kept]), ["run", kept, "--"]);
    }
    // Numbers and durations, a flag with a default, and a command of our own.
    for (command, kept) in [
        ("tunnel", "--local-port="),
        ("heartbeat", "--idle-timeout="),
        ("prewarm", "--keep-alive-minutes="),
        ("watch", "--idle-exit="),
        ("logs", "--tail="),
        ("init", "--workflow="),
        ("__supervise", "--adopt="),
    ] {
        assert_eq!(normalised(&[command, kept]), [command, kept, "--"]);
    }
    // This program's own commands and flags, where it is a mistake, and could switch a check off.
    for words in [
        &["setup", "firecracker", "--sha256="][..],
        &["setup", "firecracker", "--from="],
        &["image", "import", "--sha256="],
        &["image", "build", "--script="],
        &["proof", "--check="],
        &["cache", "volumes", "--remove="],
    ] {
        assert_eq!(normalised(words), [words, &["--"]].concat(), "{words:?}");
    }
}

#[test]
fn booleans_never_take_the_next_word() {
    ok(
        &["run", "--keep", "false"],
        &["run", "--keep=true", "--", "false"],
    );
    ok(&["run", "-keep=T"], &["run", "--keep=true", "--"]);
    stops(
        &["run", "--keep=maybe"],
        "invalid boolean value \"maybe\" for -keep: parse error",
    );
}

#[test]
fn a_switch_that_is_off_is_as_good_as_no_flag() {
    ok(&["run", "-keep=F"], &["run", "--"]);
    ok(&["run", "--keep", "--keep=0"], &["run", "--"]);
    ok(&["run", "--keep=0", "--keep"], &["run", "--keep=true", "--"]);
    let parsed = |words: &[&str]| crate::args::parse(&argv(words));
    for words in [
        &["status", "--wait=false", "--watch", "x"][..],
        &["status", "--wait", "--watch=false", "x"],
        &["doctor", "--fleet", "--probe=false", "--all=false"],
        &["doctor", "--fleet=false", "--probe"],
        &["proof", "--check", "x", "--yes=false"],
    ] {
        assert!(parsed(words).is_ok(), "{words:?}");
    }
    assert!(parsed(&["status", "--wait", "--watch", "x"]).is_err());
    // On unless switched off, and a key of the configuration, where it replaces a file's.
    let Ok(crate::args::Command::Warmup(args)) = parsed(&["warmup", "--keep=false"]) else {
        panic!("it is warmup");
    };
    assert!(!args.keep);
    let Ok(crate::args::Command::Stop(args)) =
        parsed(&["stop", "--firecracker-delete-on-release=false", "x"])
    else {
        panic!("it is stop");
    };
    assert_eq!(args.keys.values.len(), 1);
}

#[test]
fn flags_stop_at_the_first_positional_and_at_two_dashes() {
    ok(&["run", "ls", "--keep"], &["run", "--", "ls", "--keep"]);
    ok(
        &["run", "--", "--bogus", "--", "x"],
        &["run", "--", "--bogus", "--", "x"],
    );
    ok(&["run", "-", "-id"], &["run", "--", "-", "-id"]);
}

#[test]
fn some_commands_take_flags_after_positionals() {
    ok(&["ssh", "blue", "--id", "x"], &["ssh", "--id=x", "--", "blue"]);
    ok(&["ssh", "blue", "--", "--id"], &["ssh", "--", "blue", "--id"]);
}

#[test]
fn no_flag_is_taken_for_one_of_any_number_of_words() {
    let root = crate::args::command();
    let normalised = |words: &[&str]| texts(&normalise(&argv(words), &root).unwrap());
    assert_eq!(
        normalised(&["pull", "src", "--dry-run", "--id", "x", "--", "-odd"]),
        ["pull", "--dry-run=true", "--id=x", "--", "src", "-odd"]
    );
    assert_eq!(
        normalised(&["ports", "--id", "x", "list", "--json"]),
        ["ports", "--id=x", "--json=true", "--", "list"]
    );
    // Every command with any number of words reads flags behind them, is the start of another command line,
    // or counts them.
    let counts = ["cp", "verify"];
    let mut left: Vec<(Vec<String>, &Command)> = vec![(Vec::new(), &root)];
    while let Some((path, command)) = left.pop() {
        for below in command.get_subcommands() {
            let path: Vec<String> = path
                .iter()
                .cloned()
                .chain([below.get_name().to_owned()])
                .collect();
            left.push((path, below));
        }
        if takes_any_words(command) && !counts.contains(&path[0].as_str()) {
            let words: Vec<&str> = path.iter().map(String::as_str).chain(["word", "-h"]).collect();
            assert_eq!(
                normalise(&argv(&words), &root),
                Err(Stop::Help(path.clone())),
                "{words:?}"
            );
        }
    }
}

#[test]
fn mistakes_have_gos_words() {
    stops(&["run", "--bogus", "ls"], "flag provided but not defined: -bogus");
    stops(&["run", "-bogus=1"], "flag provided but not defined: -bogus");
    stops(&["run", "--id"], "flag needs an argument: -id");
    stops(&["run", "---id"], "bad flag syntax: ---id");
    stops(&["run", "--=x"], "bad flag syntax: --=x");
    stops(&["run", "-="], "bad flag syntax: -=");
}

#[test]
fn help_is_found_among_flags_only() {
    stops(&["run", "-h"], "help:run");
    stops(&["run", "--keep", "--help"], "help:run");
    stops(&["-h"], "help:");
    stops(&["pool", "--help"], "help:pool");
    ok(&["run", "ls", "-h"], &["run", "--", "ls", "-h"]);
    // As in Go, the word after a flag that takes a value is its value.
    ok(&["run", "--id", "-h"], &["run", "--id=-h", "--"]);
}

#[test]
fn unknown_and_missing_commands_are_told() {
    stops(&[], "missing command");
    stops(&["rum"], "unknown command \"rum\", did you mean \"run\"?");
    stops(&["zzz"], "unknown command \"zzz\"");
    stops(&["pool"], "missing command: pool needs one of list");
    stops(&["--bogus"], "flag provided but not defined: -bogus");
}

proptest! {
    #[test]
    fn no_vector_makes_it_panic_and_clap_reads_what_it_writes(
        words in prop::collection::vec(
            prop_oneof![
                Just("run".to_owned()), Just("ssh".to_owned()), Just("--".to_owned()), Just("-".to_owned()),
                Just("--keep".to_owned()), Just("-id".to_owned()), Just("status".to_owned()), Just("--json".to_owned()),
                "-{0,3}[a-z=]{0,6}", "\\PC{0,6}",
            ],
            0..8,
        )
    ) {
        let argv: Vec<OsString> = std::iter::once("crabbox".to_owned()).chain(words).map(Into::into).collect();
        let root = crate::args::command();
        if let Ok(out) = normalise(&argv, &root) {
            // clap may still reject a value or a count, but never a flag: all of them are before the mark.
            let mark = out.iter().position(|word| word == "--").unwrap();
            if let Err(error) = root.clone().try_get_matches_from(&out[..=mark]) {
                let unknown = error.kind() == clap::error::ErrorKind::UnknownArgument;
                prop_assert!(!unknown, "{out:?}: {error}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_do_not_harm(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
        let argv = ["crabbox".into(), "run".into(), OsString::from_vec(bytes)];
        let _outcome = normalise(&argv, &tree());
    }
}
