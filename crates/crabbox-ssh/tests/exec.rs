//! Remote commands against a real sshd: streams, statuses, cancellation, one shared connection.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of these tests fail like the tests do"
)]

use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_ssh::agent_client::{AgentClient, Streams, agent};
use crabbox_ssh::capture::{Captured, capture};
use crabbox_ssh::command::{Form, UserCommand};
use crabbox_ssh::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
use crabbox_ssh::master::{self, ConnectError};
use crabbox_ssh::target::Target;
use crabbox_testkit::sshd::Sshd;

/// A server, and a target for it with a shared connection; dropping it ends the master.
struct Lab {
    sshd: Sshd,
    target: Target,
    control: PathBuf,
}

impl Lab {
    fn new() -> Self {
        Self::with("")
    }

    /// With these lines in `sshd_config`.
    fn with(config: &str) -> Self {
        let sshd = Sshd::start_with(config);
        let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
        target.key = Some(sshd.client_key());
        target.host_key_pinned = true;
        let control = sshd.dir().join("m");
        target.control = Some(control.clone());
        Self {
            sshd,
            target,
            control,
        }
    }

    fn run(&self, script: &str) -> Captured {
        self.feed(script, Stdin::Null)
    }

    fn feed(&self, script: &str, stdin: Stdin<'_>) -> Captured {
        capture(&self.target, script, stdin, Some(Duration::from_mins(1))).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        master::exit(&self.control).unwrap();
    }
}

#[test]
fn every_exit_code_passes_through_and_255_is_not_a_lost_connection() {
    let lab = Lab::new();
    for code in [0, 1, 7, 125, 126, 127, 254, 255] {
        assert_eq!(
            lab.run(&format!("exit {code}")).status,
            RemoteStatus::Exited(code)
        );
        assert_eq!(
            lab.run(&format!("sh -c 'exit {code}'")).status,
            RemoteStatus::Exited(code)
        );
    }
    assert_eq!(lab.run("sh -c 'kill -KILL $$'").status, RemoteStatus::Exited(137));
    assert_eq!(lab.sshd.logins(), 1, "all of them share one connection");
}

#[test]
fn the_streams_stay_apart_and_input_is_closed() {
    let lab = Lab::new();
    let seen = lab.run("echo out; echo err >&2; readlink /proc/self/fd/0");
    assert_eq!(
        (seen.stdout_text().as_str(), seen.stderr_text().as_str()),
        ("out\n/dev/null", "err")
    );
}

#[test]
fn ten_megabytes_come_back_whole() {
    let lab = Lab::new();
    let seen = lab.run("head -c 10000000 /dev/zero | tr '\\0' x");
    assert_eq!(seen.status, RemoteStatus::Exited(0));
    assert_eq!(seen.stdout.len(), 10_000_000);
    assert!(seen.stdout.iter().all(|byte| *byte == b'x'));
}

#[test]
fn ten_megabytes_of_input_arrive_whole_from_bytes_and_from_a_reader() {
    let lab = Lab::new();
    let bytes: Vec<u8> = (0..10_000_000_u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let expected = crabbox_host::digest::sha256(&bytes);
    for stdin in [Stdin::Bytes(&bytes), Stdin::Reader(Box::new(bytes.as_slice()))] {
        let seen = lab.feed("sha256sum", stdin);
        assert_eq!(seen.stdout_text(), format!("{expected}  -"));
    }
    // A command that does not read its input is judged by its status.
    assert_eq!(
        lab.feed("exit 3", Stdin::Bytes(&bytes)).status,
        RemoteStatus::Exited(3)
    );
}

#[test]
fn a_silent_pipe_does_not_outlast_the_command() {
    let lab = Lab::new();
    let (input, held) = std::io::pipe().unwrap();
    let (done, ended) = std::sync::mpsc::channel();
    let target = lab.target.clone();
    let command = std::thread::spawn(move || {
        let captured = capture(&target, "exit 74", Stdin::Pipe(input), None);
        done.send(captured.unwrap().status).unwrap();
    });
    // The writer is dropped only after the end of the command, or after the timeout.
    let status = ended.recv_timeout(Duration::from_mins(2));
    drop(held);
    command.join().unwrap();
    assert_eq!(status, Ok(RemoteStatus::Exited(74)));
}

#[test]
fn what_is_written_into_a_pipe_arrives_until_its_end() {
    let lab = Lab::new();
    let (input, mut held) = std::io::pipe().unwrap();
    let writer = std::thread::spawn(move || held.write_all(b"one\ntwo").unwrap());
    assert_eq!(lab.feed("cat", Stdin::Pipe(input)).stdout_text(), "one\ntwo");
    writer.join().unwrap();
}

#[test]
fn an_input_that_cannot_be_read_is_an_error_and_not_a_short_file() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    let lab = Lab::new();
    let error = capture(&lab.target, "cat", Stdin::Reader(Box::new(Broken)), None).unwrap_err();
    assert!(matches!(error, ExecError::Input { .. }), "{error:?}");
}

