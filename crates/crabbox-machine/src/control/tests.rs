//! The bytes of requests and replies, and a supervisor's control thread with clients that violate the
//! protocol.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::unix;
use crabbox_store::places::LeaseDir;
use tracing::level_filters::LevelFilter;

use super::client::{ReplyError, ask, claim};
use super::server::Control;
use super::*;
use crate::lifecycle::supervisor_log::SupervisorLog;
use crate::log_filter::LogFilter;

/// A private directory, deep enough that its socket does not fit into an address when `deep`.
fn lease(home: &Path, deep: bool) -> LeaseDir {
    let dir = if deep {
        home.join("d".repeat(120))
    } else {
        home.join("lease")
    };
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    LeaseDir::at(dir)
}

/// A control server that listens in `dir`, its log, and a guard that keeps the log's filter alive.
fn listening(dir: &LeaseDir) -> (Control, SupervisorLog, impl Sized) {
    let (log, subscriber) = SupervisorLog::new(LogFilter::level(LevelFilter::INFO));
    let mut control = Control::new(&log).unwrap();
    control.listen(dir);
    (control, log, subscriber)
}

/// The reply to these bytes.
fn raw(dir: &LeaseDir, bytes: &[u8]) -> String {
    let mut stream = unix::connect(&dir.supervisor_socket()).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    // A client that sends more than the server reads may lose the reply.
    stream.read_to_string(&mut text).ok();
    text
}

