//! `run` on a lease whose machine is a real sshd.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_host::process;

use crate::place::Answer;
use crate::remote::Entered;

pub(crate) fn entered() -> Entered {
    with_repository(Entered::new())
}

pub(crate) fn with_repository(lease: Entered) -> Entered {
    // Replace the empty repository with a real one.
    let repo = lease.place.path("repo");
    fs::remove_dir_all(repo.join(".git")).unwrap();
    Cmd::new("git").args(["init", "-q"]).cwd(&repo).run().unwrap();
    lease
}

fn words<'a>(flags: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [
        &["run", "--id", "jade-krill", "--no-sync"],
        flags,
        &["--shell", "--", script],
    ]
    .concat()
}

fn run(lease: &Entered, flags: &[&str], script: &str) -> Answer {
    lease.place.run(&words(flags, script))
}

/// The timing line, which only the reason of a failure may follow.
fn timing_of(answer: &Answer) -> serde_json::Value {
    let line = answer.err.lines().rfind(|line| line.starts_with('{')).unwrap();
    serde_json::from_str(line).unwrap()
}

/// The names in an archive, sorted.
fn inside(archive: &std::path::Path) -> Vec<String> {
    let listed = Cmd::new("tar").args(["-tzf"]).arg(archive).run().unwrap();
    let mut names: Vec<String> = listed.stdout_text().lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// The rest of the first line with this prefix.
fn line<'a>(answer: &'a Answer, begin: &str) -> &'a str {
    let mut lines = answer.err.lines();
    let found = lines.find_map(|line| line.strip_prefix(begin));
    assert!(found.is_some(), "no line {begin:?} in {}", answer.err);
    found.unwrap()
}

