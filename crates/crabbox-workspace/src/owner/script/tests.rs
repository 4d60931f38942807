//! The scripts as a guest runs them, against the files of the Go program: each must see who is in the tree, and recover when the other
//! has died. What the Go program decides is written here anew, from the format of its files.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use crabbox_host::clock::{poll_until, unix_seconds};
use crabbox_host::command::Cmd;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const LONG: Duration = Duration::from_mins(1);

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(home.file("")).unwrap();
        home
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(".crabbox/workspace-owners").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// The lines of a file, none where it is not there.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn sh(&self, script: &str) -> Cmd {
        Cmd::new("sh").args(["-c", script]).env("HOME", self.0.path())
    }

    fn session(&self) -> Session {
        let mut command = self.sh(&super::session("k", TOKEN)).to_std();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.sh("").spawn(&mut command).unwrap();
        Session {
            words: child.stdin.take(),
            said: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// A command in a group of its own that has noted itself and goes on until it is killed.
    fn command(&self) -> Running {
        let script = format!("{}\nexec sleep 600", super::mark("k"));
        let cmd = Cmd::new("setsid")
            .args(["sh", "-c", &script])
            .env("HOME", self.0.path());
        let mut command = cmd.to_std();
        let running = Running(
            cmd.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))
                .unwrap(),
        );
        let noted = || (self.lines("k.child").len() == 3).then_some(());
        poll_until(LONG, noted).expect("the command is not noted");
        running
    }

    /// What the Go program makes of what it finds, when it wants the tree.
    fn asked_by_go(&self) -> &'static str {
        let gate = Cmd::new("flock").args(["-x", "-w", "0"]).arg(self.file("k.gate"));
        if !gate.arg("true").capture().unwrap().status.success() {
            return "BUSY";
        }
        let owner = self.lines("k.owner");
        if owner.is_empty() {
            return if self.file("k.owner").exists() {
                "AMBIGUOUS"
            } else {
                "ACQUIRED"
            };
        }
        let hex = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let Some(Ok(expires)) = owner.get(2).map(|text| text.parse::<i64>()) else {
            return "AMBIGUOUS";
        };
        if owner[0] != "v1" || owner[1].len() != 64 || !hex(&owner[1]) {
            return "AMBIGUOUS";
        }
        if expires > unix_seconds() {
            return "BUSY";
        }
        let child = self.lines("k.child");
        if !self.file("k.child").exists() {
            return "RECOVERED";
        }
        let Some(Ok(pid)) = child.first().map(|text| text.parse::<u32>()) else {
            return "AMBIGUOUS";
        };
        let Some(began) = child.get(1).filter(|text| !text.is_empty() && text.len() <= 96) else {
            return "AMBIGUOUS";
        };
        match began_in_words_of_ps(pid) {
            Some(now) if now == *began => "CHILD",
            _ => "RECOVERED",
        }
    }
}

