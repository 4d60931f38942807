//! A lease's agent that is hostile, dies, or never exits; and which local data reaches it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_testkit::sshd::Sshd;

use crate::forged::{forged, with_agent};
use crate::landing::Narrow;
use crate::place::Answer;
use crate::remote::Entered;
use crate::run::{entered, with_repository};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);

/// Runs a script in the lease, and kills a run that does not end within `limit`.
fn run_within(lease: &Entered, limit: Duration, flags: &[&str], script: &str) -> Answer {
    let words = [
        &["run", "--id", "jade-krill", "--no-sync"],
        flags,
        &["--shell", "--", script],
    ];
    let (out, err) = (lease.place.path("outside/out"), lease.place.path("outside/err"));
    let mut child = lease
        .place
        .command(&words.concat())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let status = poll_until(limit, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    assert!(status.is_some(), "it goes on: {}", text(&err));
    Answer {
        code: status.and_then(|status| status.code()).unwrap_or(-1),
        out: text(&out),
        err: text(&err),
    }
}

/// Answers requests for files with the bytes produced by the file `answer` in its home.
const ANSWERS: &str = r#"
while True:
    tag = hear()
    if tag == OWN: own()
    elif tag == RELEASE: say(68)
    elif tag == MAKE: say(84)
    elif tag == RUN: say(79, struct.pack(">I", 0), b"\1")
    elif tag in (FETCH, TREE):
        if tag == FETCH:
            while hear() != END: pass
        elif tag == TREE:
            sys.stdout.buffer.write(frame(1, open(home + "/tree", "rb").read()) + frame(78))
            sys.stdout.buffer.flush()
            continue
        sys.stdout.buffer.write(eval(open(home + "/answer").read()))
        sys.stdout.buffer.flush()
"#;

#[test]
fn forged_sizes_numbers_and_problems_of_files_are_believed_nothing() {
    let lease = with_agent(&forged(ANSWERS));
    let back = lease.place.path("repo/back");
    for (answer, says) in [
        // More than any disk holds.
        ("file(0, 1 << 62)", "that are free here, less a reserve"),
        ("file(0, (1 << 64) - 1)", "that are free here, less a reserve"),
        // More, and less, than announced.
        ("file(0, 1) + frame(1, b'xx')", "answered"),
        ("file(0, 2) + frame(1, b'x') + frame(78)", "answered"),
        ("file(0, 2) + frame(1, b'x') + file(0, 2)", "answered"),
        // A file that was not requested, and bytes without a file.
        ("file(1, 1) + frame(1, b'x')", "answered"),
        ("file(0xffffffff, 1)", "answered"),
        ("frame(1, b'x')", "answered"),
        ("frame(2, b'x')", "answered"),
        // Problems with files that do not exist, and more problems than files.
        ("problem(1, b'x')", "answered"),
        ("problem(0, b'x') * 3", "answered"),
        // Malformed messages: truncated, too long, with an invalid number, and with a word that is not text.
        ("frame(82, b'1234')", "answered"),
        ("frame(78, b'1')", "answered"),
        ("frame(250)", "answered"),
        ("problem(0, b'\\xff')", "answered"),
        ("problem(0, b'x', b'\\2')", "answered"),
        ("frame(83, struct.pack('>II', 0, 0xffffffff))", "answered"),
        // The text about a file is bounded.
        (
            "problem(0, b'a' * ((4 << 20) - 4096)) + frame(78)",
            "cannot fetch f in the lease: aaa",
        ),
        // No file arrives.
        ("frame(78)", "it did not come"),
    ] {
        fs::write(lease.sshd.home().join("answer"), answer).unwrap();
        let refused = lease.script(&["--download", "f=back"], "true");
        assert_eq!(refused.code, 7, "{answer}: {}", refused.err);
        assert!(refused.err.contains(says), "{answer}: {}", refused.err);
        assert!(refused.err.len() < 8000, "{answer}: {}", refused.err.len());
        assert!(!back.exists(), "{answer}");
    }
    // A correct answer is accepted.
    fs::write(
        lease.sshd.home().join("answer"),
        "file(0, 1) + frame(1, b'x') + frame(78)",
    )
    .unwrap();
    let done = lease.script(&["--download", "f=back"], "true");
    assert_eq!(
        (done.code, fs::read(&back).unwrap()),
        (0, b"x".to_vec()),
        "{}",
        done.err
    );
}

#[test]
fn a_copy_from_a_lease_takes_no_name_that_leads_out_of_it() {
    let lease = with_agent(&forged(ANSWERS));
    let home = lease.sshd.home();
    fs::write(home.join("answer"), "file(0, 1) + frame(1, b'x') + frame(78)").unwrap();
    let cp = || {
        lease
            .place
            .run(&["cp", "--id", "jade-krill", "SANDBOX:/there", "copy"])
    };
    for (tree, says) in [
        (
            &b"d\0f../evil\0"[..],
            "\"./../evil\", which is a path with a part \"..\"",
        ),
        (b"d\0f/evil\0", "which is an absolute path"),
        (b"d\0dx\0fx/../../evil\0", "which is a path with a part \"..\""),
        (b"d\0ll\0fl/evil\0", "\"./l\", which is a symbolic link"),
        (b"d\0cnull\0", "\"./null\", which is a device"),
        (b"f\0fevil\0", "which is not where it belongs"),
        (b"", "which is neither a file nor a directory"),
        // The same name twice, with the same type and with different types.
        (b"d\0fx\0fx\0", "which is named twice"),
        (b"d\0fx\0dx\0", "which is named twice"),
        (
            b"d\0fx/y\0",
            "which is below a directory that it did not name before",
        ),
    ] {
        fs::write(home.join("tree"), tree).unwrap();
        let refused = cp();
        let shown = tree.escape_ascii().to_string();
        assert!(
            [2, 7].contains(&refused.code),
            "{shown}: {} {}",
            refused.code,
            refused.err
        );
        assert!(refused.err.contains(says), "{shown}: {}", refused.err);
        assert!(!lease.place.path("repo/copy").exists(), "{shown}");
        assert!(!lease.place.path("repo/evil").exists() && !Path::new("/evil").exists());
        let litter = fs::read_dir(lease.place.path("repo")).unwrap().flatten();
        let litter: Vec<_> = litter.map(|entry| entry.file_name()).collect();
        assert!(
            !litter
                .iter()
                .any(|name| name.to_string_lossy().starts_with(".crabbox-cp")),
            "{litter:?}"
        );
    }
    fs::write(home.join("tree"), "d\0fx\0ss\0").unwrap();
    let done = cp();
    assert_eq!(
        (done.code, done.err.as_str()),
        (0, "warning: s is a socket and was not copied\n")
    );
    assert_eq!(fs::read(lease.place.path("repo/copy/x")).unwrap(), b"x");
}

#[test]
fn a_place_where_programs_may_not_run_is_told_with_what_helps() {
    // The agent cannot even be installed.
    let lease = with_repository(Entered::new());
    let agents = lease.sshd.home().join(".cache/crabbox/agents");
    fs::create_dir_all(agents.parent().unwrap()).unwrap();
    let _narrow = Narrow::new(agents.clone());
    fs::set_permissions(&agents, fs::Permissions::from_mode(0o700)).unwrap();
    Cmd::new("mount")
        .args(["-o", "remount,noexec"])
        .arg(&agents)
        .run()
        .unwrap();
    let done = lease.script(&[], "echo ran");
    assert_eq!((done.code, done.out.as_str()), (7, ""), "{}", done.err);
    assert!(done.err.contains("noexec"), "{}", done.err);
    let mut lines = done.err.lines();
    let hint = lines.find(|line| line.starts_with("hint: ")).unwrap_or_default();
    assert!(hint.contains("not mounted noexec"), "{}", done.err);
}

#[test]
fn a_plain_command_asks_for_the_tree_runs_and_gives_it_back_and_asks_nothing_else() {
    let lease = with_agent(&forged(
        &("
def heard():
    tag = hear()
    with open(home + '/heard', 'a') as file: file.write(str(tag) + ' ')
    return tag
"
        .to_owned()
            + &ANSWERS.replace("tag = hear()", "tag = heard()")),
    ));
    let done = lease.script(&[], "true");
    assert_eq!(done.code, 0, "{}", done.err);
    let heard = fs::read_to_string(lease.sshd.home().join("heard")).unwrap();
    // The lock together with the directory to make, the command, the end: each one is a round trip.
    assert_eq!(heard, "16 29 17 ");
}

#[test]
fn a_session_that_never_closes_after_the_last_answer_is_not_waited_for() {
    // It has answered every request, and stays with its streams open.
    let lease = with_agent(&forged(
        r#"
while True:
    tag = hear()
    if tag == OWN: own()
    elif tag == MAKE: say(84)
    elif tag == RUN: say(79, struct.pack(">I", 0), b"\1")
    elif tag == RELEASE: say(68); open(home + "/pid", "w").write(str(os.getpid())); time.sleep(600)
"#,
    ));
    let done = run_within(&lease, LONG, &[], "true");
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("workspace owner released"), "{}", done.err);
    let pid = fs::read_to_string(lease.sshd.home().join("pid")).unwrap();
    assert!(
        Path::new("/proc").join(pid).exists(),
        "it has gone, which shows nothing"
    );
}

