//! The wait for a lease against a real sshd.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of these tests fail like the tests do"
)]

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crabbox_host::clock::{self, poll_until};
use crabbox_ssh::beginning::{NotStarted, ShellFailure};
use crabbox_ssh::capture::capture;
use crabbox_ssh::exec::{Exec, ExecError, RemoteStatus, Sink, Stdin};
use crabbox_ssh::master;
use crabbox_ssh::ready::{NotReady, ReadyError, ReadyTimings, Stage, Wait, wait_ssh};
use crabbox_ssh::target::Target;
use crabbox_testkit::sshd::Sshd;

fn target(sshd: &Sshd) -> Target {
    let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
    target.key = Some(sshd.client_key());
    target.host_key_pinned = true;
    target.control = Some(sshd.dir().join("m"));
    target
}

fn wait(target: &Target, ready: Option<&str>, limit: Duration) -> Result<ReadyTimings, ReadyError> {
    let wait = Wait {
        target,
        phase: "before sync",
        ready_command: ready,
        settled: false,
        deadline: Instant::now() + limit,
        probe_port: true,
        cancel: None,
    };
    wait_ssh(&wait, &mut |_| {})
}

fn exit(target: &Target) {
    master::exit(target.control.as_deref().unwrap()).unwrap();
}

#[test]
fn a_ready_machine_costs_one_login_and_keeps_it_open() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let timings = wait(&target, Some("exit 0"), Duration::from_secs(30)).unwrap();
    assert!(
        timings.tcp <= timings.banner && timings.banner <= timings.auth,
        "{timings:?}"
    );
    assert!(
        timings.auth <= timings.ready && !timings.tcp.is_zero(),
        "{timings:?}"
    );
    // A later wait, of which there are several in one run, opens no other connection.
    wait(&target, Some("exit 0"), Duration::from_secs(30)).unwrap();
    assert_eq!(sshd.logins(), 1);
    exit(&target);
}

#[test]
fn a_ready_command_that_comes_good_later_is_noticed_over_the_same_login() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let flag = sshd.dir().join("ready");
    let command = format!("test -e {}", flag.display());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            (
                wait(&target, Some(&command), Duration::from_secs(30)).unwrap(),
                Instant::now(),
            )
        });
        poll_until(Duration::from_secs(20), || (sshd.logins() == 1).then_some(())).unwrap();
        assert!(poll_until(Duration::from_millis(400), || waiting.is_finished().then_some(())).is_none());
        std::fs::write(&flag, "").unwrap();
        let made = Instant::now();
        let (timings, noticed) = waiting.join().unwrap();
        assert!(noticed - made < Duration::from_secs(2), "{:?}", noticed - made);
        assert!(
            timings.ready > timings.auth + Duration::from_millis(300),
            "{timings:?}"
        );
    });
    assert_eq!(sshd.logins(), 1);
    exit(&target);
}

#[test]
fn a_ready_command_that_stays_bad_is_told_with_its_words_and_the_go_programs_advice() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let error = wait(&target, Some("echo no disk >&2; exit 3"), Duration::from_secs(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "timed out waiting for SSH on 127.0.0.1 during before sync ports={}:auth; next_action=retry with \
             --full-resync, then use a fresh lease if SSH still fails",
            sshd.port()
        )
    );
    let ReadyError::TimedOut { last, .. } = error else {
        unreachable!()
    };
    assert_eq!(last.to_string(), "the ready command exited with 3: no disk");
    exit(&target);
}

#[test]
fn what_a_check_said_is_told_though_its_last_run_was_cut_short() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let asked = sshd.dir().join("asked").display().to_string();
    let check = format!("test -e {asked} && sleep 60; touch {asked}; echo no disk >&2; exit 3");
    let error = wait(&target, Some(&check), Duration::from_secs(6)).unwrap_err();
    let ReadyError::TimedOut { last, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(last.to_string(), "the ready command exited with 3: no disk");
    exit(&target);
}

