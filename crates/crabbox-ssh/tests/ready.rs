//! The wait for a lease against a real sshd.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of these tests fail like the tests do"
)]

use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
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
        deadline: Instant::now() + limit,
        probe_port: true,
        cancelled: &|| false,
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
    // A later wait, as there are several in one run, opens no other one.
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
fn a_closed_port_is_told_and_progress_is_rare() {
    let mut sshd = Sshd::start();
    let target = target(&sshd);
    sshd.stop();
    let mut lines = Vec::new();
    let wait = Wait {
        target: &target,
        phase: "bootstrap",
        ready_command: None,
        deadline: Instant::now() + Duration::from_secs(4),
        probe_port: true,
        cancelled: &|| false,
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
    let begun = Instant::now();
    let wait = Wait {
        target: &target,
        phase: "bootstrap",
        ready_command: None,
        deadline: begun + Duration::from_mins(1),
        probe_port: true,
        cancelled: &|| begun.elapsed() > Duration::from_millis(200),
    };
    let error = wait_ssh(&wait, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ReadyError::Cancelled { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
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