#[test]
fn output_streams_while_the_command_runs() {
    struct Noted(std::sync::mpsc::Sender<Vec<u8>>);
    impl Write for Noted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).ok();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lab = Lab::new();
    let flag = lab.sshd.dir().join("seen");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let script = format!(
            "printf first; while ! [ -e {} ]; do sleep 0.02; done; printf last",
            flag.display()
        );
        scope.spawn(|| {
            let exec = Exec {
                script,
                stdin: Stdin::Null,
                stdout: Sink::Writer(&mut Noted(sender)),
                stderr: Sink::Discard,
                cancel: None,
                limit: Some(Duration::from_secs(30)),
            };
            assert_eq!(exec::run(&lab.target, exec).unwrap(), RemoteStatus::Exited(0));
        });
        // The command continues only after its first output was seen here.
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), b"first");
        std::fs::write(&flag, "").unwrap();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), b"last");
    });
}

#[test]
fn a_connection_that_dies_under_a_command_is_told_apart() {
    let lab = Lab::new();
    let started = lab.sshd.dir().join("started");
    let script = format!("touch {}; sleep 60; exit 255", started.display());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| lab.run(&script).status);
        poll_until(Duration::from_secs(20), || started.exists().then_some(())).unwrap();
        lab.sshd.kill_connections();
        assert_eq!(running.join().unwrap(), RemoteStatus::ConnectionLost);
    });
    // The next command opens a new one.
    assert_eq!(lab.run("exit 4").status, RemoteStatus::Exited(4));
}

#[test]
fn a_shell_that_is_killed_is_not_a_lost_connection() {
    let lab = Lab::new();
    assert_eq!(lab.run("kill -KILL 0").status, RemoteStatus::Killed);
    assert_eq!(lab.sshd.logins(), 1);
}

/// Runs a script that writes its children's pids, cancels it, and returns the status with those pids.
fn cancelled(lab: &Lab, script: &str) -> (RemoteStatus, Vec<String>) {
    let pids = lab.sshd.dir().join("pids");
    let script = format!("cd {}; {script}", lab.sshd.dir().display());
    let (cancel, asker) = std::io::pipe().unwrap();
    let status = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let exec = Exec {
                script,
                stdin: Stdin::Null,
                stdout: Sink::Discard,
                stderr: Sink::Discard,
                cancel: Some(cancel.as_fd()),
                limit: None,
            };
            exec::run(&lab.target, exec).unwrap()
        });
        poll_until(Duration::from_secs(20), || pids.exists().then_some(())).unwrap();
        drop(asker);
        running.join().unwrap()
    });
    let pids = std::fs::read_to_string(pids).unwrap();
    (status, pids.split_whitespace().map(str::to_owned).collect())
}

fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie does not run; the machine may have no process that reaps it.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[test]
fn cancelling_ends_the_remote_process_group() {
    let lab = Lab::new();
    let begun = Instant::now();
    let script = "bash -lc 'sleep 600 & sleep 600 & echo $! $$ >p; mv p pids; wait'";
    let (status, pids) = cancelled(&lab, script);
    assert_eq!(status, RemoteStatus::Cancelled { stopped: true });
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(
        lab.run("exit 0").status,
        RemoteStatus::Exited(0),
        "the connection is still good"
    );
}