#[test]
fn what_start_up_files_leave_running_neither_holds_a_run_up_nor_speaks_for_the_agent() {
    let sshd = Sshd::start_with("ForceCommand exec bash -c \"$SSH_ORIGINAL_COMMAND\"");
    let home = sshd.home();
    // bash reads it when started by sshd.
    let leaves = |what: &str| fs::write(home.join(".bashrc"), format!("{what}\n")).unwrap();
    leaves("sleep 100 &");
    let lease = with_repository(Entered::on(sshd));
    lease.place.write("repo/f", "synced\n");
    let noisy = "for s in 0 .1 .2 .3 .4 .5; do sleep $s; echo update available; done";
    for (what, takes) in [
        // Both streams, or one of them, stay open for longer than anyone would wait.
        ("sleep 100 &".to_owned(), LONG),
        ("sleep 100 >/dev/null &".to_owned(), LONG),
        ("sleep 100 2>/dev/null &".to_owned(), LONG),
        // It prints throughout the run, on either stream, between the messages.
        (format!("({noisy}) &"), LONG),
        (format!("({noisy}) >&2 &"), LONG),
    ] {
        leaves(&what);
        // First without the agent installed, then with it.
        fs::remove_dir_all(home.join(".cache")).ok();
        for _ in 0..2 {
            let begun = Instant::now();
            let words = [
                "run",
                "--id",
                "jade-krill",
                "--shell",
                "--",
                "sleep 1; cat f; exit 3",
            ];
            let done = lease.place.run(&words);
            assert_eq!(
                (done.code, done.out.as_str()),
                (3, "synced\n"),
                "{what}: {}",
                done.err
            );
            assert!(begun.elapsed() < takes, "{what}: {:?}", begun.elapsed());
        }
    }
    // If the session ends before the mark, the wait ends, even if something holds the streams open.
    leaves("sleep 100 & exit 5");
    let begun = Instant::now();
    let refused = lease.script(&[], "true");
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(refused.err.contains("exited with 5"), "{}", refused.err);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
}

