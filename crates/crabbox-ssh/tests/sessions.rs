//! Interactive sessions and tunnels against a real sshd.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of these tests fail like the tests do"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crabbox_host::clock::{nap, poll_until};
use crabbox_host::command::Cmd;
use crabbox_ssh::interactive;
use crabbox_ssh::master;
use crabbox_ssh::target::Target;
use crabbox_ssh::tunnel::{self, TunnelEnd, TunnelError};
use crabbox_testkit::sshd::Sshd;

fn target(sshd: &Sshd) -> Target {
    let mut target = Target::new(sshd.user(), "127.0.0.1", sshd.port(), &sshd.known_hosts()).unwrap();
    target.key = Some(sshd.client_key());
    target.host_key_pinned = true;
    target
}

#[test]
fn a_session_has_the_remote_shell_and_its_exit_code() {
    let sshd = Sshd::start();
    let seen = interactive::command(&target(&sshd), false)
        .stdin("echo $HOME; exit 7\n")
        .capture()
        .unwrap();
    assert_eq!(seen.status.code(), Some(7));
    assert_eq!(seen.stdout_text(), sshd.home().to_str().unwrap());
}

#[test]
fn with_a_terminal_here_there_is_one_there() {
    let sshd = Sshd::start();
    let line = interactive::command(&target(&sshd), true).argv();
    let words: Vec<&str> = line.iter().map(|word| word.to_str().unwrap()).collect();
    // `script` gives ssh a terminal to inherit.
    let inner = format!("{} 'tty; exit 5'", crabbox_ssh::quote::join(words));
    let seen = Cmd::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .limit(Duration::from_mins(1))
        .capture()
        .unwrap();
    assert_eq!(seen.status.code(), Some(5), "{}", seen.stdout_text());
    assert!(seen.stdout_text().contains("/dev/pts/"), "{}", seen.stdout_text());
}

/// A service on loopback that answers one connection after another with `hello`.
fn service() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"hello").ok();
        }
    });
    port
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn ask(port: u16) -> std::io::Result<String> {
    let mut text = String::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_tunnel_carries_connections_until_it_is_cancelled() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let tunnel = tunnel::open(&target, None, service(), None).unwrap();
    let port = tunnel.local_port();
    assert_eq!(ask(port).unwrap(), "hello");
    assert_eq!(ask(port).unwrap(), "hello");
    let listening = Cmd::new("grep")
        .args(["-ci", &format!(" 0100007F:{port:04X} 00000000:0000 0A")])
        .arg("/proc/net/tcp");
    assert_eq!(
        listening.capture().unwrap().stdout_text(),
        "1",
        "it listens on 127.0.0.1"
    );

    let (cancel, asker) = std::io::pipe().unwrap();
    drop(asker);
    assert_eq!(
        tunnel.wait(&target, Some(cancel.as_fd()), &mut |_| {}).unwrap(),
        TunnelEnd::Cancelled
    );
    assert!(
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(),
        "nothing listens any more"
    );
}

#[test]
fn a_tunnel_opens_no_forward_of_the_users_configuration_and_is_not_kept_from_opening_by_one() {
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    target.user_config = true;
    let (taken, free) = (service(), free_port());
    for forward in [
        format!("LocalForward=127.0.0.1:{taken} 127.0.0.1:1"),
        format!("RemoteForward=127.0.0.1:{taken} 127.0.0.1:1"),
        format!("DynamicForward=127.0.0.1:{taken}"),
        format!("LocalForward=127.0.0.1:{free} 127.0.0.1:1"),
        format!("RemoteForward=127.0.0.1:{free} 127.0.0.1:1"),
        "ControlPersist=10m".to_owned(),
    ] {
        target.extra = vec![forward.clone(), "ExitOnForwardFailure=yes".to_owned()];
        let tunnel = tunnel::open(&target, None, service(), None);
        let tunnel = tunnel.unwrap_or_else(|error| panic!("{forward}: {error:?}"));
        assert_eq!(ask(tunnel.local_port()).unwrap(), "hello", "{forward}");
        assert!(
            TcpStream::connect((Ipv4Addr::LOCALHOST, free)).is_err(),
            "{forward}"
        );
    }
}

#[test]
fn a_tunnel_whose_connection_dies_says_so() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let tunnel = tunnel::open(&target, None, service(), None).unwrap();
    sshd.kill_connections();
    let TunnelEnd::Ended { said } = tunnel.wait(&target, None, &mut |_| {}).unwrap() else {
        panic!("nobody cancelled it");
    };
    assert!(!said.contains("=errors"), "a mark of ours is shown: {said}");
}

#[test]
fn a_tunnel_whose_ssh_ends_just_before_the_cancellation_is_cancelled() {
    let sshd = Sshd::start();
    let target = target(&sshd);
    let tunnel = tunnel::open(&target, None, service(), None).unwrap();
    let port = tunnel.local_port();
    assert_eq!(ask(port).unwrap(), "hello");
    let (cancel, asker) = std::io::pipe().unwrap();
    sshd.kill_connections();
    let asked = std::thread::spawn(move || {
        // ssh has ended when it does not listen any more.
        let ended = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err();
        poll_until(Duration::from_secs(30), || ended().then_some(())).unwrap();
        nap(Duration::from_millis(50));
        drop(asker);
    });
    assert_eq!(
        tunnel.wait(&target, Some(cancel.as_fd()), &mut |_| {}).unwrap(),
        TunnelEnd::Cancelled
    );
    asked.join().unwrap();
}

