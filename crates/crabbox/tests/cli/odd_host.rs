//! A host of provider `ssh` with oddities: unreadable files, forbidden forwarding, a lease ended by another
//! process, a silent connection.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crabbox_host::clock::poll_until;
use crabbox_testkit::sshd::Sshd;
use rustix::process::{Pid, Signal, kill_process};

use crate::place::Place;
use crate::static_host::{ID, claimed, configure, connected, existing};
use crate::world::read_claim;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// An sshd option under which root obeys file modes, as the user of a lease does.
pub(crate) const MORTAL: &str =
    "ForceCommand setpriv --bounding-set=-dac_override,-dac_read_search sh -c \"$SSH_ORIGINAL_COMMAND\"";

/// That host with additional sshd options.
pub(crate) fn odd(config: &str) -> (Place, Sshd) {
    let (place, usual) = existing();
    drop(usual);
    let sshd = Sshd::start_with(config);
    configure(&place, &sshd, "");
    (place, sshd)
}

fn start(place: &Place, words: &[&str], errors: &Path) -> Child {
    let errors = fs::File::create(errors).unwrap();
    let mut command = place.command(words);
    command.stdout(Stdio::null()).stderr(errors).spawn().unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let seen = poll_until(PATIENCE, || is_so().then_some(()));
    assert!(seen.is_some(), "{what}");
}

#[test]
fn a_host_that_was_mended_after_it_was_refused_is_seen_as_it_is() {
    let (place, sshd) = odd("");
    let keys = sshd.dir().join("client_key.pub");
    let usual = fs::read_to_string(&keys).unwrap();
    // sshd reads it only when somebody logs in.
    fs::write(&keys, format!("command=\"echo only backups here\" {usual}")).unwrap();
    let refused = place.run(&["run", "--", "true"]);
    assert_eq!(refused.code, 5, "{}", refused.err);
    assert!(refused.err.contains("only backups here"), "{}", refused.err);
    fs::write(&keys, usual).unwrap();
    let mended = place.run(&["run", "--", "true"]);
    assert_eq!(mended.code, 0, "{}", mended.err);
}

/// A host whose sessions have no git while `lacks` holds, a condition of sh. `dir` becomes their `PATH` then.
fn without_git(dir: &Path, lacks: &str) -> (Place, Sshd) {
    symlink("/bin/sh", dir.join("sh")).unwrap();
    let at = dir.display();
    odd(&format!(
        "ForceCommand if {lacks}; then PATH={at}; export PATH; fi; exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\""
    ))
}

#[test]
fn a_kept_host_that_lacked_something_is_asked_again_over_the_connection_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let lacks = dir.path().join("lacks");
    let (place, sshd) = without_git(dir.path(), &format!("test -e {}", lacks.display()));
    assert_eq!(place.run(&["warmup"]).code, 0);
    let claim = read_claim(&place, ID);
    fs::write(&lacks, "").unwrap();
    for _ in 0..2 {
        let refused = place.run(&["run", "--", "true"]);
        assert_eq!(refused.code, 5, "{}", refused.err);
        assert!(refused.err.contains("exited with 127"), "{}", refused.err);
        assert_eq!(read_claim(&place, ID), claim);
        assert!(connected(&place));
    }
    fs::remove_file(&lacks).unwrap();
    let mended = place.run(&["run", "--", "true"]);
    assert_eq!(mended.code, 0, "{}", mended.err);
    assert!(claimed(&place, ID), "it was kept before");
    assert_eq!(sshd.logins(), 1, "one connection for all of it");
}