/// Wraps a program of this name so that it records its arguments in `argv` of the home directory.
fn noting(home: &Path, program: &str) {
    let script =
        format!("#!/bin/sh\nprintf '%s\\n' {program} \"$@\" >> \"$HOME/argv\"\nexec /bin/{program} \"$@\"\n");
    let file = home.join("bin").join(program);
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_lease_that_ends_under_the_work_costs_a_warning_and_not_what_the_work_did() {
    let id = "cbx_0123456789ab";
    let lease = with_agent(
        "#!/bin/sh\n[ ! -e \"$HOME/end\" ] || rm -rf \"$(cat \"$HOME/end\")\"\nexec \"$HOME/.cache/crabbox/agents/real\"\n",
    );
    let dir = lease
        .place
        .path("home/.config/crabbox/state/firecracker/leases")
        .join(id);
    fs::write(lease.sshd.home().join("end"), dir.to_str().unwrap()).unwrap();
    let stats = lease
        .place
        .run(&["cache", "stats", "--json", "--id", "jade-krill"]);
    assert!(!dir.exists());
    let told = format!("warning: the use of lease {id} could not be recorded: lease {id} has ended\n");
    assert_eq!((stats.code, stats.err), (0, told));
    assert!(stats.out.starts_with('['), "{}", stats.out);
    let gone = lease.place.run(&["cache", "stats", "--id", id]);
    assert_eq!(gone.code, 4, "{}", gone.err);
}

#[test]
fn values_for_a_helper_stand_in_no_argument_vector_and_reach_it() {
    let lease = with_agent("#!/bin/sh\nPATH=$HOME/bin:$PATH\nexec \"$HOME/.cache/crabbox/agents/real\"\n");
    let home = lease.sshd.home();
    fs::create_dir(home.join("bin")).unwrap();
    noting(&home, "sh");
    noting(&home, "bash");
    lease
        .place
        .write("repo/secrets.env", "MY_TOKEN=no-one-reads-this\n");
    let flags = [
        "--env-from-profile",
        "secrets.env",
        "--allow-env",
        "MY_TOKEN",
        "--env-helper",
        "with",
    ];
    let done = lease.script(
        &flags,
        "unset MY_TOKEN; .crabbox/env/with sh -c 'printf %s \"$MY_TOKEN\"'",
    );
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "no-one-reads-this"),
        "{}",
        done.err
    );
    assert!(!done.err.contains("no-one-reads-this"), "{}", done.err);
    let argv = fs::read_to_string(home.join("argv")).unwrap();
    assert!(
        argv.contains("sh\n-s\n") && argv.contains("unset MY_TOKEN"),
        "{argv}"
    );
    assert!(!argv.contains("no-one-reads-this"), "{argv}");
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_ends_the_sync_and_the_next_one_is_exact() {
    let lease = entered();
    for number in 0..20 {
        lease.place.write(&format!("repo/f{number}"), "text");
    }
    let at = lease.place.path("repo/f7");
    fs::write(&at, vec![b'x'; 4096]).unwrap();
    // A kernel file that claims 4096 bytes and fails when read.
    let bad = Path::new("/sys/class/net/lo/speed");
    assert!(fs::read(bad).is_err() && fs::metadata(bad).unwrap().len() == 4096);
    Cmd::new("mount").arg("--bind").arg(bad).arg(&at).run().unwrap();
    let sync = |script: &str| {
        lease
            .place
            .run(&["run", "--id", "jade-krill", "--shell", "--", script])
    };
    let failed = sync("echo ran");
    Cmd::new("umount").arg("-l").arg(&at).run().unwrap();
    assert_eq!((failed.code, failed.out.as_str()), (6, ""), "{}", failed.err);
    assert!(failed.err.contains("cannot read f7"), "{}", failed.err);
    // `cp` reports the same, and leaves nothing behind.
    let next = sync("ls | wc -l; head -c 3 f7; cat f19");
    assert_eq!((next.code, next.out.as_str()), (0, "20\nxxxtext"), "{}", next.err);
    let to = format!("SANDBOX:{}", lease.sshd.dir().join("copy").display());
    let refused = lease
        .place
        .run(&["cp", "--id", "jade-krill", bad.to_str().unwrap(), &to]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(
        refused.err.starts_with("cannot read /sys/class/net/lo/speed"),
        "{}",
        refused.err
    );
    let left = || {
        let names = fs::read_dir(lease.sshd.dir()).unwrap().flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with(".crabbox-cp") || name == "copy")
    };
    assert!(poll_until(LONG, || (!left()).then_some(())).is_some());
}