fn began_in_words_of_ps(pid: u32) -> Option<String> {
    let ps = Cmd::new("ps").args(["-o", "lstart=", "-p", &pid.to_string()]);
    let text = ps.capture().unwrap().stdout_text();
    let words: Vec<&str> = text.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

struct Session {
    words: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    child: Child,
}

impl Session {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    /// Has the command noted in the words of the Go program.
    fn name(&mut self, home: &Home) {
        let before = fs::metadata(home.file("k.child")).unwrap().modified().unwrap();
        self.words.as_mut().unwrap().write_all(b"name\n").unwrap();
        let named = || (!home.lines("k.child")[1].is_empty()).then_some(());
        poll_until(LONG, named).expect("the command has no name");
        assert_eq!(
            fs::metadata(home.file("k.child")).unwrap().modified().unwrap(),
            before
        );
    }

    fn release(mut self) {
        self.words.take().unwrap().write_all(b"release\n").unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// The end of its input, as when its client is killed.
    fn abandon(mut self) {
        drop(self.words.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// The death of the session itself.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A process group that ends with the test.
struct Running(Child);

impl Running {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            kill_process_group(Pid::from_child(&self.0), Signal::KILL).ok();
            self.0.wait().ok();
        }
    }
}

#[test]
fn the_go_program_waits_for_a_session_of_ours_and_recovers_after_any_death() {
    let home = Home::new();
    let mut session = home.session();
    assert_eq!(session.line(), "acquired false\n");
    assert_eq!(home.asked_by_go(), "BUSY");
    session.release();
    assert_eq!(home.asked_by_go(), "ACQUIRED");

    // The client is killed: its command ends with it.
    let mut session = home.session();
    assert_eq!(session.line(), "acquired false\n");
    let mut running = home.command();
    session.abandon();
    assert!(poll_until(LONG, || running.has_ended().then_some(())).is_some());
    assert_eq!(home.asked_by_go(), "RECOVERED");

    // The session itself is killed, and nobody has ended the command.
    let mut session = home.session();
    assert_eq!(session.line(), "acquired true\n");
    let running = home.command();
    session.name(&home);
    session.kill();
    assert_eq!(home.asked_by_go(), "CHILD");
    drop(running);
    assert_eq!(home.asked_by_go(), "RECOVERED");
}

#[test]
fn a_tree_that_the_go_program_owns_is_waited_for_until_it_is_given_back() {
    let home = Home::new();
    let owner = format!("v1\n{TOKEN}\n{}\n", unix_seconds() + 3600);
    home.write("k.owner", &owner);
    let mut session = home.session();
    assert_eq!(session.line(), "busy\n");
    // It renews under the gate, for which it waits five seconds at most.
    let gate = Cmd::new("flock")
        .args(["-x", "-w", "30"])
        .arg(home.file("k.gate"));
    gate.arg("true").run().unwrap();
    assert_eq!(home.lines("k.owner").join("\n") + "\n", owner);
    fs::remove_file(home.file("k.owner")).unwrap();
    assert_eq!(session.line(), "acquired false\n");
    session.release();
}

#[test]
fn what_a_dead_go_program_left_is_taken_over_when_its_command_has_ended() {
    let home = Home::new();
    let sleep = Cmd::new("setsid").args(["sleep", "600"]);
    let mut running = Running(sleep.spawn(&mut sleep.to_std()).unwrap());
    let pid = running.0.id();
    let began = began_in_words_of_ps(pid).unwrap();
    home.write("k.owner", &format!("v1\n{TOKEN}\n{}\n", unix_seconds() - 1));
    home.write("k.child", &format!("{pid}\n{began}\n"));
    let mut session = home.session();
    assert_eq!(session.line(), "child\n");
    assert!(!running.has_ended(), "another program's command is not ended");
    kill_process(Pid::from_child(&running.0), Signal::KILL).unwrap();
    running.0.wait().unwrap();
    assert_eq!(session.line(), "acquired true\n");
    session.release();
}

#[test]
fn a_command_that_has_ended_and_that_nobody_reaps_holds_nobody() {
    let home = Home::new();
    let running = home.command();
    let pid = running.0.id();
    let began = began_in_words_of_ps(pid).unwrap();
    // It stays a zombie until the end of this test, as in a container whose first process reaps nobody.
    kill_process(Pid::from_child(&running.0), Signal::KILL).unwrap();
    let is_zombie = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    };
    poll_until(LONG, is_zombie).expect("it ends");
    let mut session = home.session();
    assert_eq!(session.line(), "acquired false\n");
    session.release();
    // The same as the Go program notes it.
    home.write("k.child", &format!("{pid}\n{began}\n"));
    let mut session = home.session();
    assert_eq!(session.line(), "acquired false\n");
    session.release();
}

#[test]
fn an_owner_that_nobody_can_renew_is_taken_over() {
    let late = unix_seconds() + 3600;
    for owner in [
        "v1\n".to_owned(),
        String::new(),
        format!("v1\n{TOKEN}\n"),
        format!("v1\n{TOKEN}\n0\n"),
        format!("v1\n{TOKEN}\nsoon\n"),
        format!("v1\nabc\n{late}\n"),
    ] {
        let home = Home::new();
        home.write("k.owner", &owner);
        // A number that another process has by now.
        home.write(
            "k.child",
            &format!("{}\nThu Jan 1 00:00:00 1970\n", std::process::id()),
        );
        let mut session = home.session();
        assert_eq!(session.line(), "acquired true\n", "{owner:?}");
        session.release();
    }
}

#[test]
fn a_command_that_an_older_client_noted_is_still_one() {
    let home = Home::new();
    let running = home.command();
    let lines = home.lines("k.child");
    home.write("k.child", &format!("{} {}\n", lines[0], lines[2]));
    let mut session = home.session();
    assert_eq!(session.line(), "child\n");
    drop(running);
    assert_eq!(session.line(), "acquired false\n");
    session.release();
}

#[test]
fn a_session_that_named_a_command_ends_as_any_other() {
    let home = Home::new();
    let mut session = home.session();
    assert_eq!(session.line(), "acquired false\n");
    let mut running = home.command();
    session.name(&home);
    session.abandon();
    assert!(poll_until(LONG, || running.has_ended().then_some(())).is_some());
    // There is nothing to name any more.
    let mut session = home.session();
    assert_eq!(session.line(), "acquired true\n");
    session.words.as_mut().unwrap().write_all(b"name\n").unwrap();
    session.release();
    assert!(!home.file("k.child").exists());
}

#[test]
fn a_command_is_noted_with_its_own_number_or_refused() {
    let home = Home::new();
    let script = super::mark("k") + "\necho $$";
    let ran = home.sh(&script).run().unwrap();
    let noted = home.lines("k.child");
    assert_eq!(noted[0], ran.stdout_text().trim());
    // In a process namespace of its own, with the /proc of this one.
    let elsewhere = Cmd::new("unshare")
        .args(["--pid", "--fork", "sh", "-c", &script])
        .env("HOME", home.0.path());
    let refused = elsewhere.capture().unwrap();
    assert_eq!(refused.status.code(), Some(74));
    assert!(
        refused.stderr_text().contains("/proc in the lease"),
        "{refused:?}"
    );
}
