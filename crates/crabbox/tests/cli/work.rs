//! Commands built from others (`watch`, `job`, `prewarm`), and `init`, on an existing host.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use crabbox_host::clock::poll_until;

use crate::place::Place;
use crate::static_host::{ID, claimed, configure, connected, existing};

/// How long anything here may take.
const LONG: Duration = Duration::from_secs(30);

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

/// Waits until `file` of the machine holds `text`.
fn until(file: &std::path::Path, text: &str) {
    let seen = poll_until(LONG, || fs::read_to_string(file).ok().filter(|seen| seen == text));
    assert!(
        seen.is_some(),
        "{} never held {text:?}, but {:?}",
        file.display(),
        fs::read_to_string(file)
    );
}

/// Changes a file of the repository atomically, so that there is one change to notice.
fn put(place: &Place, name: &str, text: &str) {
    let made = place.write("outside/new", text);
    fs::rename(made, place.path("repo").join(name)).unwrap();
}

/// Reads until the command has ended and the tree is watched.
fn waits(lines: &mut impl Iterator<Item = std::io::Result<String>>) {
    let waiting = lines.find(|line| line.as_ref().unwrap() == "watch waiting for changes");
    waiting.expect("it never waited").unwrap();
}

/// Starts a watch that runs `script` after each change.
fn watching(place: &Place, script: &str) -> Child {
    let words = ["watch", "--debounce", "50ms", "--shell", "--", script];
    let mut command = place.command(&words);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

#[test]
fn watch_runs_again_when_a_synced_file_has_changed_and_gives_the_lease_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    place.write("repo/.gitignore", "ignored\n");
    let log = sshd.dir().join("log-of-runs");
    let script = format!("cat tracked >> {0}; test ! -e fail", log.display());
    let mut child = watching(&place, &script);
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert_eq!(
        first,
        format!("leased {ID} slug=127-0-0-1 provider=ssh idle_timeout=30m0s idle_exit=30m0s\n")
    );
    let (sender, lines) = std::sync::mpsc::channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        for line in stderr.lines() {
            let line = line.unwrap();
            all.push_str(&line);
            all.push('\n');
            sender.send(Ok(line)).ok();
        }
        all
    });
    let mut lines = lines.into_iter();
    until(&log, "dirty\n");
    waits(&mut lines);
    place.write("repo/ignored", "x");
    put(&place, "tracked", "second\n");
    until(&log, "dirty\nsecond\n");
    waits(&mut lines);
    // A failing command does not end the watch.
    put(&place, "fail", "");
    until(&log, "dirty\nsecond\nsecond\n");
    waits(&mut lines);
    fs::remove_file(place.path("repo/fail")).unwrap();
    until(&log, "dirty\nsecond\nsecond\nsecond\n");
    waits(&mut lines);
    signal(&child, rustix::process::Signal::INT);
    let code = child.wait().unwrap().code();
    drop(lines);
    let err = reading.join().unwrap();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(err.matches("watch change detected\n").count(), 3, "{err}");
    assert!(err.contains("\nremote command exited 1\n"), "{err}");
    assert!(err.contains("lease cleanup stopped=true policy=auto"), "{err}");
    assert!(!claimed(&place, ID) && !connected(&place));
}

#[test]
fn watch_ends_when_nothing_changes_and_keeps_what_is_not_its_own() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    assert_eq!(place.run(&["warmup"]).code, 0);
    let idle = place.run(&["watch", "--id", ID, "--idle-exit", "100ms", "--", "true"]);
    assert_eq!(idle.code, 0, "{}", idle.err);
    assert!(
        idle.out.starts_with(&format!("watch lease={ID} ")),
        "{}",
        idle.out
    );
    assert!(idle.err.ends_with("watch idle for 100ms\n"), "{}", idle.err);
    assert!(claimed(&place, ID), "it was there before");
    for (words, says) in [
        (
            &["watch", "--id", ID, "--slug", "x", "--", "true"][..],
            "--slug only applies when creating a new lease",
        ),
        (
            &["watch", "--id", ID, "--keep", "--", "true"],
            "--keep only applies",
        ),
        (
            &["watch", "--id", ID, "--yes", "--", "true"],
            "--yes only applies",
        ),
        (&["watch"], "usage: crabbox watch"),
        (&["watch", "--debounce", "x", "--", "true"], "invalid value"),
    ] {
        let answer = place.run(words);
        assert_eq!(answer.code, 2, "{}", answer.err);
        assert!(answer.err.starts_with(says), "{}", answer.err);
    }
}

