//! `run` when nobody reads what its command prints.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use crabbox_host::clock::poll_until;

use crate::forged::{forged, with_agent};
use crate::place::{Answer, Place};
use crate::remote::Entered;
use crate::run::entered;
use crate::static_host::{ID, claimed, configure, connected, existing};

/// Longer than any of these commands goes on once it is to end.
const PATIENCE: Duration = Duration::from_secs(30);

const UNREAD: &str = "nobody reads the output any more; the command in the lease ";

fn words(script: &str) -> [&str; 7] {
    ["run", "--id", "jade-krill", "--no-sync", "--shell", "--", script]
}

/// The pid that the command has left in the file `pid` of its tree.
fn pid(lease: &Entered) -> String {
    let tree = lease.sshd.dir().join("work/cbx_0123456789ab/repo");
    fs::read_to_string(tree.join("pid")).unwrap().trim().to_owned()
}

/// The state of a process as proc_pid_stat(5) has it; `None` if it has ended, whether or not its parent knows.
fn state(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.to_owned()).filter(|rest| !rest.starts_with(['Z', 'X']))
}

/// Runs it with a standard output whose reader has gone before it starts.
fn run_unread(place: &Place, words: &[&str]) -> Answer {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.command(words);
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    // It held the writing end as well.
    drop(command);
    let status = poll_until(PATIENCE, || child.try_wait().unwrap());
    child.kill().ok();
    let err = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(status.is_some(), "it goes on: {err}");
    let code = status.and_then(|status| status.code()).unwrap();
    let out = String::new();
    Answer { code, out, err }
}

#[test]
fn a_command_whose_output_nobody_reads_is_stopped_there() {
    let lease = entered();
    // Both go on for long; the second one is slow, and does not end with its reader.
    for script in [
        "exec yes",
        "trap '' PIPE; for i in $(seq 600); do echo y; sleep 0.1; done",
    ] {
        for to in ["", " >&2"] {
            let script = format!("(echo $BASHPID > pid; {script}){to}");
            let mut command = lease.place.command(&words(&script));
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            let (read, other): (Box<dyn Read>, Box<dyn Read>) = match to {
                "" => (Box::new(out), Box::new(err)),
                _ => (Box::new(err), Box::new(out)),
            };
            let began = BufReader::new(read).lines().any(|line| line.unwrap() == "y");
            // The reader has gone with it. The other stream is short, so nobody waits for us to read it.
            let status = poll_until(PATIENCE, || child.try_wait().unwrap());
            child.kill().ok();
            let rest = std::io::read_to_string(other).unwrap();
            assert!(began, "{script}");
            assert_eq!(status.expect("it ends").code(), Some(141), "{script}: {rest}");
            let told = rest.contains(&format!("{UNREAD}was stopped"));
            assert_eq!(told, to.is_empty(), "{rest}");
            assert_eq!(state(&pid(&lease)), None, "{script}: it goes on");
            assert_eq!(lease.script(&[], "true").code, 0);
        }
    }
}

/// Prints a line and answers the request to stop with the bytes produced by the file `answer` in its home.
const ASKED_TO_STOP: &str = r#"
while True:
    tag = hear()
    if tag == OWN: own()
    elif tag == RELEASE: say(68)
    elif tag == MAKE: say(84)
    elif tag == RUN:
        say(2, b"one\n")
        open(home + "/asked", "a").write(str(hear()) + " ")
        sys.stdout.buffer.write(eval(open(home + "/answer").read()))
        sys.stdout.buffer.flush()
"#;

#[test]
fn a_command_that_has_ended_by_itself_before_it_is_stopped_keeps_its_code() {
    let lease = with_agent(&forged(ASKED_TO_STOP));
    for (answer, code, says) in [
        (r#"frame(79, struct.pack(">I", 0), b"\1")"#, 0, ""),
        (
            r#"frame(79, struct.pack(">I", 3), b"\1")"#,
            3,
            "remote command exited 3",
        ),
        (r#"frame(81, b"\1")"#, 141, "was stopped"),
        (r#"frame(81, b"\0")"#, 141, "may still run"),
    ] {
        fs::write(lease.sshd.home().join("answer"), answer).unwrap();
        let done = run_unread(&lease.place, &words("true"));
        assert_eq!(done.code, code, "{answer}: {}", done.err);
        assert!(done.err.contains(says), "{answer}: {}", done.err);
        let told = done.err.contains(UNREAD);
        assert_eq!(told, code == 141, "{answer}: {}", done.err);
    }
    // Each of them was asked once, by the request that stops a command.
    let asked = fs::read_to_string(lease.sshd.home().join("asked")).unwrap();
    assert_eq!(asked, "30 30 30 30 ");
}

#[test]
fn a_lease_of_a_run_that_nobody_reads_is_given_back_without_its_command() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let noted = sshd.dir().join("pid");
    let script = format!("echo $$ > {}; exec yes", noted.display());
    let done = run_unread(&place, &["run", "--shell", "--", &script]);
    assert_eq!(done.code, 141, "{}", done.err);
    assert!(done.err.contains(&format!("{UNREAD}was stopped")), "{}", done.err);
    let pid = fs::read_to_string(&noted).unwrap();
    assert_eq!(state(pid.trim()), None, "it goes on");
    assert!(!claimed(&place, ID) && !connected(&place), "{}", done.err);
}

#[test]
fn an_interrupt_that_also_ends_the_reader_is_an_interrupt() {
    let lease = entered();
    let mut command = lease.place.command(&words("exec yes"));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 2]).unwrap();
    // As a terminal's Ctrl-C does to all of a pipeline.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    drop(out);
    let status = poll_until(PATIENCE, || child.try_wait().unwrap());
    child.kill().ok();
    assert_eq!(status.and_then(|status| status.code()), Some(130));
}