#[test]
fn artifacts_come_back_and_required_ones_must_be_there() {
    let lease = entered();
    let script = "mkdir -p d/e .git; echo 1 >a.log; echo 2 >d/e/b.log; echo 3 >d/c.txt; echo 4 >.git/x.log; ln -s /etc/passwd l.log";
    let done = run(
        &lease,
        &[
            "--artifact-glob",
            "**/*.log",
            "--artifact-glob",
            "none*",
            "--require-artifact",
            "d",
            "--timing-json",
        ],
        script,
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(line(&done, "required artifact "), "d matched=2");
    let away = line(&done, "warning: collect artifacts incomplete: ");
    assert_eq!(away, "l.log: leads out of the tree");
    assert_eq!(line(&done, "warning: no artifact matches "), "none*");
    let told = line(&done, "artifact kind=artifact-glob path=");
    let (path, bytes) = told.split_once(" bytes=").unwrap();
    let path = std::path::Path::new(path);
    assert_eq!(path.metadata().unwrap().len().to_string(), bytes);
    // Required files are kept, too.
    assert_eq!(inside(path), ["./a.log", "./d/c.txt", "./d/e/b.log"]);
    assert!(path.starts_with(lease.place.path("repo/.crabbox/runs")));
    let timing: serde_json::Value = serde_json::from_str(done.err.lines().last().unwrap()).unwrap();
    assert_eq!(timing["artifacts"][0]["kind"], "artifact-glob");
    assert_eq!(timing["syncSkipped"], true);
    assert!(
        timing["bootstrapMs"].as_u64().unwrap() > 0,
        "it connected: {timing}"
    );
    let missing = run(
        &lease,
        &[
            "--timing-json",
            "--require-artifact",
            "nothing",
            "--require-artifact",
            "d/*",
        ],
        "true",
    );
    assert_eq!(missing.code, 7, "{}", missing.err);
    let timing = timing_of(&missing);
    for (name, value) in [
        ("runStatus", "failed"),
        ("errorKind", "provider-error"),
        ("blockedStage", "artifacts"),
        ("retryLikely", "unknown"),
    ] {
        assert_eq!(timing[name], value, "{timing}");
    }
    assert!(
        timing.get("bootstrapMs").is_none(),
        "the connection was open: {timing}"
    );
    assert_eq!(
        missing.err.lines().last(),
        Some("missing required artifact: nothing")
    );
    let empty = run(&lease, &["--artifact-glob", "zzz"], "true");
    let path = line(&empty, "artifact kind=artifact-glob path=")
        .split_once(' ')
        .unwrap()
        .0;
    assert!(inside(std::path::Path::new(path)).is_empty());
    for bad in ["../x", "/etc/*", "-x", "a b", ".git/config"] {
        assert_eq!(
            run(&lease, &[&format!("--artifact-glob={bad}")], "true").code,
            2,
            "{bad}"
        );
    }
}

#[test]
fn test_reports_are_counted_and_can_fail_the_run() {
    let lease = entered();
    let old = "<testsuite><testcase name='old'><failure/></testcase></testsuite>";
    let first = run(&lease, &[], &format!("echo \"{old}\" > results.xml; sleep 0.1"));
    assert_eq!(first.code, 0, "{}", first.err);
    let write = "mkdir -p out; echo \"<testsuites><testsuite><testcase classname='C' name='t'><failure message='no'/></testcase><testcase name='u'/></testsuite></testsuites>\" > out/junit-1.xml";
    let counted = run(&lease, &["--results-auto"], write);
    assert_eq!(counted.code, 0, "{}", counted.err);
    assert_eq!(
        line(&counted, "test results "),
        "files=1 tests=2 failures=1 errors=0 skipped=0"
    );
    assert_eq!(line(&counted, "test failed: "), "C.t no");
    let failed = run(
        &lease,
        &["--results-auto", "--fail-on-test-failures", "--timing-json"],
        write,
    );
    assert_eq!(failed.code, 1, "{}", failed.err);
    let timing = timing_of(&failed);
    for (name, value) in [
        ("errorKind", "command-exit"),
        ("blockedStage", "test"),
        ("retryLikely", "false"),
    ] {
        assert_eq!(timing[name], value, "{timing}");
    }
    assert_eq!(
        failed.err.lines().last(),
        Some("JUnit results contain 1 failures and 0 errors")
    );
    let named = run(&lease, &["--junit", "results.xml,missing.xml"], "true");
    assert_eq!(
        line(&named, "test results "),
        "files=1 tests=1 failures=1 errors=0 skipped=0"
    );
    assert!(line(&named, "warning: collect test results incomplete: ").contains("missing.xml"));
    let bad = run(
        &lease,
        &["--junit", "bad.xml"],
        "ln -sf /etc/passwd bad.xml; exit 3",
    );
    assert_eq!(bad.code, 3, "the command's own code wins");
    assert!(
        line(&bad, "warning: collect test results incomplete: ").contains("bad.xml: leads out of the tree")
    );
}

#[test]
fn what_fails_of_the_results_costs_nothing_of_the_rest() {
    let lease = entered();
    let repo = |name: &str| lease.place.path("repo").join(name);
    fs::create_dir(repo("into")).unwrap();
    let failed = run(
        &lease,
        &[
            "--junit",
            "latest/*.xml",
            "--fail-on-test-failures",
            "--require-artifact",
            "nope",
            "--require-artifact",
            "out/app",
            "--artifact-glob",
            "out/*",
            "--download",
            "gone=gone",
            "--download",
            "out/app=into",
            "--download",
            "out/app-1=new/",
            "--download",
            "~/there=home",
        ],
        "mkdir -p out build; echo app > out/app-1; ln -s app-1 out/app; ln -s /etc/passwd out/away; mkfifo out/pipe; echo h > ~/there; \
         echo '<testsuite><testcase name=\"a\"><failure/></testcase></testsuite>' > build/r.xml; ln -s build latest",
    );
    // The first error is the reason; the others are reported as well.
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert_eq!(
        failed.err.lines().last(),
        Some("JUnit results contain 1 failures and 0 errors")
    );
    for told in [
        "warning: missing required artifact: nope",
        "required artifact out/app matched=1",
        "warning: collect artifacts incomplete: out/away: leads out of the tree",
        "warning: collect artifacts incomplete: out/pipe: is a pipe, not a regular file",
        "warning: cannot fetch gone in the lease: gone: No such file or directory",
    ] {
        assert!(
            failed.err.lines().any(|line| line == told),
            "{told}: {}",
            failed.err
        );
    }
    let archive = line(&failed, "artifact kind=artifact-glob path=")
        .split_once(' ')
        .unwrap()
        .0;
    assert_eq!(
        inside(std::path::Path::new(archive)),
        ["./out/app", "./out/app-1"]
    );
    for (name, content) in [("into/app", "app\n"), ("new/app-1", "app\n"), ("home", "h\n")] {
        assert_eq!(fs::read_to_string(repo(name)).unwrap(), content, "{name}");
    }
    let none = run(
        &lease,
        &["--junit", "n.xml", "--fail-on-test-failures"],
        "echo '<testsuite tests=\"0\"/>' > n.xml",
    );
    assert_eq!(
        (none.code, none.err.lines().last()),
        (1, Some("JUnit results policy: the test reports have no tests")),
        "{}",
        none.err
    );
}

#[test]
fn a_failed_run_leaves_a_digest_and_a_bundle() {
    let lease = entered();
    let failed = run(
        &lease,
        &["--allow-env", "MY_*", "--label", "nightly"],
        "echo CRABBOX_PHASE:build; echo out; echo CRABBOX_PHASE:test; echo 'ENOMEM: x' >&2; nosuchtool",
    );
    assert_eq!(failed.code, 127, "{}", failed.err);
    assert_eq!(line(&failed, "  failed_phase: "), "test");
    assert_eq!(line(&failed, "  observed_phases: "), "user-command,build,test");
    assert_eq!(line(&failed, "  phase: "), "test");
    // A phase announced by the command outweighs words in its output.
    assert_eq!(line(&failed, "  area: "), "user_command");
    assert!(line(&failed, "run summary ").contains(" command_phases=user-command:"));
    assert!(line(&failed, "run summary ").contains(" blocked_stage=test retry_likely=unknown"));
    assert!(line(&failed, "run details ").contains(" label=\"nightly\" "));
    assert_eq!(
        line(&failed, "env forwarding "),
        "provider=firecracker behavior=forwarded matched=none allow=CI,NODE_OPTIONS,MY_*"
    );
    assert!(line(&failed, "hint: ").starts_with("a command was not found"));
    assert_eq!(line(&failed, "stdout tail last "), "3 lines:");
    assert_eq!(failed.err.lines().last(), Some("remote command exited 127"));
    let told = line(&failed, "failure-bundle local=").split_once(' ').unwrap().0;
    let bundle = lease.place.path("repo").join(told);
    assert_eq!(bundle.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        inside(&bundle),
        [
            "README.txt",
            "config.redacted.txt",
            "crabbox-run.json",
            "env.redacted.txt",
            "stderr.log",
            "stdout.log",
            "timings.json"
        ]
        .map(|name| format!("crabbox-artifacts/{name}"))
    );
    assert_eq!(
        line(&failed, "workspace owner "),
        line(&failed, "workspace owner ")
    );
    assert!(failed.err.contains("\nworkspace owner released\n"));
}

#[test]
fn variables_of_a_profile_arrive_and_stand_in_no_argument_vector() {
    let lease = entered();
    lease.place.write(
        "repo/vars.env",
        "export MY_TOKEN='s3cr3t value'\nOTHER=x\nMY_EMPTY=\n",
    );
    let flags = [
        "--env-from-profile",
        "vars.env",
        "--allow-env",
        "MY_*",
        "--env-helper",
        "with-env",
    ];
    let done = run(
        &lease,
        &flags,
        "echo \"[$MY_TOKEN][$OTHER]\"; grep -l 's3cr3t' /proc/[0-9]*/cmdline | grep -v /self/; env -u MY_TOKEN ./.crabbox/env/with-env sh -c 'echo \"<$MY_TOKEN>\"'",
    );
    assert_eq!(done.code, 0, "{}", done.err);
    // The script itself contains the word that it looks for, so it finds its own shells and nothing else.
    assert!(
        done.out.starts_with("[s3cr3t value][]\n") && done.out.ends_with("<s3cr3t value>\n"),
        "{}",
        done.out
    );
    assert!(!done.err.contains("s3cr3t value"), "{}", done.err);
    assert_eq!(
        line(&done, "env forwarding "),
        "provider=firecracker behavior=forwarded vars=MY_TOKEN=set len=12 secret=true,MY_EMPTY=empty"
    );
    // A byte order mark, blanks between names, and lines that are not variables.
    lease.place.write(
        "repo/vars.env",
        "\u{feff}MY_ONE=1\nMY_KEY=\"-----BEGIN\ns3cr3t\n-----END\"\nMY_ID=$(id)\nMY_TWO=2\n",
    );
    let flags = [
        "--env-from-profile",
        "vars.env",
        "--allow-env",
        "MY_ONE, MY_TWO ,A B,MY_PASS=s3cr3t",
    ];
    let done = run(&lease, &flags, "echo \"$MY_ONE $MY_TWO\"");
    assert_eq!((done.code, done.out.as_str()), (0, "1 2\n"), "{}", done.err);
    let takes = "matches no variable: --allow-env and env.allow take names, and prefixes followed by *";
    for told in [
        format!("warning: \"A B\" {takes}\n"),
        format!("warning: \"MY_PASS=\u{2026}\" {takes}\n"),
        format!(
            "warning: env profile {}: lines 2, 3, 4, 5 ignored: not NAME=value on one line, or only a shell can evaluate it\n",
            lease.place.path("repo/vars.env").display()
        ),
    ] {
        assert!(done.err.contains(&told), "{told}{}", done.err);
    }
    assert!(!done.err.contains("s3cr3t"), "{}", done.err);
    let nothing = run(&lease, &["--env-helper", "x"], "true");
    assert_eq!(
        (nothing.code, nothing.err.as_str()),
        (
            2,
            "--env-helper requires --env-from-profile values selected by --allow-env\n"
        )
    );
}

#[test]
fn timings_are_appended_and_tools_are_told() {
    let lease = entered();
    let record = lease.place.path("outside/t/timings.jsonl");
    for _ in 0..2 {
        let done = run(
            &lease,
            &[
                "--timing-record",
                record.to_str().unwrap(),
                "--preflight",
                "--preflight-tools",
                "apt,bun,pwsh",
                "--capture-stdout",
                "said",
            ],
            "echo hi",
        );
        assert_eq!(line(&done, "capturing stdout to "), "said");
        assert_eq!(line(&done, "captured stdout="), "said bytes=3");
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(done.err.contains("\npreflight:\n  os="), "{}", done.err);
        assert!(line(&done, "  apt=").contains("apt-get"), "{}", done.err);
        line(&done, "  bun=");
        assert!(!done.err.contains("  pwsh="), "{}", done.err);
        assert_eq!(
            line(&done, "benchmark timing record appended "),
            format!("path={} observations=1", record.display())
        );
    }
    let lines = fs::read_to_string(&record).unwrap();
    assert_eq!(lines.lines().count(), 2);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (
            &first["source"],
            &first["benchmark"]["coldRun"],
            &first["timing"]["exitCode"]
        ),
        (&"run".into(), &false.into(), &0.into())
    );
}