#[test]
fn a_host_that_another_command_keeps_by_now_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (asked, go) = (dir.path().join("asked"), dir.path().join("go"));
    // The first check waits, and then finds nothing.
    let first = format!(
        "mkdir {} 2>/dev/null && for i in $(seq 500); do test -e {} && break; sleep 0.05; done",
        asked.display(),
        go.display()
    );
    let (place, sshd) = without_git(dir.path(), &first);
    let errors = sshd.dir().join("errors");
    let mut run = start(&place, &["run", "--", "true"], &errors);
    eventually("the host is asked", || asked.exists());
    let warm = place.run(&["warmup"]);
    assert_eq!(warm.code, 0, "{}", warm.err);
    let claim = read_claim(&place, ID);
    assert!(run.try_wait().unwrap().is_none(), "the first one still waits");
    fs::write(&go, "").unwrap();
    let code = run.wait().unwrap().code();
    let said = fs::read_to_string(&errors).unwrap();
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("exited with 127"), "{said}");
    assert_eq!(read_claim(&place, ID), claim);
    let next = place.run(&["run", "--id", ID, "--", "true"]);
    assert_eq!(next.code, 0, "{}", next.err);
    assert_eq!(sshd.logins(), 1, "one connection for all of it");
}

#[test]
fn a_host_that_takes_standard_input_away_is_not_said_to_lack_git() {
    let (place, sshd) = odd("ForceCommand sh -c \"$SSH_ORIGINAL_COMMAND\" </dev/null");
    let doctor = place.run(&["doctor", "--json", "--provider", "ssh", "--doctor-probe-ssh"]);
    assert_eq!(doctor.code, 1, "{}{}", doctor.out, doctor.err);
    let run = place.run(&["run", "--", "true"]);
    assert_eq!(run.code, 5, "{}", run.err);
    for said in [&doctor.out, &run.err] {
        assert!(said.contains("standard input"), "{said}");
        assert!(!said.contains("lacks git"), "{said}");
    }
    assert!(!claimed(&place, ID) && !connected(&place));
    // One that lacks it is said to lack it.
    drop(sshd);
    let dir = tempfile::tempdir().unwrap();
    let (place, _sshd) = without_git(dir.path(), "true");
    let doctor = place.run(&["doctor", "--json", "--provider", "ssh", "--doctor-probe-ssh"]);
    assert_eq!(doctor.code, 1, "{}{}", doctor.out, doctor.err);
    assert!(doctor.out.contains("lacks git: "), "{}", doctor.out);
}

#[test]
fn a_required_artifact_that_cannot_be_read_fails_the_run_and_the_others_are_kept() {
    let (place, _sshd) = odd(MORTAL);
    let script = "mkdir -p out; echo 1 > out/a; echo 2 > out/b; chmod 0 out/b";
    let unread = place.run(&[
        "run",
        "--require-artifact",
        "out/b",
        "--artifact-glob",
        "out/*",
        "--shell",
        "--",
        script,
    ]);
    assert_eq!(unread.code, 7, "{}", unread.err);
    assert!(
        unread.err.contains("required artifact cannot be read: out/b"),
        "{}",
        unread.err
    );
    assert!(
        unread.err.contains("artifact kind=artifact-glob path="),
        "{}",
        unread.err
    );
    // A pattern needs one match, not all of them.
    let partly = place.run(&["run", "--require-artifact", "out/*", "--shell", "--", script]);
    assert_eq!(partly.code, 0, "{}", partly.err);
    assert!(partly.err.contains("out/b"), "{}", partly.err);
}

#[test]
fn a_directory_that_nobody_may_read_costs_nothing_of_what_is_elsewhere() {
    let (place, _sshd) = odd(MORTAL);
    let script = "mkdir -p out pg; chmod 700 pg; echo '<testsuite><testcase name=\"a\"/></testsuite>' > out/r.xml; chmod 0 pg";
    let report = |pattern: &str| {
        place.run(&[
            "run",
            "--junit",
            pattern,
            "--fail-on-test-failures",
            "--artifact-glob",
            "out/*",
            "--shell",
            "--",
            script,
        ])
    };
    for (pattern, code, told) in [
        ("out/*.xml", 0, false),
        ("**/*.xml", 0, true),
        ("*/r.xml", 1, true),
    ] {
        let done = report(pattern);
        assert_eq!(done.code, code, "{pattern}: {}", done.err);
        let says = done
            .err
            .contains("test results incomplete: pg: Permission denied");
        assert_eq!(says, told, "{pattern}: {}", done.err);
        assert!(
            !done.err.contains("artifacts incomplete"),
            "{pattern}: {}",
            done.err
        );
        assert!(
            done.err.contains("artifact kind=artifact-glob"),
            "{pattern}: {}",
            done.err
        );
    }
}

