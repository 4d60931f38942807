//! The tree's lock shared with the Go program: this client with that program's files, and this client's files
//! as that program reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use rustix::fs::FlockOperation;

use crate::remote::Entered;
use crate::run::entered;

/// The SHA-256 of `crabbox-workspace-owner-v1`, NUL and `cbx_0123456789ab`: the Go program's file name.
fn key() -> String {
    crabbox_host::digest::sha256(b"crabbox-workspace-owner-v1\0cbx_0123456789ab")
}

/// The Go program's lock files of a lease.
struct Files(PathBuf);

impl Files {
    fn of(lease: &Entered) -> Self {
        let dir = lease.sshd.home().join(".crabbox/workspace-owners");
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn named(&self, end: &str) -> PathBuf {
        self.0.join(key()).with_added_extension(end)
    }

    fn owned_until(&self, second: u64) {
        let token = "0123456789abcdef".repeat(4);
        fs::write(self.named("owner"), format!("v1\n{token}\n{second}\n")).unwrap();
    }

    /// What the Go program would find if it asked for the tree now, in its protocol's words.
    fn asked_by_go(&self) -> &'static str {
        let gate = fs::File::options()
            .create(true)
            .append(true)
            .open(self.named("gate"))
            .unwrap();
        if rustix::fs::flock(&gate, FlockOperation::NonBlockingLockExclusive).is_err() {
            return "BUSY";
        }
        let Ok(owner) = fs::read_to_string(self.named("owner")) else {
            return "ACQUIRED";
        };
        let line = |text: &str, number| text.lines().nth(number).unwrap_or_default().to_owned();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (token, until) = (line(&owner, 1), line(&owner, 2));
        let is_token = token.len() == 64 && !token.contains(|c: char| !matches!(c, '0'..='9' | 'a'..='f'));
        if line(&owner, 0) != "v1" || !is_token || !is_number(&until) {
            return "AMBIGUOUS";
        }
        if until.parse::<u64>().unwrap() > now() {
            return "BUSY";
        }
        let Ok(child) = fs::read_to_string(self.named("child")) else {
            return "RECOVERED";
        };
        let (pid, named) = (line(&child, 0), line(&child, 1));
        if !is_number(&pid) || named.is_empty() || named.len() > 96 {
            return "AMBIGUOUS";
        }
        if !Path::new("/proc").join(&pid).exists() {
            return "RECOVERED";
        }
        match began(&pid) {
            words if words.is_empty() => "AMBIGUOUS",
            words if words == named => "CHILD",
            _ => "RECOVERED",
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The start time of a process, in the Go program's format.
fn began(pid: &str) -> String {
    let said = Cmd::new("ps").args(["-o", "lstart=", "-p", pid]).run();
    let said = said.map(|said| said.stdout_text()).unwrap_or_default();
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_living_owner_and_command_of_the_go_program_are_waited_for_and_the_dead_recovered() {
    let lease = entered();
    let files = Files::of(&lease);
    let run = |script: &str| {
        let done = lease.script(&[], script);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(
            done.err.contains("workspace owner acquired wait=") && done.err.contains(" recovered=true\n"),
            "{}",
            done.err
        );
        done.out
    };
    // A client that could still renew its lock, and goes away.
    let until = now() + 2;
    files.owned_until(until);
    let ran: u64 = run("date +%s").trim().parse().unwrap();
    assert!(ran >= until, "{ran} {until}");
    // A client that is gone, and its command too.
    let mut command = Cmd::new("true").to_std().spawn().unwrap();
    command.wait().unwrap();
    files.owned_until(until);
    fs::write(
        files.named("child"),
        format!("{}\nSun Nov 29 12:00:00 2026\n", command.id()),
    )
    .unwrap();
    run("true");
    assert!(!files.named("owner").exists() && !files.named("child").exists());
    // A client that is gone while its command still runs.
    let ended = lease.place.path("outside/ended");
    let script = format!("sleep 1; touch {}", ended.display());
    let mut command = Cmd::new("sh").args(["-c", &script]).to_std().spawn().unwrap();
    let pid = command.id().to_string();
    files.owned_until(until);
    fs::write(files.named("child"), format!("{pid}\n{}\n", began(&pid))).unwrap();
    assert_eq!(files.asked_by_go(), "CHILD");
    let reaped = std::thread::spawn(move || command.wait());
    run(&format!("test -e {}", ended.display()));
    reaped.join().unwrap().unwrap();
    assert_eq!(files.asked_by_go(), "ACQUIRED");
}

#[test]
fn what_a_killed_client_leaves_the_go_program_takes_over() {
    let lease = entered();
    let files = Files::of(&lease);
    let begun = lease.place.path("outside/begun");
    let script = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600",
        begun.display()
    );
    let words = ["run", "--id", "jade-krill", "--no-sync", "--shell", "--", &script];
    let mut client = lease.place.start(&words);
    let pid = poll_until(Duration::from_mins(1), || fs::read_to_string(&begun).ok());
    let (while_it_runs, child) = (files.asked_by_go(), fs::read_to_string(files.named("child")));
    client.kill().unwrap();
    client.wait().unwrap();
    let pid = pid.expect("the command does not begin");
    assert_eq!(while_it_runs, "BUSY");
    let child = child.unwrap();
    assert!(child.starts_with(&pid) && child.lines().count() == 3, "{child:?}");
    let recovered = || (files.asked_by_go() == "RECOVERED").then_some(());
    assert!(
        poll_until(Duration::from_mins(1), recovered).is_some(),
        "{}",
        files.asked_by_go()
    );
    let owner = fs::read_to_string(files.named("owner")).unwrap();
    let token = owner
        .strip_prefix("v1\n")
        .and_then(|rest| rest.strip_suffix("\n0\n"));
    assert!(
        token.is_some_and(|token| token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit())),
        "{owner:?}"
    );
    assert!(!files.named("child").exists(), "its command was ended");
    // It may still be a zombie waiting to be reaped.
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    assert!(stat.map_or(true, |stat| stat.contains(") Z ")), "it still runs");
}