#[test]
fn a_closed_port_is_told_and_progress_is_rare() {
    let mut sshd = Sshd::start();
    let target = target(&sshd);
    sshd.stop();
    let mut lines = Vec::new();
    let wait = Wait {
        target: &target,
        phase: "bootstrap",
        ready_command: None,
        settled: false,
        deadline: Instant::now() + Duration::from_secs(4),
        probe_port: true,
        cancel: None,
    };
    let error = wait_ssh(&wait, &mut |progress| lines.push(progress.clone())).unwrap_err();
    assert!(
        matches!(
            error,
            ReadyError::TimedOut {
                stage: Stage::Port,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].stage, Stage::Port);
}

#[test]
fn a_refused_login_is_tried_again_until_the_deadline_and_a_wrong_host_key_is_not() {
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    target.key = Some(sshd.dir().join("host_key"));
    let error = wait(&target, None, Duration::from_secs(2)).unwrap_err();
    assert!(
        matches!(
            error,
            ReadyError::TimedOut {
                stage: Stage::Auth,
                ..
            }
        ),
        "{error:?}"
    );

    let begun = Instant::now();
    crabbox_ssh::keys::pin(
        &target.known_hosts,
        "127.0.0.1",
        sshd.port(),
        &crabbox_ssh::keys::generate("another").unwrap().public_openssh,
    )
    .unwrap();
    let error = wait(&target, None, Duration::from_mins(1)).unwrap_err();
    let ReadyError::Hopeless { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(matches!(*source, NotReady::Connect(_)), "{source:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(sshd.logins(), 0);
}

#[test]
fn a_cancelled_wait_ends_at_once() {
    let mut sshd = Sshd::start();
    let target = target(&sshd);
    sshd.stop();
    cancels(&target, || clock::nap(Duration::from_millis(50)));
}

/// Starts a wait and cancels it once `until` has returned.
fn cancels(target: &Target, until: impl FnOnce() + Send) {
    let (cancel, asker) = std::io::pipe().unwrap();
    let wait = Wait {
        target,
        phase: "bootstrap",
        ready_command: Some("sleep 20"),
        settled: true,
        deadline: Instant::now() + Duration::from_mins(1),
        probe_port: true,
        cancel: Some(cancel.as_fd()),
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let error = wait_ssh(&wait, &mut |_| {}).unwrap_err();
            (error, Instant::now())
        });
        until();
        let asked = Instant::now();
        drop(asker);
        let (error, ended) = waiting.join().unwrap();
        assert!(matches!(error, ReadyError::Cancelled { .. }), "{error:?}");
        // A command that runs by then is stopped, which takes a moment.
        assert!(ended - asked < Duration::from_secs(8), "{:?}", ended - asked);
    });
}

#[test]
fn a_check_that_is_under_way_ends_with_the_wait() {
    let started = tempfile::tempdir().unwrap();
    let flag = started.path().join("f");
    let begun = || poll_until(Duration::from_secs(20), || flag.exists().then_some(())).unwrap();
    // First something in place of our line, such as a start-up file that waits; then our line itself.
    for forced in ["exec sleep 30", "exec sh -c \"$SSH_ORIGINAL_COMMAND\""] {
        std::fs::remove_file(&flag).ok();
        let sshd = Sshd::start_with(&format!("ForceCommand touch {}; {forced}", flag.display()));
        let target = target(&sshd);
        cancels(&target, begun);
        exit(&target);
    }
}

#[test]
fn a_login_is_enough_without_a_ready_command_and_without_sharing_none_is_left() {
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    target.control = None;
    let timings = wait(&target, None, Duration::from_secs(30)).unwrap();
    assert_eq!(timings.auth, timings.ready);
    assert_eq!(sshd.logins(), 1);
}

/// The reason why an existing host will not become ready.
fn unfit(target: &Target, ready: &str) -> NotReady {
    let wait = Wait {
        target,
        phase: "bootstrap",
        ready_command: Some(ready),
        settled: true,
        deadline: Instant::now() + Duration::from_mins(20),
        probe_port: false,
        cancel: None,
    };
    let ReadyError::Unfit { source, .. } = wait_ssh(&wait, &mut |_| {}).unwrap_err() else {
        panic!("the wait ends with the first check")
    };
    exit(target);
    *source
}

#[test]
fn a_host_that_exists_is_not_waited_for_when_its_check_says_what_is_missing() {
    let sshd = Sshd::start();
    let said = unfit(&target(&sshd), "crabbox-no-such-program --version").to_string();
    assert!(
        said.contains("exited with 127") && said.contains("crabbox-no-such-program"),
        "{said}"
    );
}

