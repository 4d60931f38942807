//! Real-world hosts: login shells of every kind, and start-up files that print, read or start something else.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of these tests fail like the tests do"
)]

use std::time::{Duration, Instant};

use crabbox_ssh::beginning::{NotStarted, ShellFailure};
use crabbox_ssh::capture::{Captured, capture};
use crabbox_ssh::exec::{ExecError, RemoteStatus, Stdin};
use crabbox_ssh::master;
use crabbox_ssh::target::Target;
use crabbox_ssh::tunnel;
use crabbox_testkit::sshd::Sshd;

/// A server whose sessions start with `shell`, and with `startup` in the file that it reads first.
struct Host {
    sshd: Sshd,
    target: Target,
}

impl Host {
    /// `ForceCommand` simulates a login shell: sshd passes it to the real one with the line in a variable,
    /// and sshd itself calls `shell -c` in the same way (session.c, `do_child`).
    fn new(shell: &str, startup: (&str, &str)) -> Self {
        let sshd = Sshd::start_with(&format!("ForceCommand exec {shell} -c \"$SSH_ORIGINAL_COMMAND\""));
        let (file, text) = startup;
        if !file.is_empty() {
            let path = sshd.home().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
        target.key = Some(sshd.client_key());
        target.host_key_pinned = true;
        target.control = Some(sshd.dir().join("m"));
        Self { sshd, target }
    }

    fn run(&self, script: &str, stdin: &[u8]) -> Result<Captured, ExecError> {
        capture(
            &self.target,
            script,
            Stdin::Bytes(stdin),
            Some(Duration::from_mins(2)),
        )
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        master::exit(self.target.control.as_deref().unwrap()).unwrap();
    }
}

/// A script with everything that a shell could interpret, which prints its input and fixed text.
const SCRIPT: &str =
    "x='it is! \\ \"$HOME\" `id` %1 ^a^b {c,d} *'\nprintf '%s\\n' \"$x\"\ncat\necho no >&2\nexit 7";

fn runs_as_everywhere(host: &Host, what: &str) {
    let seen = host.run(SCRIPT, b"in\n").unwrap();
    assert_eq!(seen.status, RemoteStatus::Exited(7), "{what}: {seen:?}");
    assert_eq!(
        String::from_utf8_lossy(&seen.stdout),
        "it is! \\ \"$HOME\" `id` %1 ^a^b {c,d} *\nin\n",
        "{what}"
    );
    assert_eq!(seen.stderr_text(), "no", "{what}");
}

#[test]
fn every_login_shell_runs_a_command_alike() {
    for shell in ["sh", "bash", "dash", "tcsh", "csh", "busybox sh"] {
        runs_as_everywhere(&Host::new(shell, ("", "")), shell);
    }
}

#[test]
fn what_startup_files_print_is_passed_over_on_both_streams() {
    for text in [
        "echo WELCOME; echo warned >&2",
        "printf 'no end of line'; printf 'nor here' >&2",
        "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2",
        "exec 2>&1; echo WELCOME",
        "set -x; set -v",
        "alias sh=false exec=false echo=false; trap 'echo bye' EXIT; PATH=/nowhere:$PATH",
    ] {
        // bash reads .bashrc here, because it is a child of sshd.
        let host = Host::new("bash", (".bashrc", text));
        let seen = host.run("echo out; exit 3", b"").unwrap();
        assert_eq!(seen.status, RemoteStatus::Exited(3), "{text}: {seen:?}");
        assert_eq!(String::from_utf8_lossy(&seen.stdout), "out\n", "{text}");
    }
    let host = Host::new("tcsh", (".tcshrc", "echo WELCOME\nset history = 100\nset echo\n"));
    runs_as_everywhere(&host, "tcsh");
}

#[test]
fn startup_files_that_read_get_none_of_our_input_and_another_shell_is_brought_back() {
    for text in [
        "read -t 1 line",
        "read line",
        "read -p 'Press enter' one; read two",
        "exec dash",
        "exec tcsh",
        "exec busybox sh",
    ] {
        runs_as_everywhere(&Host::new("bash", (".bashrc", text)), text);
    }
}

#[test]
fn a_tunnel_opens_beside_startup_files_that_print_and_read() {
    let host = Host::new("bash", (".bashrc", "echo WELCOME; read line"));
    let tunnel = tunnel::open(&host.target, None, host.sshd.port(), None).unwrap();
    let mut greeting = [0; 4];
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", tunnel.local_port())).unwrap();
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-");
}

#[test]
fn a_mark_that_never_comes_is_told_with_what_came_in_its_place() {
    for (text, expected) in [
        ("echo this account has moved; exit 5", ShellFailure::Exited(5)),
        ("exec yes 'this account has moved'", ShellFailure::Flooded),
    ] {
        let host = Host::new("bash", (".bashrc", text));
        let error = host.run("echo ran", b"").unwrap_err();
        let ExecError::NotStarted {
            source: NotStarted { instead, printed },
            ..
        } = &error
        else {
            unreachable!("{error:?}");
        };
        assert_eq!(*instead, expected, "{error:?}");
        assert!(printed.contains("this account has moved"), "{printed:?}");
        assert!(printed.chars().count() <= 300, "{printed:?}");
    }
}

#[test]
fn a_startup_file_that_takes_a_stream_for_itself_is_told_before_the_limit() {
    std::thread::scope(|scope| {
        for (text, expected) in [
            ("exec >/dev/null", ShellFailure::NoOutput),
            ("exec >&-", ShellFailure::NoOutput),
            ("exec >&2", ShellFailure::NoOutput),
            ("exec >/dev/null 2>&1", ShellFailure::NoOutput),
            ("cat >/dev/null", ShellFailure::Reading),
            ("while read x; do :; done; echo hi", ShellFailure::Reading),
            ("exec cat >/dev/null", ShellFailure::Exited(0)),
        ] {
            scope.spawn(move || {
                let host = Host::new("bash", (".bashrc", text));
                let begun = Instant::now();
                let error = host.run("echo ran", b"").unwrap_err();
                let ExecError::NotStarted { source, .. } = &error else {
                    unreachable!("{text}: {error:?}");
                };
                let took = begun.elapsed();
                assert_eq!(source.instead, expected, "{text}: {error:?}");
                assert!(took < Duration::from_secs(25), "{text}: {took:?}");
            });
        }
    });
}

#[test]
fn a_login_that_is_only_slow_is_waited_for() {
    std::thread::scope(|scope| {
        for text in ["sleep 14", "echo slow >&2; sleep 12; read line"] {
            scope.spawn(move || runs_as_everywhere(&Host::new("bash", (".bashrc", text)), text));
        }
    });
}
