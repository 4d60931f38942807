//! What a repository chooses on a static host (destination, job, profile, presets), and what it cannot.

use std::fs;

use crabbox_host::command::Cmd;
use crabbox_testkit::sshd::Sshd;

use crate::static_host::{ID, configure, existing, key};

/// A repository's host is refused if its configuration also chooses the provider; it does not count if a
/// lease's name leads to the provider.
#[test]
fn a_repository_cannot_choose_where_the_user_s_key_goes() {
    let (place, sshd) = existing();
    let key = key(&place, &sshd);
    place.write(
        "home/.config/crabbox/config.yaml",
        format!("ssh:\n  key: {key}\n"),
    );
    place.write(
        "repo/.crabbox.yaml",
        format!(
            "static:\n  host: 127.0.0.1\n  user: {}\n  port: {}\n",
            sshd.user(),
            sshd.port()
        ),
    );
    let chosen = place.run(&["warmup", "--provider", "ssh"]);
    assert_eq!(chosen.code, 2);
    assert!(
        chosen
            .err
            .contains("provider=ssh refuses repository-configured static.host"),
        "{}",
        chosen.err
    );
    let own_file = place
        .path("home/.config/crabbox/config.yaml")
        .display()
        .to_string();
    assert!(chosen.err.contains(&own_file), "{}", chosen.err);
    let led = place.run(&["connect", ID]);
    assert_eq!(led.code, 2, "{}", led.err);
    let missing = "provider=ssh requires static.host or CRABBOX_STATIC_HOST\n";
    assert!(
        led.err.contains(missing) && led.err.contains(&own_file),
        "{}",
        led.err
    );
    assert_eq!(sshd.logins(), 0);
}

/// The host is approved; the repository tries to substitute another server, user, key and directory.
#[test]
fn a_repository_turns_no_key_of_a_destination_and_gets_no_secret() {
    let ((place, sshd), other) = (existing(), Sshd::start());
    configure(&place, &sshd, "env:\n  allow: [MY_TOKEN]\n");
    fs::write(place.path("repo/its-key"), fs::read(other.client_key()).unwrap()).unwrap();
    std::os::unix::fs::symlink(place.path("home/.ssh/key"), place.path("repo/link")).unwrap();
    let place = place.env("MY_TOKEN", "hunter2");
    for (index, text) in [
        format!("ssh:\n  key: its-key\n  port: {}\n", other.port()),
        format!("static:\n  port: {}\n  host: localhost\n", other.port()),
        format!(
            "ssh:\n  key: link\nstatic:\n  id: {ID}\n  workRoot: {}/evil\n",
            sshd.dir().display()
        ),
        format!(
            "provider: firecracker\nworkRoot: {}/evil\nssh:\n  user: nobody\n",
            sshd.dir().display()
        ),
    ]
    .iter()
    .enumerate()
    {
        let keys = text.lines().filter(|line| !line.ends_with(':')).count();
        place.write("repo/crabbox.yaml", text);
        let run = place.run(&["run", "--", "sh", "-c", "echo $MY_TOKEN; pwd"]);
        assert_eq!(run.code, 0, "{text}{}", run.err);
        let work_root = sshd.dir().join("work").display().to_string();
        assert!(
            run.out.starts_with(&format!("hunter2\n{work_root}/")),
            "{text}{}",
            run.out
        );
        let warned = run
            .err
            .lines()
            .filter(|line| line.contains("crabbox.yaml:") && line.contains(" is ignored: "));
        assert_eq!(warned.count(), keys, "{index}: {}", run.err);
    }
    assert_eq!(other.logins(), 0);
    assert!(!sshd.dir().join("evil").exists());
}

/// A job's provider becomes a flag, which would override the user's choice.
#[test]
fn a_repository_s_job_does_not_exchange_the_provider() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write(
        "repo/crabbox.yaml",
        "jobs:\n  t:\n    provider: firecracker\n    command: echo here\n",
    );
    let run = place.run(&["job", "run", "t"]);
    assert_eq!((run.code, run.out.as_str()), (0, "here\n"), "{}", run.err);
    assert!(
        run.err
            .contains("provider firecracker of job t is ignored: you chose ssh"),
        "{}",
        run.err
    );
}

#[test]
fn a_profile_and_its_presets_reach_the_command_and_secrets_only_when_the_user_says_so() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write(
        "repo/.crabbox.yaml",
        "profiles:\n  ci:\n    env: {FROM_PROFILE: p, BOTH: profile}\n    envAllow: [BOTH, MY_TOKEN, PLAIN]\n\
         presets:\n  show:\n    command: 'echo \"$FROM_PROFILE $FROM_PRESET $BOTH $PLAIN [$MY_TOKEN]\"'\n    shell: true\n    env: {FROM_PRESET: q}\n",
    );
    let place = place
        .env("BOTH", "host")
        .env("PLAIN", "plain")
        .env("MY_TOKEN", "s3cr3t");
    let run = place.run(&["run", "--profile", "ci", "--preset", "show"]);
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "p q host plain []\n"),
        "{}",
        run.err
    );
    let told = run.err.lines().find(|line| line.starts_with("expanded preset "));
    assert!(
        told.is_some_and(|told| told.starts_with("expanded preset show: ")
            && told.contains(" FROM_PRESET=set ")
            && told.contains("$FROM_PRESET")
            && !told.contains("=q")),
        "{}",
        run.err
    );
    let warning = "warning: MY_TOKEN is not forwarded: only the repository asks for it";
    assert!(
        run.err.contains(warning) && !run.err.contains("s3cr3t"),
        "{}",
        run.err
    );
    let allowed = place.run(&[
        "run",
        "--profile",
        "ci",
        "--preset",
        "show",
        "--allow-env",
        "MY_TOKEN",
    ]);
    assert_eq!(allowed.out, "p q host plain [s3cr3t]\n", "{}", allowed.err);
    assert!(!allowed.err.contains("warning:"), "{}", allowed.err);
    let unknown = place.run(&["run", "--preset", "shwo"]);
    assert_eq!(unknown.code, 2);
    assert!(
        unknown.err.contains("unknown preset \"shwo\"") && unknown.err.contains("show"),
        "{}",
        unknown.err
    );
    let both = place.run(&["run", "--preset", "show", "--", "true"]);
    assert_eq!(
        (both.code, both.err.lines().next()),
        (2, Some("--preset cannot be combined with a command"))
    );
}