#[test]
fn requests_and_replies_have_these_bytes() {
    let filter = "debug".to_owned();
    for (verb, bytes) in [
        (Verb::Ping, r#"{"version":1,"verb":"ping"}"#),
        (
            Verb::LogLevel { filter },
            r#"{"version":1,"verb":"log_level","filter":"debug"}"#,
        ),
        (Verb::End, r#"{"version":1,"verb":"end"}"#),
        (Verb::GiveWay, r#"{"version":1,"verb":"give_way"}"#),
        (
            Verb::Claim {
                pool: "a-b".to_owned(),
            },
            r#"{"version":1,"verb":"claim","pool":"a-b"}"#,
        ),
        (Verb::PoolUsed, r#"{"version":1,"verb":"pool_used"}"#),
    ] {
        assert_eq!(line(&verb).unwrap(), format!("{bytes}\n").as_bytes());
        let again: Verb = read(&mut format!("{bytes}\n").as_bytes()).unwrap();
        assert_eq!(again, verb);
    }
    let pong = Pong {
        pid: 7,
        program: "0.1.0".to_owned(),
        phase: Phase::Watching,
        log: "crabbox=info".to_owned(),
    };
    let why = "w".to_owned();
    for (reply, bytes) in [
        (
            Reply::Pong(pong),
            r#"{"version":1,"reply":"pong","pid":7,"program":"0.1.0","phase":"watching","log":"crabbox=info"}"#,
        ),
        (Reply::Done, r#"{"version":1,"reply":"done"}"#),
        (Reply::Yours, r#"{"version":1,"reply":"yours"}"#),
        (
            Reply::Refused { why },
            r#"{"version":1,"reply":"refused","why":"w"}"#,
        ),
    ] {
        assert_eq!(line(&reply).unwrap(), format!("{bytes}\n").as_bytes());
        let again: Reply = read(&mut format!("{bytes}\n").as_bytes()).unwrap();
        assert_eq!(again, reply);
    }
}

#[test]
fn a_supervisor_says_what_it_is_at_takes_a_level_and_hears_the_wish_to_end() {
    let home = tempfile::tempdir().unwrap();
    for deep in [false, true] {
        let dir = lease(home.path(), deep);
        let (control, log, _alive) = listening(&dir);
        control.enter(Phase::Watching);
        let Reply::Pong(pong) = ask(&dir, &Verb::Ping).unwrap() else {
            panic!("no pong");
        };
        assert_eq!((pong.pid, pong.phase), (std::process::id(), Phase::Watching));
        assert_eq!(pong.log, "crabbox=info");
        let level = |filter: &str| {
            ask(
                &dir,
                &Verb::LogLevel {
                    filter: filter.to_owned(),
                },
            )
            .unwrap()
        };
        assert_eq!(level("trace"), Reply::Done);
        assert_eq!(log.filter(), "crabbox=trace");
        assert!(matches!(level("loud"), Reply::Refused { why } if why.contains("loud")));
        assert_eq!(log.filter(), "crabbox=trace");
        assert!(!control.is_asked());
        assert_eq!(ask(&dir, &Verb::End).unwrap(), Reply::Done);
        assert!(clock::poll_until(Duration::from_secs(20), || control.is_asked().then_some(())).is_some());
        drop(control);
        assert!(!dir.supervisor_socket().exists());
    }
}

#[test]
fn what_is_no_request_is_refused_by_name_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    let (control, log, _alive) = listening(&dir);
    let long = [&[b' '; 5000][..], b"{\"version\":1,\"verb\":\"end\"}\n"].concat();
    assert!(!raw(&dir, &long).contains("done"));
    for (bytes, why) in [
        (
            &b"{\"version\":2,\"verb\":\"end\",\"new\":1}\n"[..],
            "unknown version 2",
        ),
        (
            b"{\"version\":1,\"verb\":\"snapshot\"}\n",
            "unknown variant `snapshot`",
        ),
        (b"{\"version\":1,\"verb\":\"end\"}", "cut off"),
        (b"{\"verb\":\"end\"}\n", "missing field `version`"),
        (b"end\n", "malformed"),
        (b"\xff\xfe\n", "malformed"),
    ] {
        let reply = raw(&dir, bytes);
        assert!(
            reply.contains("\"refused\"") && reply.contains(why),
            "{why}: {reply}"
        );
    }
    assert!(!control.is_asked());
    assert_eq!(log.filter(), "crabbox=info");
    // Neither a silent client nor one that disconnects may keep others from being served.
    drop(unix::connect(&dir.supervisor_socket()).unwrap());
    let _silent = unix::connect(&dir.supervisor_socket()).unwrap();
    assert!(clock::poll_until(Duration::from_secs(20), || ask(&dir, &Verb::Ping).ok()).is_some());
}

#[test]
fn only_this_user_is_listened_to_and_only_in_a_private_directory() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    let (control, ..) = listening(&dir);
    let socket = dir.supervisor_socket();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // Open up the permissions, so that another user gets as far as the check of the peer's uid.
    for path in [home.path(), dir.path(), socket.as_path()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ntry:\n  \
                  s.sendall(b'{\"version\":1,\"verb\":\"end\"}\\n')\n  print('heard', s.recv(99))\n\
                  except ConnectionError as error:\n  print('not heard', error)";
    let cmd = Cmd::new("/usr/bin/python3").args(["-c", script]).arg(&socket);
    let mut command = cmd.to_std();
    std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    command.stdout(std::process::Stdio::piped());
    let peer = cmd.spawn(&mut command).expect("tests run as root");
    let said = peer.wait_with_output().unwrap();
    let heard = String::from_utf8(said.stdout).unwrap();
    assert!(heard.contains("heard") && !heard.contains("done"), "{heard}");
    assert!(!control.is_asked());
    drop(control);
    // In a directory that others can write to, no socket is made at all.
    let (_control, ..) = listening(&dir);
    assert!(matches!(ask(&dir, &Verb::Ping), Err(ReplyError::Absent(_))));
}

#[test]
fn a_socket_that_is_not_there_or_dead_is_told_apart_and_replaced() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    assert!(matches!(ask(&dir, &Verb::End), Err(ReplyError::Absent(_))));
    // What a killed supervisor leaves behind: the socket's name, with nothing listening.
    let dead = unix::bind(&dir.supervisor_socket()).unwrap();
    rustix::net::shutdown(&dead, rustix::net::Shutdown::Both).unwrap();
    drop(dead);
    assert!(matches!(ask(&dir, &Verb::End), Err(ReplyError::Absent(_))));
    let (_control, ..) = listening(&dir);
    assert!(matches!(ask(&dir, &Verb::Ping), Ok(Reply::Pong(_))));
}

#[test]
fn a_reply_that_is_none_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    let listener = unix::bind(&dir.supervisor_socket()).unwrap();
    let replies: [&[u8]; 3] = [b"{\"version\":9,\"reply\":\"done\"}\n", b"done\n", b""];
    let served = std::thread::spawn(move || {
        for reply in replies {
            let (mut stream, _): (UnixStream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(reply).ok();
        }
    });
    for _ in 0..3 {
        // A server that hangs up before it reads our request causes an error, not a reply.
        let error = ask(&dir, &Verb::End).unwrap_err();
        assert!(
            matches!(error, ReplyError::Reply(_) | ReplyError::Send(_)),
            "{error:?}"
        );
    }
    served.join().unwrap();
}

#[test]
fn a_lease_on_offer_goes_to_one_of_all_who_ask_and_to_nobody_of_another_pool() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    let (control, _log, _alive) = listening(&dir);
    let refused = |pool: &str| matches!(claim(&dir, pool), Err(ReplyError::Refused { .. }));
    assert!(refused("one"), "it is not on offer yet");
    for _ in 0..3 {
        control.offer("one");
        assert!(refused("other"));
        let won: Vec<UnixStream> = std::thread::scope(|threads| {
            let asked: Vec<_> = (0..8)
                .map(|_| threads.spawn(|| claim(&dir, "one").ok()))
                .collect();
            asked.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1);
        let mut taker = control.taker().unwrap();
        // The winner keeps the connection: both directions work, and there is no time limit.
        (&won[0]).write_all(b"x").unwrap();
        let mut byte = [0];
        taker.read_exact(&mut byte).unwrap();
        assert_eq!((byte, taker.read_timeout().unwrap()), (*b"x", None));
        drop(won);
        assert_eq!(taker.read(&mut byte).unwrap(), 0, "who goes away is seen");
    }
    assert!(
        refused("one") && control.taker().is_none(),
        "it is on offer no more"
    );
    assert!(!control.is_pool_used());
    assert_eq!(ask(&dir, &Verb::PoolUsed).unwrap(), Reply::Done);
    assert!(control.is_pool_used());
}

#[test]
fn only_a_lease_that_is_nobodys_gives_way() {
    let home = tempfile::tempdir().unwrap();
    let dir = lease(home.path(), false);
    let gives_way = || match ask(&dir, &Verb::GiveWay).unwrap() {
        Reply::Done => true,
        Reply::Refused { .. } => false,
        other => panic!("{other:?}"),
    };
    // A lease that is being made for a client.
    let (control, _log, _alive) = listening(&dir);
    assert!(!gives_way() && !control.is_asked() && !control.gave_way());
    drop(control);
    // A lease that is being made for a pool.
    let (control, _log, _alive) = listening(&dir);
    control.reserve();
    assert!(gives_way());
    assert!(clock::poll_until(Duration::from_secs(20), || control.is_asked().then_some(())).is_some());
    assert!(control.gave_way());
    drop(control);
    // A lease on offer: afterwards nobody can claim it.
    let (control, _log, _alive) = listening(&dir);
    control.offer("one");
    assert!(gives_way());
    assert!(matches!(claim(&dir, "one"), Err(ReplyError::Refused { .. })));
    assert!(control.taker().is_none());
    drop(control);
    // A lease that a client has claimed, or is just being given.
    let (control, _log, _alive) = listening(&dir);
    control.offer("one");
    let _theirs = claim(&dir, "one").unwrap();
    assert!(!gives_way());
    assert!(control.taker().is_some());
    assert!(!gives_way() && !control.is_asked());
}