#[test]
fn what_cannot_run_is_refused_before_there_is_a_lease_for_it() {
    let (place, _) = existing();
    // Nothing listens there: an attempt to take a lease first would end with 5.
    place.write(
        "home/.config/crabbox/config.yaml",
        "provider: ssh\nstatic: {host: 127.0.0.1, port: 1, user: nobody}\npresets: {lacking: {command: 'echo {{n}}'}}\n",
    );
    let one = "capture stdout/stderr: paths must be different\n";
    for (words, says) in [
        (&["watch", "--preset", "nope"][..], "unknown preset \"nope\"\n"),
        (
            &["watch", "--preset", "lacking"],
            "preset lacking command has unresolved preset variable(s): {{n}}\n",
        ),
        (
            &["watch", "--preset", "lacking", "--", "true"],
            "--preset cannot be combined with a command\n",
        ),
        (&["watch", "--", ""], "there is no command to run\n"),
        (&["run", "--", ""], "there is no command to run\n"),
        (&["run", "--shell", "--", " "], "there is no command to run\n"),
        (
            &["prewarm", "--probe-command", " "],
            "there is no command to run\n",
        ),
        (
            &[
                "run",
                "--capture-stdout",
                "z",
                "--capture-stderr",
                "./z",
                "--",
                "true",
            ],
            one,
        ),
        (
            &[
                "run",
                "--capture-stdout",
                "z",
                "--download",
                "a.txt=z",
                "--",
                "true",
            ],
            "capture stdout and download a.txt paths must be different\n",
        ),
        (
            &["run", "--capture-stderr", "sub", "--", "true"],
            "repo/sub is there already and is a directory\n",
        ),
        (
            &["run", "--download", "a=/dev/null", "--", "true"],
            "/dev/null is a device, a pipe or a socket, or leads to one; name a file\n",
        ),
    ] {
        let answer = place.run(words);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (2, ""),
            "{words:?}: {}",
            answer.err
        );
        assert!(answer.err.contains(says), "{words:?}: {}", answer.err);
    }
}

#[test]
fn watch_ends_with_its_lease() {
    let lease = crate::run::entered();
    let mut watch = lease
        .place
        .command(&["watch", "--id", "jade-krill", "--debounce", "50ms", "--", "true"]);
    let mut child = watch
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    waits(&mut lines);
    let leases = lease.place.path("home/.config/crabbox/state/firecracker/leases");
    fs::remove_dir_all(leases).unwrap();
    lease.place.write("repo/tracked", "other\n");
    let code = poll_until(LONG, || child.try_wait().unwrap()).unwrap().code();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(code, Some(4), "{rest:?}");
}

#[test]
fn watch_ends_when_nobody_reads_what_its_command_prints_and_gives_the_lease_back() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let log = sshd.dir().join("log-of-runs");
    let script = format!(
        "echo run >> {}; if test -e endless; then exec yes; fi",
        log.display()
    );
    let mut child = watching(&place, &script);
    let out = child.stdout.take().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    waits(&mut lines);
    assert!(claimed(&place, ID));
    drop(out);
    put(&place, "endless", "");
    let ended = poll_until(LONG, || child.try_wait().unwrap());
    child.kill().ok();
    child.wait().unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(ended.and_then(|status| status.code()), Some(141), "{rest:?}");
    assert!(
        !rest.iter().any(|line| line == "watch waiting for changes"),
        "{rest:?}"
    );
    assert_eq!(fs::read_to_string(&log).unwrap(), "run\nrun\n");
    assert!(!claimed(&place, ID) && !connected(&place));
}