#[test]
fn a_check_that_exits_with_255_is_told_in_its_own_words() {
    let sshd = Sshd::start();
    for (check, words) in [
        ("echo no >&2; exit 255", "no"),
        ("echo nor this; exit 255", "nor this"),
    ] {
        let found = unfit(&target(&sshd), check);
        let said = found.to_string();
        assert_eq!(
            said,
            format!("the ready command exited with 255: {words}"),
            "{found:?}"
        );
    }
}

#[test]
fn a_login_that_is_cut_off_is_told_in_seconds() {
    for forced in ["kill -KILL $$", "kill -TERM $PPID; sleep 30"] {
        let sshd = Sshd::start_with(&format!("ForceCommand {forced}"));
        let begun = Instant::now();
        let found = unfit(&target(&sshd), "exit 0");
        assert!(begun.elapsed() < Duration::from_secs(20), "{forced}: {found:?}");
        assert!(
            matches!(
                &found,
                NotReady::Exec(ExecError::NotStarted {
                    source: NotStarted {
                        instead: ShellFailure::Killed,
                        ..
                    },
                    ..
                }) | NotReady::Check {
                    status: RemoteStatus::ConnectionLost,
                    ..
                }
            ),
            "{forced}: {found:?}"
        );
    }
}

#[test]
fn a_host_that_runs_something_else_in_place_of_the_check_is_told_also_when_that_succeeds() {
    for (forced, code) in [
        ("echo only backups here", 0),
        ("echo only backups here; exit 1", 1),
    ] {
        let sshd = Sshd::start_with(&format!("ForceCommand {forced}"));
        let found = unfit(&target(&sshd), "exit 0");
        assert!(
            matches!(
                &found,
                NotReady::Exec(ExecError::NotStarted { source: NotStarted { instead, printed }, .. })
                    if *instead == ShellFailure::Exited(code) && printed == "only backups here"
            ),
            "{found:?}"
        );
    }
}

#[test]
fn a_host_that_takes_standard_input_away_is_not_said_to_lack_what_was_looked_for() {
    let sshd = Sshd::start_with("ForceCommand sh -c \"$SSH_ORIGINAL_COMMAND\" </dev/null");
    let found = unfit(&target(&sshd), "exit 0");
    assert!(
        matches!(
            &found,
            NotReady::Exec(ExecError::NotStarted {
                source: NotStarted {
                    instead: ShellFailure::NoInput,
                    ..
                },
                ..
            })
        ),
        "{found:?}"
    );
}

/// Runs in place of our line, reads all that we send, and prints nothing.
const DEAF: &str = "ForceCommand cat >/dev/null";

#[test]
fn a_login_shell_that_never_begins_is_told_in_time_and_is_no_slow_command() {
    let sshd = Sshd::start_with(DEAF);
    let target = target(&sshd);
    let seen = capture(&target, "exit 0", Stdin::Null, Some(Duration::from_secs(2)));
    let Err(ExecError::NotStarted { source, .. }) = seen else {
        panic!("{seen:?}")
    };
    assert!(matches!(source.instead, ShellFailure::Waited(_)), "{source}");
    exit(&target);
}

#[test]
fn what_has_not_begun_is_given_up_at_once_when_that_is_wanted() {
    let sshd = Sshd::start_with(DEAF);
    let target = target(&sshd);
    master::open(
        &target,
        target.control.as_deref().unwrap(),
        Duration::from_secs(30),
        None,
    )
    .unwrap();
    let (wanted, closed) = std::io::pipe().unwrap();
    drop(closed);
    let begun = Instant::now();
    let exec = Exec {
        script: "exit 0".to_owned(),
        stdin: Stdin::Null,
        stdout: Sink::Discard,
        stderr: Sink::Discard,
        cancel: Some(wanted.as_fd()),
        limit: None,
    };
    let status = crabbox_ssh::exec::run(&target, exec).unwrap();
    assert_eq!(status, RemoteStatus::Cancelled { stopped: true });
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    exit(&target);
}

#[test]
fn ssh_says_why_the_two_sides_have_no_algorithm_in_common() {
    let sshd = Sshd::start_with("Ciphers aes128-ctr");
    let mut target = target(&sshd);
    target.extra = vec!["Ciphers=aes256-ctr".to_owned()];
    let control = target.control.clone().unwrap();
    let error = master::open(&target, &control, Duration::from_secs(30), None).unwrap_err();
    assert!(error.to_string().contains("no matching cipher found"), "{error}");
}