#[test]
fn a_script_that_is_larger_than_a_message_runs() {
    let lease = entered();
    let mut script = "#!/bin/sh\nexit 3\n".to_owned();
    script.push_str(&"# a line that nobody reads\n".repeat(200_000));
    assert!(script.len() > 5 << 20);
    lease.place.write("repo/large.sh", &script);
    let done = lease
        .place
        .run(&["run", "--id", "jade-krill", "--no-sync", "--script", "large.sh"]);
    assert_eq!(done.code, 3, "{}", done.err);
}

#[test]
fn a_capture_for_which_there_is_no_room_ends_the_command() {
    let lease = entered();
    let narrow = Narrow::new(lease.place.path("repo/narrow"));
    // It would run forever.
    let done = run_within(
        &lease,
        LONG,
        &["--capture-stdout", "narrow/cap"],
        "echo $$ > ../pid; exec yes",
    );
    assert_ne!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("free here, less a reserve"), "{}", done.err);
    let work = lease.sshd.dir().join("work");
    let found = Cmd::new("find")
        .arg(&work)
        .args(["-name", "pid"])
        .run()
        .unwrap()
        .stdout_text();
    let pid = fs::read_to_string(found.trim()).unwrap();
    // It may still be a zombie waiting to be reaped.
    let runs =
        || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(
        poll_until(LONG, || (!runs()).then_some(())).is_some(),
        "it still runs"
    );
    drop(narrow);
    let next = lease.script(&[], "echo next");
    assert_eq!(next.out, "next\n", "{}", next.err);
}

