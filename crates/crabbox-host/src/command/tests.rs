use super::*;

#[test]
fn captures_both_streams_and_feeds_input() {
    let out = Cmd::new("sh")
        .args(["-c", "cat; echo err >&2"])
        .stdin("in")
        .run()
        .unwrap();
    assert_eq!(
        (out.stdout_text().as_str(), out.stderr_text().as_str()),
        ("in", "err")
    );
}

#[test]
fn a_failure_names_program_code_and_last_words() {
    let error = Cmd::new("sh")
        .args(["-c", "echo why >&2; exit 3"])
        .run()
        .unwrap_err();
    assert_eq!(error.to_string(), "sh failed with exit code 3: why");
}

#[test]
fn a_child_gets_of_the_caller_s_variables_what_its_policy_lets_through() {
    // cargo sets this variable for every test; it stands for a secret token.
    let secret = "CARGO_MANIFEST_DIR";
    assert!(std::env::vars_os().any(|(name, _)| name == secret));
    let seen = |cmd: Cmd| cmd.run().unwrap().stdout_text();
    let has = |text: &str, name: &str| text.lines().any(|line| line.starts_with(&format!("{name}=")));
    let plain = seen(Cmd::new("env").env("GIVEN", "x"));
    assert!(
        !has(&plain, secret) && has(&plain, "PATH") && has(&plain, "GIVEN"),
        "{plain}"
    );
    for policy in [
        Environment::Login,
        Environment::Fetch,
        Environment::Git,
        Environment::Own,
    ] {
        let text = seen(Cmd::new("env").environment(policy));
        assert!(!has(&text, secret) && has(&text, "PATH"), "{text}");
    }
    let given = seen(Cmd::new("env").env(secret, "y"));
    assert!(given.lines().any(|line| line == format!("{secret}=y")), "{given}");
    assert!(has(
        &seen(Cmd::new("env").environment(Environment::Whole)),
        secret
    ));
}

/// Every file that passes on the caller's whole environment is listed here, with the reason.
#[test]
fn all_variables_go_to_ssh_and_to_ourselves_only() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = Cmd::new("grep")
        .args(["-rlE", r"Environment::Whole|inheriting\(", "--include=*.rs"])
        .arg(crates)
        .run()
        .unwrap();
    let found = found.stdout_text();
    let unexpected: Vec<&str> = found
        .lines()
        .map(|path| path.trim_start_matches(crates.to_str().unwrap()))
        .filter(|path| path.contains("/src/"))
        // crabbox-lab runs cargo and QEMU for developers, and is not part of a release.
        .filter(|path| !path.starts_with("/crabbox-host/") && !path.starts_with("/crabbox-lab/"))
        .filter(|path| *path != "/crabbox-ssh/src/target.rs")
        // Runs this program itself, as a user would to make a proof.
        .filter(|path| *path != "/crabbox-engine/src/host/proof.rs")
        .collect();
    assert!(found.contains("/crabbox-ssh/src/target.rs"), "{found}");
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[test]
fn a_missing_program_is_told_apart() {
    let error = Cmd::new("crabbox-no-such-program").run().unwrap_err();
    assert!(matches!(error, CommandError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_child_that_writes_without_end_is_ended_and_its_first_bytes_are_kept() {
    let endless = Cmd::new("cat").arg("/dev/zero").output_limit(1000);
    let captured = endless.capture().unwrap();
    assert_eq!((captured.stdout.len(), captured.cut), (1000, true));
    let error = endless.run().unwrap_err();
    assert!(
        matches!(error, CommandError::TooMuchOutput { limit: 1000, .. }),
        "{error:?}"
    );
    let short = Cmd::new("echo").arg("-n").arg("x").output_limit(1).run().unwrap();
    assert_eq!((short.stdout.as_slice(), short.cut), (b"x".as_slice(), false));
}

#[test]
fn a_group_past_its_limit_is_killed_whole() {
    let started = Instant::now();
    let command = Cmd::new("sh").args(["-c", "sleep 30; true"]);
    command
        .limit(Duration::from_millis(50))
        .own_group()
        .run()
        .unwrap_err();
    // Without its own group, the grandchild would keep our pipes open until it ends.
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_child_that_nobody_wants_any_more_is_killed_with_its_group() {
    use std::os::fd::AsFd as _;
    let (stop, told) = std::io::pipe().unwrap();
    drop(told);
    let dir = tempfile::tempdir().unwrap();
    let began = dir.path().join("began");
    let cmd = Cmd::new("sh")
        .args(["-c", "touch \"$0\"; sleep 30 & wait"])
        .arg(&began)
        .own_group();
    let error = cmd.run_until(Some(stop.as_fd())).unwrap_err();
    assert!(matches!(error, CommandError::Cancelled { .. }), "{error}");
    assert!(!began.exists(), "it was not even started");
    let started = Instant::now();
    let error = cmd.capture_unless(&|| began.exists()).unwrap_err();
    assert!(matches!(error, CommandError::Cancelled { .. }), "{error}");
    // Otherwise its child would keep our pipes open for half a minute.
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_child_past_its_limit_is_killed() {
    let started = Instant::now();
    let error = Cmd::new("sleep")
        .arg("30")
        .limit(Duration::from_millis(50))
        .run()
        .unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
}
