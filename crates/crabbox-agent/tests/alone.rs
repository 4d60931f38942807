//! The agent as a program, spoken to by hand: what no client of ours says, and what becomes of a command whose agent or client goes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Command, Frame, Frames, HELLO, Reply, Request, Stream};

/// A conversation.
struct Agent {
    process: Child,
    input: Option<ChildStdin>,
    frames: Frames<BufReader<ChildStdout>>,
}

impl Agent {
    fn start(home: &Path, around: &[&str]) -> Self {
        let agent = env!("CARGO_BIN_EXE_crabbox-agent");
        let words: Vec<&str> = around.iter().copied().chain([agent]).collect();
        let mut process = Program::new(words[0])
            .args(&words[1..])
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = process.stdin.take();
        let frames = Frames::new(BufReader::new(process.stdout.take().unwrap()));
        let mut agent = Self {
            process,
            input,
            frames,
        };
        assert!(matches!(agent.reply(), Reply::Hello { word: HELLO, .. }));
        agent
    }

    fn owning(home: &Path) -> Self {
        let mut agent = Self::start(home, &[]);
        agent.own();
        agent
    }

    fn own(&mut self) {
        self.say(&Request::Own {
            key: "ab".repeat(32),
            token: "cd".repeat(32),
        });
    }

    fn say(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        request.frame(&mut bytes);
        self.input.as_mut().unwrap().write_all(&bytes).unwrap();
    }

    fn run(&mut self, words: &[&str]) {
        let command = Command {
            workdir: "/".to_owned(),
            words: words.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            tells: String::new(),
            input: false,
            noted: true,
        };
        self.say(&Request::Run { command });
    }

    /// The next answer; what the command says is passed over.
    fn reply(&mut self) -> Reply {
        loop {
            match self.frames.frame().unwrap().expect("the agent has gone") {
                Frame::Message(tag, payload) => return Reply::take(tag, payload).unwrap(),
                Frame::Bytes(..) => {}
            }
        }
    }

    /// The number that the command prints first.
    fn number(&mut self) -> u32 {
        match self.frames.frame().unwrap() {
            Some(Frame::Bytes(Stream::Out, bytes)) => String::from_utf8_lossy(bytes)
                .lines()
                .next()
                .unwrap()
                .parse()
                .unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.input = None;
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether a process that would compute without an end does not: every pipe on its way is full.
fn stands_still(pid: u32) -> bool {
    // The 14th and 15th field of proc_pid_stat(5), the third being the first behind the name.
    let computed = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let words = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        words.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = computed();
    // Ten ticks, of which it would have most.
    std::thread::sleep(Duration::from_millis(100));
    computed() == before
}

fn within(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn a_command_is_not_started_where_nobody_could_see_it() {
    let home = tempfile::tempdir().unwrap();
    // Another process namespace, with the /proc of this one: needs root.
    let mut agent = Agent::start(home.path(), &["unshare", "--pid", "--fork", "--kill-child"]);
    agent.own();
    assert_eq!(agent.reply(), Reply::Owned { recovered: false });
    agent.run(&["touch", home.path().join("ran").to_str().unwrap()]);
    let Reply::Unstarted { why, absent: false } = agent.reply() else {
        panic!("it was started")
    };
    assert!(
        why.contains("/proc in the lease does not show the command"),
        "{why}"
    );
    assert!(!home.path().join("ran").exists());
}

#[test]
fn a_client_that_does_not_listen_is_heard() {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::owning(home.path());
    assert_eq!(agent.reply(), Reply::Owned { recovered: false });
    agent.run(&["sh", "-c", "echo $$; exec yes"]);
    let pid = agent.number();
    assert!(
        within(Duration::from_secs(5), || stands_still(pid)),
        "nothing holds it up"
    );
    agent.say(&Request::Stop {});
    assert!(within(Duration::from_secs(5), || !is_alive(pid)), "it goes on");
    assert_eq!(agent.reply(), Reply::Stopped { gone: true });
    // And one that goes instead.
    agent.run(&["sh", "-c", "echo $$; exec yes"]);
    let pid = agent.number();
    assert!(
        within(Duration::from_secs(5), || stands_still(pid)),
        "nothing holds it up"
    );
    agent.input = None;
    assert!(within(Duration::from_secs(5), || !is_alive(pid)), "it goes on");
}

#[test]
fn a_command_whose_agent_was_killed_ends_before_the_next_client_has_the_tree() {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::owning(home.path());
    assert_eq!(agent.reply(), Reply::Owned { recovered: false });
    // It leaves a word where it comes to its own end.
    let ended = home.path().join("ended");
    agent.run(&[
        "sh",
        "-c",
        &format!("echo $$; sleep 20; touch {}", ended.display()),
    ]);
    let pid = agent.number();
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    assert!(is_alive(pid), "nobody could end it");
    let mut next = Agent::owning(home.path());
    assert_eq!(next.reply(), Reply::Child {});
    assert_eq!(next.reply(), Reply::Owned { recovered: true });
    assert!(!is_alive(pid) && !ended.exists(), "it was waited for, not ended");
    // A command that cannot be started leaves no note that somebody could be waited for by.
    next.run(&["/no/such/program"]);
    assert!(matches!(next.reply(), Reply::Unstarted { absent: true, .. }));
    let notes = std::fs::read_dir(home.path().join(".crabbox/workspace-owners")).unwrap();
    let is_child = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().ends_with(".child");
    assert!(!notes.flatten().any(is_child));
}

#[test]
fn what_is_no_message_ends_the_conversation_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    for bytes in [&[1, 0x40, 0, 0, 0][..], &[250, 0, 0, 0, 0]] {
        let mut agent = Agent::start(home.path(), &[]);
        agent.input.as_mut().unwrap().write_all(bytes).unwrap();
        let status = agent.process.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{bytes:?}");
    }
}
