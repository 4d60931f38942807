//! Arguments, help, exit codes and the commands that need no configuration.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use crate::place::{Place, run};

#[test]
fn help_is_success_and_goes_to_standard_output() {
    for words in [
        &["-h"][..],
        &["--help"],
        &["help"],
        &["run", "-h"],
        &["help", "run"],
        &["config", "--help"],
    ] {
        let answer = run(words);
        assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{words:?}");
        assert!(answer.out.contains("Usage: crabbox"), "{words:?}: {}", answer.out);
    }
    let top = run(&["help"]).out;
    assert!(top.contains("warmup") && !top.contains("__supervise"), "{top}");
}

#[test]
fn the_version_has_three_spellings() {
    for words in [["version"], ["--version"], ["-v"]] {
        let answer = run(&words);
        assert_eq!(
            (answer.code, answer.out.trim()),
            (0, env!("CARGO_PKG_VERSION")),
            "{words:?}"
        );
    }
}

#[test]
fn what_will_not_come_is_refused_with_its_reason() {
    let refused: &[(&[&str], &str)] = &[
        (
            &["actions", "hydrate", "--id", "x"],
            "actions is not in this program: ",
        ),
        (
            &["artifacts", "collect"],
            "artifacts is not in this program yet; `run --artifact-glob`",
        ),
        (&["capsule"], "capsule is not in this program: "),
        (&["help", "capsule"], "capsule is not in this program: "),
        (
            &["pool", "ready"],
            "pool ready is not in this program: it needs a coordinator",
        ),
        (
            &["desktop"],
            "desktop is not in this program: a microVM has no screen",
        ),
        (
            &["warmup", "--pond", "p"],
            "--pond is not in this program: it needs a coordinator",
        ),
        (
            &["providers", "sizes", "--json"],
            "providers sizes is not in this program: sizes are a cloud's",
        ),
        (
            &["config", "show", "--json", "--controller-provider-identity"],
            "--controller-provider-identity is not in this program: it needs a coordinator",
        ),
        (
            &["prewarm", "--wait-timeout", "5m"],
            "--wait-timeout is not in this program: it is about a workflow of a forge",
        ),
        (
            &["run", "--pool-return", "x", "--", "true"],
            "--pool-return is not in this program: it needs a coordinator",
        ),
        (
            &["stop", "--confirmed-absent-local-cleanup", "x"],
            "--confirmed-absent-local-cleanup is not in this program: it needs a coordinator",
        ),
    ];
    for (words, told) in refused {
        let answer = run(words);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}");
        assert!(answer.err.starts_with(told), "{words:?}: {}", answer.err);
    }
}

#[test]
fn usage_errors_are_exit_2_on_standard_error() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["rum"],
            "unknown command \"rum\", did you mean \"run\"?\nusage: crabbox <COMMAND>\n",
        ),
        (
            &["config"],
            "missing command: config needs one of path, show, explain\nusage: crabbox config <COMMAND>\n",
        ),
        (
            &["config", "shw"],
            "unknown command \"shw\", did you mean \"show\"?\nusage: crabbox config <COMMAND>\n",
        ),
        (
            &["run", "--bogus", "ls"],
            "flag provided but not defined: -bogus\nusage: crabbox run [flags] -- <command...>\n",
        ),
        (
            &["run", "-keep=maybe"],
            "invalid boolean value \"maybe\" for -keep: parse error\n",
        ),
        (&["status", "--id"], "flag needs an argument: -id\n"),
        (
            &["status", "-wait-timeout", "5d"],
            "invalid value \"5d\" for flag -wait-timeout: parse error\n",
        ),
        (
            &["run", "-stop-after=later", "x"],
            "invalid value \"later\" for flag -stop-after: expected one of success, always, failure, never\n",
        ),
        (&["stop", "a", "b"], "unexpected argument \"b\"\n"),
        (
            &["stop", "a", "--json"],
            "unexpected argument \"--json\": flags go before the first argument\n",
        ),
        (
            &["help", "rum"],
            "unknown command \"rum\", did you mean \"run\"?\n",
        ),
        (
            &["checkpoint", "create"],
            "checkpoint is not in this program yet\n",
        ),
        (
            &["completions"],
            "missing <SHELL>\nusage: crabbox completions <SHELL>",
        ),
        (&["config", "actions"], "unknown command \"actions\""),
        (
            &["run", "--fresh-pr", "1", "ls"],
            "--fresh-pr is not in this program: ",
        ),
        (
            &["run", "--apply-local-patch", "ls"],
            "--apply-local-patch is not in this program: ",
        ),
        (
            &["warmup", "--actions-runner"],
            "--actions-runner is not in this program: ",
        ),
    ];
    for (words, want) in cases {
        let answer = run(words);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}");
        assert!(answer.err.starts_with(want), "{words:?}: {}", answer.err);
    }
    let nothing = run(&[]);
    assert_eq!(nothing.code, 2);
    assert!(nothing.out.contains("Commands:") && nothing.err.starts_with("missing command\n"));
}

