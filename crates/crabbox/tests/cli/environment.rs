//! Which of the caller's variables reach the programs that crabbox starts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crabbox_host::command::Cmd;

use crate::place::Place;

/// A place whose `PATH` has a `git` that records its environment before it does its work.
fn place() -> Place {
    let place = Place::new();
    let repo = place.path("repo");
    fs::remove_dir_all(&repo).unwrap();
    fs::create_dir_all(&repo).unwrap();
    fs::write(repo.join("a"), "a").unwrap();
    Cmd::new("git")
        .args(["init", "-q", "."])
        .cwd(&repo)
        .run()
        .unwrap();
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    let seen = place.path("seen");
    let script = format!(
        "#!/bin/sh\nenv >> '{}'\nexec /usr/bin/git \"$@\"\n",
        seen.display()
    );
    fs::write(bin.join("git"), script).unwrap();
    fs::set_permissions(bin.join("git"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.display());
    place.env("PATH", path)
}

#[test]
fn git_sees_no_secret_of_the_caller_and_no_setting_that_starts_a_program() {
    let place = place()
        .env("GITHUB_TOKEN", "hush-1")
        .env("AWS_SECRET_ACCESS_KEY", "hush-2")
        .env("DATABASE_URL", "hush-3")
        .env("GIT_SSH_COMMAND", "hush-4")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "core.fsmonitor")
        .env("GIT_CONFIG_VALUE_0", "hush-5")
        .env("SSH_AUTH_SOCK", "hush-6")
        .env("XDG_CONFIG_HOME", "/nonexistent");
    let answer = place.run(&["sync-plan"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let seen = fs::read_to_string(place.path("seen")).unwrap();
    assert!(
        seen.contains("XDG_CONFIG_HOME=/nonexistent") && seen.contains("HOME="),
        "{seen}"
    );
    assert!(!seen.contains("hush"), "{seen}");
}

#[test]
fn a_directory_that_the_caller_trusts_by_the_environment_is_trusted() {
    let place = place();
    let repo = place.path("repo");
    Cmd::new("chown")
        .args(["-R", "4321:4321"])
        .arg(&repo)
        .run()
        .unwrap();
    let refused = place.run(&["sync-plan"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("dubious ownership"), "{}", refused.err);
    let trusting = place
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "user.name")
        .env("GIT_CONFIG_VALUE_0", "t")
        .env("GIT_CONFIG_KEY_1", "safe.directory")
        .env("GIT_CONFIG_VALUE_1", &repo);
    let answer = trusting.run(&["sync-plan"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
}