#[test]
fn a_policy_counts_a_report_for_each_of_many_classes() {
    let lease = entered();
    let script = "mkdir -p out; for i in $(seq 120); do echo '<testsuite><testcase name=\"t\"/></testsuite>' >out/TEST-$i.xml; done";
    for flags in [&["--junit", "out/*.xml"][..], &["--results-auto"]] {
        let passed = run(&lease, &[flags, &["--fail-on-test-failures"]].concat(), script);
        assert_eq!(passed.code, 0, "{}", passed.err);
        assert_eq!(
            line(&passed, "test results "),
            "files=120 tests=120 failures=0 errors=0 skipped=0"
        );
    }
}

/// A run in the background whose command makes a file `name` in the work tree and waits.
fn waiting(lease: &Entered, name: &str) -> Child {
    let script = format!("echo $$ > {name}; exec sleep 1000");
    let child = lease.place.start(&words(&[], &script));
    let began = poll_until(Duration::from_secs(20), || pid(lease, name));
    began.unwrap();
    child
}

fn pid(lease: &Entered, name: &str) -> Option<String> {
    let path = lease.sshd.dir().join("work/cbx_0123456789ab/repo").join(name);
    let text = fs::read_to_string(path).ok()?;
    text.strip_suffix('\n').map(str::to_owned)
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn two_runs_are_never_in_one_tree() {
    let lease = entered();
    let mut first = waiting(&lease, "first");
    let mut second = lease
        .place
        .command(&["run", "--id", "jade-krill", "--shell", "--", "echo ran"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It waits while the file `first` exists.
    let early = poll_until(Duration::from_millis(1500), || second.try_wait().unwrap());
    assert_eq!(early, None);
    // Meanwhile it has one session, and the remote process of its sync has exited.
    let workdir = lease.sshd.dir().join("work/cbx_0123456789ab/repo");
    let gone = || {
        let of_a_sync = |word: &OsString| word == workdir.as_os_str();
        let processes = process::list().unwrap();
        let any = processes
            .iter()
            .any(|process| process.cmdline.iter().any(of_a_sync));
        (!any).then_some(())
    };
    poll_until(Duration::from_secs(30), gone).expect("the side of a sync waits as well");
    assert_eq!(second.try_wait().unwrap(), None);
    signal(&first, rustix::process::Signal::INT);
    assert_eq!(first.wait().unwrap().code(), Some(130));
    let output = second.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"ran\n"[..]),
        "{err}"
    );
    let answer = Answer {
        code: 0,
        out: String::new(),
        err,
    };
    let told = line(&answer, "workspace owner acquired wait=");
    assert!(
        told.ends_with(" recovered=false") && !told.contains("ms"),
        "{told}"
    );
}

#[test]
fn a_client_that_is_killed_takes_its_command_along_and_the_next_one_recovers() {
    let lease = entered();
    let mut first = waiting(&lease, "first");
    let command = pid(&lease, "first").unwrap();
    signal(&first, rustix::process::Signal::KILL);
    first.wait().unwrap();
    let started = Instant::now();
    let next = run(
        &lease,
        &[],
        &format!("! grep -qs '^State:.[^ZX]' /proc/{command}/status"),
    );
    assert_eq!(next.code, 0, "{}", next.err);
    assert!(
        line(&next, "workspace owner acquired ").ends_with(" recovered=true"),
        "{}",
        next.err
    );
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// The number of commands that the server has started so far.
fn executions(lease: &Entered) -> usize {
    lease.sshd.log().matches("Starting session: ").count()
}

#[test]
fn a_run_with_nothing_to_bring_takes_one_connection_and_one_execution() {
    let lease = entered();
    lease.place.write("repo/file", "x");
    let words = ["run", "--id", "jade-krill", "--", "cat", "file"];
    let cat = || {
        let ran = lease.place.run(&words);
        assert_eq!((ran.code, ran.out.as_str()), (0, "x"), "{}", ran.err);
        ran
    };
    // Twice, because a file touched just before the first scan is sent again.
    cat();
    cat();
    let before = executions(&lease);
    assert!(before > 0, "the server tells what it starts");
    let ran = cat();
    assert!(
        ran.err.contains("No changes detected, skipping sync ("),
        "{}",
        ran.err
    );
    // One command does the lock of the tree, the comparison, and the run.
    assert_eq!(executions(&lease) - before, 1, "{}", lease.sshd.log());
    let before = executions(&lease);
    let plain = lease
        .place
        .run(&["run", "--id", "jade-krill", "--no-sync", "--", "cat", "file"]);
    assert_eq!((plain.code, plain.out.as_str()), (0, "x"), "{}", plain.err);
    assert_eq!(executions(&lease) - before, 1, "{}", lease.sshd.log());
    assert_eq!(lease.sshd.logins(), 1, "one connection for all of it");
}