#[test]
fn a_lease_that_somebody_else_gives_back_under_a_command_is_named() {
    let (place, sshd) = odd("");
    let errors = sshd.dir().join("errors");
    let began = sshd.dir().join("began");
    let script = format!("touch {}; sleep 300", began.display());
    let mut run = start(&place, &["run", "--no-sync", "--shell", "--", &script], &errors);
    eventually("the command runs", || began.exists());
    assert_eq!(place.run(&["stop", "127.0.0.1"]).code, 0);
    let code = run.wait().unwrap().code();
    let said = fs::read_to_string(&errors).unwrap();
    assert_eq!(code, Some(255), "{said}");
    assert!(
        said.contains(&format!("lease {ID} was released by another command")),
        "{said}"
    );
    assert!(!claimed(&place, ID));
}

#[test]
fn a_wait_for_the_tree_whose_connection_breaks_is_not_told_as_busy() {
    let (place, sshd) = odd("");
    let (holds, waits) = (sshd.dir().join("holds"), sshd.dir().join("waits"));
    let began = sshd.dir().join("began");
    let script = format!("touch {}; sleep 300", began.display());
    let mut first = start(&place, &["run", "--no-sync", "--shell", "--", &script], &holds);
    eventually("the first one runs", || began.exists());
    let mut second = start(&place, &["run", "--no-sync", "--", "true"], &waits);
    let words = || fs::read_to_string(&waits).unwrap_or_default();
    eventually("the second one waits", || {
        words().contains("waiting for reusable workspace owner")
    });
    sshd.kill_connections();
    let code = second.wait().unwrap().code();
    assert_eq!(code, Some(7), "{}", words());
    assert!(
        words().contains("cannot lock the workspace in the lease: the connection was lost"),
        "{}",
        words()
    );
    first.wait().unwrap();
}

#[test]
fn a_pending_connection_is_given_up_when_that_is_wanted() {
    let (place, mut sshd) = odd("");
    assert_eq!(place.run(&["warmup"]).code, 0);
    sshd.stop();
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, sshd.port())).unwrap();
    let errors = sshd.dir().join("errors");
    for words in [
        &["cp", "--id", ID, "tracked", "SANDBOX:/nowhere"][..],
        &["run", "--id", ID, "--no-sync", "--", "true"],
    ] {
        let mut command = start(&place, words, &errors);
        let (greeted, _) = mute.accept().unwrap();
        let began = Instant::now();
        kill_process(Pid::from_child(&command), Signal::TERM).unwrap();
        let code = command.wait().unwrap().code();
        assert_eq!(
            code,
            Some(130),
            "{words:?}: {}",
            fs::read_to_string(&errors).unwrap()
        );
        // Otherwise it would take thirty seconds: ssh tries three times for ten.
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{words:?}: {:?}",
            began.elapsed()
        );
        drop(greeted);
    }
}