#[test]
fn what_is_put_into_a_preset_is_data_and_no_script() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write(
        "repo/.crabbox.yaml",
        "profiles:\n  ci:\n    env: {WHERE: 'at {{where}}'}\n\
         presets:\n  show:\n    command: printf '<%s>' {{what}} \"{{what}}\" \"$WHERE\" \"$NAME\" {{scenario}}\n    \
         env: {NAME: '{{scenario}}!'}\n  nested:\n    command: echo \"$(echo {{what}})\"\n    shell: true\n  plain:\n    command: echo plain\n",
    );
    let what = "what=a b'; touch bad; \"$(touch bad)\"";
    let run = place.run(&[
        "run",
        "--profile",
        "ci",
        "--preset",
        "show",
        "--preset-var",
        what,
        "--preset-var=where=x,unused=y",
        "--scenario",
        "log in",
    ]);
    let value = &what[5..];
    assert_eq!(
        (run.code, run.out),
        (0, format!("<{value}><{value}><at x><log in!><log in>")),
        "{}",
        run.err
    );
    assert!(
        run.err.contains("expanded preset show: ") && run.err.contains("warning: {{unused}} stands nowhere"),
        "{}",
        run.err
    );
    let plain = place.run(&["run", "--preset", "plain"]);
    assert_eq!((plain.code, plain.out.as_str()), (0, "plain\n"), "{}", plain.err);
    let nested = |value: &str| place.run(&["run", "--preset", "nested", "--preset-var", value]);
    assert_eq!(nested("what=1.2").out, "1.2\n");
    for (answer, want) in [
        (
            nested("what=$(id)"),
            "preset nested command has {{what}} where its value cannot be quoted\n",
        ),
        (
            nested("other=1"),
            "preset nested command has unresolved preset variable(s): {{what}}\n",
        ),
        (nested("what"), "--preset-var expects name=value\n"),
        (
            place.run(&["run", "--profile", "ci", "--", "true"]),
            "profile ci env WHERE has unresolved preset variable(s): {{where}}\n",
        ),
    ] {
        assert_eq!(answer.code, 2, "{}", answer.err);
        assert!(answer.err.starts_with(want), "{}", answer.err);
    }
    // The suggestions after a failure include them, too.
    place.write(
        "repo/.crabbox.yaml",
        "presets: {fail: {command: 'false {{v}}'}}\n",
    );
    let failed = place.run(&["run", "--preset", "fail", "--preset-var", "v=a b"]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.err.contains("--preset fail --preset-var 'v=a b'"),
        "{}",
        failed.err
    );
}

#[test]
fn what_the_branch_is_based_on_is_there_for_the_command() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    Cmd::new("sh")
        .args([
            "-ec",
            "git checkout -q -b work && echo more > more && git add more && git -c user.name=t -c user.email=t@t commit -qm two",
        ])
        .cwd(place.path("repo"))
        .env("HOME", place.path("home"))
        .run()
        .unwrap();
    let place = place.env("CRABBOX_SYNC_BASE_REF", "main");
    let run = place.run(&["run", "--", "git", "diff", "--name-only", "main...HEAD"]);
    assert_eq!((run.code, run.out.as_str()), (0, "more\n"), "{}", run.err);
    assert!(!run.err.contains("sync.baseRef"), "{}", run.err);
    place.write("repo/.crabbox.yaml", "sync: {gitSeed: false}\n");
    let run = place.run(&["run", "--", "true"]);
    assert!(
        run.err.contains("warning: sync.baseRef (")
            && run.err.contains("has no effect: with sync.gitSeed off"),
        "{}",
        run.err
    );
}

/// The user's own rules go along; those that a repository names could be any file of the user's.
#[test]
fn what_the_user_ignores_everywhere_is_ignored_in_the_lease() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write("home/.gitconfig", "[core]\n\texcludesFile = ~/rules\n");
    place.write("home/rules", "*.o\n");
    let run = || {
        let script = "echo 1 > a.o; git status --short; cat .git/info/exclude; rm a.o";
        place.run(&["run", "--", "sh", "-c", script])
    };
    let first = run();
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(
        !first.out.contains("?? a.o") && first.out.contains("\n*.o\n"),
        "{}",
        first.out
    );
    let secret = place.write("home/secret", "hunter2\n").display().to_string();
    let config = fs::read_to_string(place.path("repo/.git/config")).unwrap();
    place.write(
        "repo/.git/config",
        format!("{config}[core]\n\texcludesFile = {secret}\n"),
    );
    let second = run();
    assert_eq!(second.code, 0, "{}", second.err);
    assert!(
        second.out.contains("?? a.o") && !second.out.contains("hunter2"),
        "{}",
        second.out
    );
}