#[test]
fn a_command_that_ignores_the_polite_signal_is_killed() {
    let lab = Lab::new();
    let (status, pids) = cancelled(
        &lab,
        "sh -c 'trap \"\" TERM INT; echo $$ >p; mv p pids; while :; do sleep 1; done'",
    );
    assert_eq!(status, RemoteStatus::Cancelled { stopped: true });
    assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
}

#[test]
fn a_command_past_its_limit_is_stopped() {
    let lab = Lab::new();
    let seen = capture(
        &lab.target,
        "echo early; sleep 600",
        Stdin::Null,
        Some(Duration::from_secs(2)),
    )
    .unwrap();
    assert_eq!(seen.status, RemoteStatus::TimedOut { stopped: true });
    assert_eq!(seen.stdout_text(), "early");
}

#[test]
fn a_reader_that_leaves_breaks_the_pipe_of_the_command_as_head_does() {
    let lab = Lab::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let exec = Exec {
        script: "yes".to_owned(),
        stdin: Stdin::Null,
        stdout: Sink::Fd(writer.as_fd()),
        stderr: Sink::Discard,
        cancel: None,
        limit: Some(Duration::from_secs(30)),
    };
    // 128 + SIGPIPE, as in a shell; if the signal is ignored, the program fails by itself.
    let status = exec::run(&lab.target, exec).unwrap();
    assert!(matches!(status, RemoteStatus::Exited(141 | 1)), "{status:?}");
}

#[test]
fn without_sharing_a_command_has_a_connection_of_its_own_and_leaves_none() {
    let mut lab = Lab::new();
    lab.target.control = None;
    let seen = lab.run("echo $PPID; exit 255");
    assert_eq!(seen.status, RemoteStatus::Exited(255));
    assert_eq!(lab.sshd.logins(), 1);
    let session: &str = &seen.stdout_text();
    poll_until(Duration::from_secs(10), || (!runs(session)).then_some(())).expect("the connection is closed");
}

#[test]
fn a_master_is_opened_once_however_many_ask_and_exit_leaves_nothing() {
    let lab = Lab::new();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| master::open(&lab.target, &lab.control, Duration::from_secs(30), None).unwrap());
        }
    });
    assert_eq!(lab.sshd.logins(), 1);
    let pid = master::check(&lab.control).unwrap();
    assert!(master::exit(&lab.control).unwrap());
    assert!(!runs(&pid.to_string()));
    assert!(!lab.control.exists() && !lab.control.with_extension("lock").exists());
    assert!(!master::exit(&lab.control).unwrap(), "a second one finds nothing");
}