#[test]
fn prewarm_leaves_a_lease_that_was_looked_at() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let dry = place.run(&[
        "prewarm",
        "--dry-run",
        "--ttl",
        "1h",
        "--probe-command",
        "make it",
    ]);
    assert_eq!(
        (dry.code, dry.out.as_str()),
        (
            0,
            "crabbox warmup --ttl=1h\ncrabbox run '--id=<lease>' --no-sync --shell -- 'make it'\n"
        )
    );
    assert!(!claimed(&place, ID));
    let warm = place.run(&["prewarm", "--probe-command", "echo probed"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let lines: Vec<&str> = warm.out.lines().collect();
    assert!(
        lines[3] == format!("prewarm hydration=skipped reason=no_actions_workflow id={ID}"),
        "{}",
        warm.out
    );
    assert_eq!(lines[4], "probed");
    let complete = format!("prewarm complete id={ID} provider=ssh hydration=skipped warmup=");
    assert!(
        lines[5].starts_with(&complete) && lines[5].contains("ms hydrate=0ms probe="),
        "{}",
        warm.out
    );
    assert!(claimed(&place, ID));
    assert_eq!(place.run(&["stop", ID]).code, 0);
    let failed = place.run(&["prewarm", "--probe-command", "exit 9"]);
    assert_eq!(failed.code, 9, "{}", failed.err);
    assert!(!claimed(&place, ID), "it was not fit, so it was given back");
}

#[test]
fn jobs_run_with_their_flags() {
    let (place, sshd) = existing();
    configure(
        &place,
        &sshd,
        "jobs:\n  mine:\n    command: cat out\n    downloads: [out=../got]\n    noSync: true\n",
    );
    let none = Place::new().run(&["job", "list"]);
    assert_eq!((none.code, none.out.as_str()), (0, "no jobs configured\n"));
    place.write(
        "repo/.crabbox.yaml",
        "jobs:\n  test:\n    command: 'cat tracked; echo made > out'\n    shell: true\n    downloads: [out=made/out]\n    label: nightly\n  \
         thief:\n    command: 'true'\n    downloads: [x=.git/hooks/post-commit]\n  empty: {}\n  hydrated: {command: x, hydrate: {actions: true}}\n  \
         bad: {command: x, stop: sometimes}\n",
    );
    let bad = place.run(&["job", "run", "bad"]);
    assert_eq!(bad.code, 2, "{}", bad.err);
    let text = fs::read_to_string(place.path("repo/.crabbox.yaml")).unwrap();
    place.write(
        "repo/.crabbox.yaml",
        text.replace("  bad: {command: x, stop: sometimes}\n", ""),
    );
    let list = place.run(&["job", "list"]);
    assert_eq!(
        (list.code, list.out.as_str()),
        (
            0,
            "empty provider=- target=- hydrate_actions=false stop=auto\n\
             hydrated provider=- target=- hydrate_actions=true stop=auto\n\
             mine provider=- target=- hydrate_actions=false stop=auto\n\
             test provider=- target=- hydrate_actions=false stop=auto\n\
             thief provider=- target=- hydrate_actions=false stop=auto\n"
        )
    );
    let dry = place.run(&["job", "run", "--dry-run", "test"]);
    assert_eq!(
        dry.out,
        "crabbox run --label=nightly --shell --download=out=made/out -- 'cat tracked; echo made > out'\n"
    );
    let ran = place.run(&["job", "run", "test"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "dirty\n"), "{}", ran.err);
    assert_eq!(fs::read(place.path("repo/made/out")).unwrap(), b"made\n");
    assert!(!claimed(&place, ID), "a new lease is given back");
    for (name, says) in [
        ("thief", "job \"thief\" ("),
        ("empty", "job \"empty\" ("),
        ("hydrated", "job \"hydrated\" ("),
        (
            "none",
            "job \"none\" is not configured; there are empty, hydrated, mine, test, thief\n",
        ),
    ] {
        let refused = place.run(&["job", "run", name]);
        assert_eq!(refused.code, 2, "{name}: {}", refused.err);
        assert!(refused.err.starts_with(says), "{name}: {}", refused.err);
    }
    assert!(!place.path("repo/.git/hooks/post-commit").exists());
    // A job in the user's own configuration may write wherever the user may.
    assert_eq!(place.run(&["warmup"]).code, 0);
    let mine = place.run(&["job", "run", "--id", ID, "mine"]);
    assert_eq!((mine.code, mine.out.as_str()), (0, "made\n"), "{}", mine.err);
    assert_eq!(fs::read(place.path("got")).unwrap(), b"made\n");
    assert!(claimed(&place, ID));
}

#[test]
fn init_writes_everything_or_nothing() {
    let place = Place::new().env("PATH", "/usr/bin:/bin");
    place.write("repo/Cargo.toml", "");
    let answer = place.run(&["init", "--detect"]);
    let wrote =
        "wrote .crabbox.yaml\nwrote .github/workflows/crabbox.yml\nwrote .agents/skills/crabbox/SKILL.md\n";
    assert_eq!((answer.code, answer.out.as_str()), (0, wrote), "{}", answer.err);
    let listed = place.run(&["job", "list"]).out;
    assert!(listed.starts_with("detected provider="), "{listed}");
    assert_eq!(place.run(&["job", "list"]).err, "", "what it writes is valid");
    fs::remove_file(place.path("repo/.crabbox.yaml")).unwrap();
    fs::write(place.path("repo/.agents/skills/crabbox/SKILL.md"), "mine").unwrap();
    let refused = place.run(&["init"]);
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (
            2,
            ".github/workflows/crabbox.yml already exists; use --force to overwrite\n"
        )
    );
    assert!(!place.path("repo/.crabbox.yaml").exists(), "none was written");
    let other = place.run(&["init", "--force", "--skill", "a/S.md", "--skill", "b/S.md"]);
    assert_eq!(other.code, 0, "{}", other.err);
    assert!(place.path("repo/a/S.md").exists() && place.path("repo/b/S.md").exists());
    assert_eq!(
        fs::read(place.path("repo/.agents/skills/crabbox/SKILL.md")).unwrap(),
        b"mine"
    );
    assert_eq!(place.run(&["job", "list"]).out, "no jobs configured\n");
}