#[test]
fn a_choice_that_means_nothing_is_exit_2_for_whatever_provider() {
    let host = "--static-host=192.0.2.1";
    for (words, want) in [
        (
            &["--network", "x"][..],
            "network must be auto, tailscale, or public, found \"x\"",
        ),
        (
            &["--os", "foo"],
            "unsupported os \"foo\"; supported: ubuntu:26.04, ubuntu:24.04",
        ),
        (
            &["--arch", "bad"],
            "architecture must be amd64 or arm64, found \"bad\"",
        ),
        (
            &["--target", "beos"],
            "target must be linux, macos, windows, or worker-runtime, found \"beos\"",
        ),
        (
            &["--arch", "aarch64"],
            "provider={} does not support architecture=arm64",
        ),
        (&["--target", "Darwin"], "provider={} supports target=linux only"),
        (
            &["--windows-mode", "wsl"],
            "windows.mode is only valid with target=windows",
        ),
        (
            &["--network", "Tailscale"],
            "provider={} does not support tailscale-managed networking",
        ),
        (
            &["--tailscale"],
            "provider={} does not support tailscale-managed networking",
        ),
        (&["--desktop"], "desktop/VNC is not supported for provider={}"),
        (
            &["--browser"],
            "browser provisioning is not supported for provider={}",
        ),
        (&["--code"], "web code is not supported for provider={}"),
        (
            &["--lease-output", "x"],
            "--lease-output is not supported for provider={} yet",
        ),
        (
            &["--preflight-tools", "git,frobnicate"],
            "unknown preflight tool \"frobnicate\"",
        ),
    ] {
        for (spelled, provider) in [("SSH", "ssh"), ("Firecracker", "firecracker")] {
            for lease in ["--id=", "--id=static_192-0-2-1"] {
                let chosen = ["run", "--no-sync", "--provider", spelled, host, lease];
                let all = [&chosen[..], words, &["--", "true"]].concat();
                let answer = run(&all);
                assert_eq!(
                    (answer.code, answer.out.as_str()),
                    (2, ""),
                    "{all:?}: {}",
                    answer.err
                );
                let want = want.replace("{}", provider);
                assert!(answer.err.starts_with(&want), "{all:?}: {}", answer.err);
            }
        }
    }
}

#[test]
fn the_provider_of_a_refusal_is_the_one_that_is_configured() {
    let place = Place::new().env("CRABBOX_PROVIDER", "ssh");
    let answer = place.run(&["warmup", "--tailscale"]);
    assert_eq!(answer.code, 2);
    assert_eq!(
        answer.err,
        "provider=ssh does not support tailscale-managed networking\n"
    );
}

#[test]
fn flags_of_features_that_do_not_exist_are_refused_by_name() {
    let refused: &[(&[&str], &str)] = &[
        (
            &["warmup", "--lease-id", "cbx_0123456789ab"],
            "provider=firecracker does not support fixed idempotent lease IDs\n",
        ),
        (
            &["warmup", "--tailscale"],
            "provider=firecracker does not support tailscale-managed networking\n",
        ),
        (
            &["run", "--lease-output", "x", "ls"],
            "--lease-output is not supported for provider=firecracker yet\n",
        ),
        (
            &["run", "--pool", "x", "ls"],
            "--pool requires a coordinator-backed SSH lease provider\n",
        ),
        (
            &["warmup", "--image-min-os", "15.4"],
            "image capability requirements require a coordinator-managed AWS lease\n",
        ),
        (
            &["run", "--id", "x", "--image-sdk", "go=1.25", "ls"],
            "image capability requirements apply only when creating a new lease\n",
        ),
    ];
    for (words, want) in refused {
        let answer = run(words);
        assert_eq!((answer.code, answer.err.as_str()), (2, *want), "{words:?}");
    }
    // Empty and false values request nothing, so they are not refused.
    let nothing = run(&["warmup", "--image-min-os=", "--image-require-browser=false"]);
    assert!(nothing.err.starts_with("no provider selected"), "{}", nothing.err);
}

#[test]
fn words_that_are_no_text_are_an_error_and_no_panic() {
    let place = Place::new();
    let output = place
        .command(&["status"])
        .arg(std::ffi::OsString::from_vec(vec![0xff, 0xfe]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = place
        .command(&["help"])
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command(&["help"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("cannot write to standard output: ")
    );
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let answer = run(&["completions", shell]);
        assert_eq!(answer.code, 0);
        assert!(
            answer.out.contains("warmup") && answer.out.contains("firecracker-cpus"),
            "{shell}"
        );
    }
}