#[test]
fn a_taken_port_and_a_refused_login_are_told_apart() {
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    let taken = service();
    let error = tunnel::open(&target, Some(taken), 80, None).unwrap_err();
    assert!(
        matches!(error, TunnelError::PortTaken { port } if port == taken),
        "{error:?}"
    );
    target.key = Some(sshd.dir().join("host_key"));
    let error = tunnel::open(&target, None, 80, None).unwrap_err();
    assert!(matches!(error, TunnelError::Connect { .. }), "{error:?}");
}

/// An argument for a copy of this test program, followed by the port of the server and its directory.
const HOLDER: &str = "holder-of-a-tunnel";

#[test]
fn a_tunnel_ends_with_the_process_that_holds_it_however_that_dies() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == HOLDER) {
        let [user, port, dir] = [1, 2, 3].map(|offset| args[at + offset].clone());
        let dir = std::path::Path::new(&dir);
        let mut target = Target::new(
            &user,
            "127.0.0.1",
            port.parse().unwrap(),
            &dir.join("known_hosts"),
        )
        .unwrap();
        target.key = Some(dir.join("client_key"));
        let tunnel = tunnel::open(&target, None, 80, None).unwrap();
        std::fs::write(dir.join("half"), tunnel.local_port().to_string()).unwrap();
        std::fs::rename(dir.join("half"), dir.join("tunnel")).unwrap();
        tunnel.wait(&target, None, &mut |_| {}).unwrap();
        return;
    }
    let sshd = Sshd::start();
    sshd.known_hosts();
    let name = "a_tunnel_ends_with_the_process_that_holds_it_however_that_dies";
    let cmd = Cmd::new(std::env::current_exe().unwrap())
        .args(["--exact", name, HOLDER, sshd.user(), &sshd.port().to_string()])
        .arg(sshd.dir());
    let mut holder = cmd
        .spawn(cmd.to_std().stdout(std::process::Stdio::null()))
        .unwrap();
    let said = sshd.dir().join("tunnel");
    let port = poll_until(Duration::from_secs(20), || std::fs::read_to_string(&said).ok());
    holder.kill().unwrap();
    holder.wait().unwrap();
    let port: u16 = port.expect("the copy opens a tunnel").parse().unwrap();
    poll_until(Duration::from_secs(10), || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .is_err()
            .then_some(())
    })
    .expect("nothing listens any more");
}

#[test]
fn a_service_on_the_other_loopback_address_is_reached_and_a_refusal_has_its_reason() {
    let listener = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"six").ok();
        }
    });
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    let control = sshd.dir().join("m");
    target.control = Some(control.clone());
    let tunnel = tunnel::open(&target, None, port, None).unwrap();
    assert_eq!(ask(tunnel.local_port()).unwrap(), "six");
    master::exit(&control).unwrap();

    let closed = Sshd::start_with("AllowTcpForwarding no");
    let target = self::target(&closed);
    let tunnel = tunnel::open(&target, None, port, None).unwrap();
    let at = tunnel.local_port();
    let (cancel, asker) = std::io::pipe().unwrap();
    let mut reasons = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || ask(at));
        let mut asker = Some(asker);
        let end = tunnel.wait(&target, Some(cancel.as_fd()), &mut |reason| {
            reasons.push(reason.to_owned());
            asker = None;
        });
        assert_eq!(end.unwrap(), TunnelEnd::Cancelled);
    });
    assert!(
        reasons[0].starts_with("administratively prohibited"),
        "{reasons:?}"
    );
}

#[test]
fn a_tunnel_follows_its_service_to_the_other_loopback_address() {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = four.local_addr().unwrap().port();
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    let control = sshd.dir().join("m");
    target.control = Some(control.clone());
    master::open(&target, &control, Duration::from_secs(30), None).unwrap();
    let tunnel = tunnel::open(&target, None, port, None).unwrap();
    let at = tunnel.local_port();
    // As with a server that is restarted with other arguments.
    drop(four);
    let six = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        for stream in six.incoming() {
            stream.unwrap().write_all(b"six").ok();
        }
    });
    let (cancel, asker) = std::io::pipe().unwrap();
    let has_moved = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let six = poll_until(Duration::from_secs(30), || {
                let six = ask(at).is_ok_and(|word| word == "six");
                (six && has_moved.load(Ordering::SeqCst)).then_some(())
            });
            drop(asker);
            assert!(six.is_some(), "the new address is told and reached");
        });
        let mut told = |reason: &str| {
            if reason.contains("listens on ::1 now") {
                has_moved.store(true, Ordering::SeqCst);
            }
        };
        let end = tunnel.wait(&target, Some(cancel.as_fd()), &mut told);
        assert_eq!(end.unwrap(), TunnelEnd::Cancelled);
    });
    master::exit(&control).unwrap();
}