#[test]
fn an_interrupt_while_a_login_shell_does_not_begin_ends_the_wait() {
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let config = format!("ForceCommand touch {} && exec sleep 300", begun.display());
    let lease = with_repository(Entered::on(Sshd::start_with(&config)));
    let to = format!("SANDBOX:{}", lease.sshd.dir().join("copy").display());
    for words in [
        &["run", "--id", "jade-krill", "--no-sync", "--", "true"][..],
        &["cp", "--id", "jade-krill", "tracked", &to],
        &["cp", "--id", "jade-krill", &to, "back"],
    ] {
        lease.place.write("repo/tracked", "x");
        fs::remove_file(&begun).ok();
        lease.place.interrupt(words, || begun.exists());
    }
}

#[test]
fn reports_are_named_by_absolute_paths_too() {
    let lease = entered();
    let workdir = lease.script(&[], "pwd").out.trim().to_owned();
    let elsewhere = lease.sshd.dir().join("elsewhere.xml");
    let script = format!(
        "mkdir -p out; for f in out/a.xml out/b.xml {}; do echo '<testsuite><testcase name=\"'$f'\"/></testsuite>' > $f; done",
        elsewhere.display()
    );
    let tests = |wanted: &str| {
        let done = lease.script(&["--junit", wanted], &script);
        assert_eq!(done.code, 0, "{wanted}: {}", done.err);
        done
    };
    for (wanted, count) in [
        (format!("{workdir}/out/a.xml"), 1),
        (format!("{workdir}/out/*.xml"), 2),
        (elsewhere.display().to_string(), 1),
        // The same file under two names is one report.
        (format!("out/a.xml,{workdir}/out/a.xml"), 1),
    ] {
        let done = tests(&wanted);
        assert!(
            done.err
                .contains(&format!("test results files={count} tests={count} ")),
            "{wanted}: {}",
            done.err
        );
        assert!(!done.err.contains("warning"), "{wanted}: {}", done.err);
    }
    // A pattern matches only below the working directory, and the message says so.
    let done = tests("/elsewhere/*.xml");
    assert!(
        done.err
            .contains("incomplete: /elsewhere/*.xml: it must be relative"),
        "{}",
        done.err
    );
}

/// A server that claims to be an aarch64 machine, and starts programs for such machines under an emulator.
fn of_another_kind(dir: &Path) -> Sshd {
    let (arch, line, script) = (dir.join("arch"), dir.join("line.sed"), dir.join("script.sed"));
    fs::write(&arch, "aarch64\n").unwrap();
    let emulated = format!(
        "s|/proc/sys/kernel/arch|{}|\ns|exec \"$cbx_b\"$|exec qemu-aarch64 \"$cbx_b\"|\n",
        arch.display()
    );
    fs::write(&script, emulated).unwrap();
    // Patches the line that reads a script and runs it.
    let reads = format!(
        "s|\\$cbx_s\"; exit|$(printf %s \"$cbx_s\" \\| sed -f {})\"; exit|\n",
        script.display()
    );
    fs::write(&line, reads).unwrap();
    let host = dir.join("host");
    let text = format!(
        "exec sh -c \"$(printf %s \"$SSH_ORIGINAL_COMMAND\" | sed -f {})\"\n",
        line.display()
    );
    fs::write(&host, text).unwrap();
    Sshd::start_with(&format!("ForceCommand sh {}", host.display()))
}

#[test]
fn a_host_of_another_kind_gets_the_agent_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let lease = with_repository(Entered::on(of_another_kind(dir.path())));
    fs::write(lease.place.path("repo/f"), "synced\n").unwrap();
    let done = lease
        .place
        .run(&["run", "--id", "jade-krill", "--shell", "--", "cat f; exit 3"]);
    assert!(
        !done.err.contains("has an agent for x86_64 only"),
        "this test needs a crabbox with an agent for aarch64, which it has after: cargo xtask cross\n{}",
        done.err
    );
    assert_eq!((done.code, done.out.as_str()), (3, "synced\n"), "{}", done.err);
    let agents = lease.sshd.home().join(".cache/crabbox/agents");
    let agents: Vec<_> = fs::read_dir(agents).unwrap().flatten().collect();
    assert_eq!(agents.len(), 1, "{agents:?}");
    // e_machine of the ELF header: EM_AARCH64.
    assert_eq!(fs::read(agents[0].path()).unwrap()[18], 183);
}