#[test]
fn exit_ends_a_master_that_was_stopped_mid_work_and_clears_a_dead_socket() {
    let lab = Lab::new();
    lab.run("exit 0");
    let pid = rustix::process::Pid::from_raw(master::check(&lab.control).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    poll_until(Duration::from_secs(5), || {
        (!runs(&pid.as_raw_nonzero().to_string())).then_some(())
    })
    .unwrap();
    assert!(lab.control.exists(), "a killed master leaves its socket");
    // A stale socket prevents neither a new connection nor the exit.
    assert_eq!(lab.run("exit 9").status, RemoteStatus::Exited(9));
    assert!(master::exit(&lab.control).unwrap());
    assert!(!lab.control.exists());
}

fn open_error(lab: &Lab) -> ConnectError {
    master::open(&lab.target, &lab.control, Duration::from_secs(30), None).unwrap_err()
}

#[test]
fn a_wrong_host_key_is_refused_with_words_that_help() {
    let lab = Lab::new();
    let other = std::fs::read_to_string(lab.sshd.dir().join("client_key.pub")).unwrap();
    let line = format!("[127.0.0.1]:{} {other}", lab.sshd.port());
    std::fs::write(&lab.target.known_hosts, line).unwrap();
    let error = open_error(&lab);
    assert!(matches!(error, ConnectError::HostKeyMismatch { .. }), "{error:?}");
    assert!(!error.is_passing());
    assert!(
        error.to_string().contains("stop this lease and take a new one"),
        "{error}"
    );
    // Without any pinned key, the result is the same.
    std::fs::write(&lab.target.known_hosts, "").unwrap();
    assert!(matches!(open_error(&lab), ConnectError::HostKeyMismatch { .. }));
    assert_eq!(lab.sshd.logins(), 0);
}

#[test]
fn a_key_that_ssh_cannot_use_is_named_with_its_reason() {
    let mut lab = Lab::new();
    let make = |name: &str, passphrase: &str| {
        let path = lab.sshd.dir().join(name);
        let made = Cmd::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", passphrase, "-f"])
            .arg(&path);
        made.run().unwrap();
        path
    };
    let open = make("open", "");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let locked = make("locked", "secret");
    let public = lab.sshd.dir().join("open.pub");
    let garbage = lab.sshd.dir().join("garbage");
    std::fs::write(&garbage, "no key\n").unwrap();
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o600)).unwrap();
    for (key, reason) in [
        (open, "Permissions 0644 for '"),
        (locked, "is encrypted with a passphrase"),
        (public, "is the public half"),
        (garbage, "Load key "),
    ] {
        lab.target.key = Some(key.clone());
        let error = open_error(&lab);
        assert!(matches!(error, ConnectError::KeyUnusable { .. }), "{error:?}");
        // Retrying with the same file is pointless.
        assert!(!error.is_passing());
        let said = error.to_string();
        assert!(
            said.contains(reason) && said.contains(key.to_str().unwrap()),
            "{said}"
        );
    }
}

#[test]
fn a_refused_key_and_a_closed_port_are_told_apart() {
    let mut lab = Lab::new();
    lab.target.key = Some(lab.sshd.dir().join("host_key"));
    let error = open_error(&lab);
    assert!(
        matches!(error, ConnectError::AuthDenied { .. }) && !error.wants_more_than_a_key(),
        "{error:?}"
    );
    for config in [
        "KbdInteractiveAuthentication yes\nAuthenticationMethods publickey,keyboard-interactive",
        "PubkeyAuthentication no\nPasswordAuthentication yes",
    ] {
        let error = open_error(&Lab::with(config));
        assert!(error.wants_more_than_a_key(), "{config}: {error:?}");
    }
    lab.sshd.stop();
    let error = open_error(&lab);
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
}

#[test]
fn a_users_words_arrive_over_the_wire_and_a_secret_is_in_no_argument_vector() {
    let lab = Lab::new();
    let words = [
        "it's",
        "a \"b\"",
        "$HOME",
        "`id`",
        "two\nlines",
        "\\",
        "",
        "*",
        "ünï ☃",
        "\u{81}\u{88}",
    ];
    let list = lab.sshd.dir().join("all processes");
    // The command reads every argument vector of the machine while it runs, including its own shells'.
    let look = "cat /proc/[0-9]*/cmdline >\"$LIST\" 2>/dev/null; printf '%s\\0' \"$SECRET\" \"$@\"";
    let argv = ["sh", "-c", look, "sh"]
        .iter()
        .chain(&words)
        .map(|word| (*word).to_owned())
        .collect();
    let secret = format!("s3cr3t-{}", std::process::id());
    let command = UserCommand {
        workdir: lab.sshd.dir().to_str().unwrap().to_owned(),
        env: vec![
            ("SECRET".to_owned(), secret.clone()),
            ("LIST".to_owned(), list.to_str().unwrap().to_owned()),
        ],
        form: Form::Argv(argv),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut far = AgentClient::open(&lab.target, None).unwrap();
    let streams = Streams {
        out: &mut out,
        err: &mut err,
    };
    far.run(command.prepared().unwrap(), None, streams, None).unwrap();
    let expected: String = format!("{secret}\0{}\0", words.join("\0"));
    assert_eq!(
        String::from_utf8_lossy(&out),
        expected,
        "{}",
        String::from_utf8_lossy(&err)
    );
    let vectors = std::fs::read(list).unwrap();
    let holds = |text: &str| vectors.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds(agent::DIGEST), "the agent was running");
    assert!(!holds(&secret), "the value is in an argument vector");
}