#[test]
fn a_forward_that_the_host_forbids_is_refused_and_leaves_no_connection() {
    for config in ["AllowTcpForwarding no", "PermitOpen none"] {
        let (place, sshd) = odd(config);
        assert_eq!(place.run(&["warmup"]).code, 0);
        let added = place.run(&["ports", "--id", ID, "add", "web", "4242"]);
        assert_eq!(added.code, 5, "{config}: {}{}", added.out, added.err);
        assert!(
            added.err.contains("forbids to forward port 4242"),
            "{}",
            added.err
        );
        assert_eq!(place.run(&["ports", "--id", ID, "list"]).out, "");
        // Only the shared connection remains, not the one of the forwards.
        assert_eq!(sockets(&place), 1, "{config}");
        drop(sshd);
    }
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = service.local_addr().unwrap().port();
    let (place, _sshd) = odd(&format!("PermitOpen 127.0.0.1:{port}"));
    assert_eq!(place.run(&["warmup"]).code, 0);
    let added = place.run(&["ports", "--id", ID, "add", "web", &port.to_string()]);
    assert_eq!(added.code, 0, "{}", added.err);
}

fn sockets(place: &Place) -> usize {
    use std::os::unix::fs::FileTypeExt as _;
    let entries = fs::read_dir(place.path("run/crabbox")).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_socket())
        .count()
}

#[test]
fn a_forward_whose_service_is_not_there_says_so_and_finds_it_again() {
    let (place, _sshd) = odd("");
    assert_eq!(place.run(&["warmup"]).code, 0);
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = four.local_addr().unwrap().port();
    let add = || place.run(&["ports", "--id", ID, "add", "web", &port.to_string()]);
    let list = || place.run(&["ports", "--id", ID, "list"]);
    let added = add();
    assert_eq!((added.code, list().err.as_str()), (0, ""), "{}", added.err);
    let at = added
        .out
        .split_once("127.0.0.1:")
        .unwrap()
        .1
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let ask = || ask_at(at.parse().unwrap());
    drop(four);
    assert_eq!(ask(), "");
    // ssh writes the reason only after it has disconnected.
    eventually("why it was cut off is told", || {
        list()
            .err
            .contains("(1 since the last look): connect failed: Connection refused")
    });
    assert_eq!(list().err, "");
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        for stream in six.incoming() {
            std::io::Write::write_all(&mut stream.unwrap(), b"six").ok();
        }
    });
    let again = add();
    assert_eq!((again.code, again.out), (0, added.out), "{}", again.err);
    assert_eq!(ask(), "six");
}

fn ask_at(port: u16) -> String {
    let mut text = String::new();
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut text).ok();
    text
}

#[test]
fn a_variable_that_is_no_text_is_not_handed_on_and_that_is_told() {
    let (place, _sshd) = odd("");
    let script = "echo $OTHER[$LATIN]";
    let mut command = place.command(&[
        "run",
        "--no-sync",
        "--allow-env",
        "LATIN,OTHER",
        "--shell",
        "--",
        script,
    ]);
    let run = command
        .env("LATIN", OsStr::from_bytes(b"caf\xe9"))
        .env("OTHER", "o")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(
        (run.status.code(), &run.stdout[..]),
        (Some(0), &b"o[]\n"[..]),
        "{said}"
    );
    assert!(
        said.contains("warning: LATIN is not forwarded: its value is not valid UTF-8"),
        "{said}"
    );
    let long = place.env("LONG", "a".repeat(128 * 1024 - 20).as_str());
    let long = long.run(&[
        "run",
        "--no-sync",
        "--allow-env",
        "LONG",
        "--shell",
        "--",
        "echo ${#LONG}",
    ]);
    assert_eq!((long.code, long.out.as_str()), (0, "131052\n"), "{}", long.err);
}

#[test]
fn a_search_path_of_another_machine_is_the_command_s_and_not_its_shell_s() {
    let (place, _sshd) = odd("");
    // What this side needs, and no bash, as where it is not in /usr/bin.
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["ssh", "git", "ssh-keygen", "sh"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{program}"), bin.join(program)).unwrap();
    }
    let place = place.env("PATH", bin.to_str().unwrap());
    let flags = ["run", "--no-sync", "--allow-env", "PATH", "--"];
    let done = place.run(&[&flags[..], &["/usr/bin/printenv", "PATH"]].concat());
    let path = format!("{}\n", bin.display());
    assert_eq!((done.code, done.out), (0, path), "{}", done.err);
}