#[test]
fn a_master_that_dies_before_the_session_starts_is_replaced_by_a_new_one() {
    let lab = Lab::new();
    let listener = std::os::unix::net::UnixListener::bind(&lab.control).unwrap();
    let control = lab.control.clone();
    // It sends the greeting twice like a live master (`PROTOCOL.mux`: length, type 1, version 4), and then
    // goes away.
    let dying = std::thread::spawn(move || {
        for call in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            stream.write_all(&[0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 4]).unwrap();
            if call == 1 {
                std::fs::remove_file(&control).unwrap();
            }
        }
    });
    assert_eq!(lab.run("exit 6").status, RemoteStatus::Exited(6));
    dying.join().unwrap();
    assert_eq!(lab.sshd.logins(), 1);
}

#[test]
fn the_limit_counts_for_a_machine_that_does_not_answer_too() {
    let mut lab = Lab::new();
    // It accepts connections but never sends anything, like a machine that hangs.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    lab.target.port = silent.local_addr().unwrap().port();
    let begun = Instant::now();
    let error = capture(&lab.target, "exit 0", Stdin::Null, Some(Duration::from_secs(1))).unwrap_err();
    assert!(
        matches!(
            error,
            ExecError::Connect {
                source: ConnectError::TimedOut { .. }
            }
        ),
        "{error:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_machine_on_this_one_gets_the_cheap_key_exchange() {
    let sshd = Sshd::start_with("LogLevel DEBUG1");
    let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
    target.key = Some(sshd.client_key());
    target.on_this_machine = true;
    assert!(capture(&target, "exit 0", Stdin::Null, None).unwrap().success());
    let log = sshd.log();
    assert!(log.contains("kex: algorithm: curve25519-sha256"), "{log}");
    assert!(
        !target.display_line().contains("Kex"),
        "the printed line stays the Go program's"
    );
}

#[test]
fn what_the_client_itself_refuses_is_repeated_whole() {
    let mut lab = Lab::new();
    lab.target.extra = vec!["UseKeychain=yes".to_owned()];
    let error = open_error(&lab);
    assert!(
        matches!(&error, ConnectError::Failed { said, .. } if said.contains("Bad configuration option: usekeychain")),
        "{error:?}"
    );
    assert_eq!(lab.sshd.logins(), 0);
}

#[test]
fn commands_at_the_same_time_need_no_more_than_one_session_a_connection() {
    for sessions in [1, 2] {
        let lab = Lab::with(&format!("MaxSessions {sessions}"));
        let flag = lab.sshd.dir().join("go");
        let script = format!("until [ -e {} ]; do sleep 0.02; done; exit 4", flag.display());
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| lab.run(&script).status)).collect();
            assert_eq!(lab.run("exit 3").status, RemoteStatus::Exited(3));
            std::fs::write(&flag, "").unwrap();
            for command in waiting {
                assert_eq!(command.join().unwrap(), RemoteStatus::Exited(4));
            }
        });
        // The cancelled command holds the only session, and is stopped anyway.
        let (status, pids) = cancelled(&lab, "sleep 600 & echo $! $$ >p; mv p pids; wait");
        assert_eq!(status, RemoteStatus::Cancelled { stopped: true });
        assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
    }
}

#[test]
fn a_server_that_gives_no_session_at_all_is_told_with_the_setting() {
    let lab = Lab::with("MaxSessions 0");
    let error = capture(&lab.target, "exit 0", Stdin::Null, None).unwrap_err();
    assert!(matches!(error, ExecError::NoSession { .. }), "{error:?}");
    assert!(error.to_string().contains("MaxSessions"), "{error}");
}
