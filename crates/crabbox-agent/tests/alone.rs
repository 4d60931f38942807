//! Tests of the agent as a program, with requests that no real client sends, and of what becomes of a command
//! whose agent or client goes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::fs;
use std::io::{BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Command, Frame, Frames, HELLO, Reply, Request, Stream, put, put_bytes};

mod listing;
mod memory;
mod naming;
mod syncing;

/// The command line of the agent: the one built with these tests, or the words in `CRABBOX_TESTED_AGENT`,
/// such as an emulator and an agent for another architecture. The last word is the agent.
fn program() -> Vec<String> {
    let built = || env!("CARGO_BIN_EXE_crabbox-agent").to_owned();
    let words = std::env::var("CRABBOX_TESTED_AGENT").unwrap_or_else(|_| built());
    words.split(' ').map(str::to_owned).collect()
}

/// A conversation with an agent.
struct Agent {
    process: Child,
    input: Option<ChildStdin>,
    frames: Frames<BufReader<ChildStdout>>,
}

impl Agent {
    fn start(home: &Path, around: &[&str]) -> Self {
        Self::start_program(home, around, &program())
    }

    fn start_program(home: &Path, around: &[&str], program: &[String]) -> Self {
        let agent = program.iter().map(String::as_str);
        let words: Vec<&str> = around.iter().copied().chain(agent).collect();
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
            make: None,
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

    /// The next reply; output of a command is skipped.
    fn reply(&mut self) -> Reply {
        loop {
            match self.frames.frame().unwrap().expect("the agent has gone") {
                Frame::Message(tag, payload) => return Reply::take(tag, payload).unwrap(),
                Frame::Bytes(..) => {}
            }
        }
    }

    /// A whole list, or the reason why there is none.
    fn list(&mut self) -> Result<Vec<u8>, String> {
        let mut list = Vec::new();
        loop {
            match self.frames.frame().unwrap().expect("the agent has gone") {
                Frame::Bytes(Stream::Data, bytes) => list.extend_from_slice(bytes),
                Frame::Message(tag, payload) => match Reply::take(tag, payload).unwrap() {
                    Reply::End {} => return Ok(list),
                    Reply::Failed { why } => return Err(why),
                    other => panic!("{other:?}"),
                },
                other @ Frame::Bytes(..) => panic!("{other:?}"),
            }
        }
    }

    fn tree(&mut self, path: &Path, follow: bool) -> Result<Vec<String>, String> {
        self.say(&Request::Tree {
            path: path.to_str().unwrap().to_owned(),
            follow,
        });
        let list = String::from_utf8(self.list()?).unwrap();
        let mut records: Vec<String> = list.split_terminator('\0').map(str::to_owned).collect();
        records[1..].sort();
        Ok(records)
    }

    fn piece(&mut self, bytes: &[u8]) {
        let mut frame = Vec::new();
        put_bytes(&mut frame, Stream::Data, bytes);
        self.input.as_mut().unwrap().write_all(&frame).unwrap();
    }

    /// Begins a copy of a directory that has a file with this text and another file in a subdirectory.
    fn begin_copy(&mut self, to: &str, make: bool, text: &str) {
        self.say(&Request::Put {
            to: to.to_owned(),
            name: "name".to_owned(),
            make,
        });
        self.piece(b"c/f\0c/d/g\0c/l\0");
        self.say(&Request::End {});
        let directory = |path: &[u8], mode| Request::Directory {
            path: path.to_vec(),
            mode,
            seconds: Some(1_000_000),
        };
        let file = |number, mode| Request::File {
            number,
            mode,
            seconds: 2_000_000,
            nanoseconds: 5,
        };
        self.say(&directory(b"c", 0o555));
        self.say(&file(0, 0o640));
        self.piece(text.as_bytes());
        self.say(&Request::Hole { bytes: 4 });
        self.say(&directory(b"c/d", 0o755));
        self.say(&file(1, 0o711));
        self.say(&Request::Link {
            number: 2,
            seconds: 3_000_000,
            nanoseconds: 0,
            target: b"f".to_vec(),
        });
    }

    fn copy(&mut self, to: &str, make: bool, text: &str) -> Reply {
        self.begin_copy(to, make, text);
        self.say(&Request::Received {});
        self.reply()
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

/// Whether a process that would otherwise use CPU without end is blocked because every pipe is full.
fn stands_still(pid: u32) -> bool {
    // The 14th and 15th field of proc_pid_stat(5), the third being the first behind the name.
    let computed = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let words = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        words.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = computed();
    // Ten ticks, most of which a running process would get.
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
    // Another pid namespace that has the /proc of this one: needs root.
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
    // A client that goes instead of stopping the command.
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
fn a_client_that_says_only_that_it_is_there_says_it_anywhere() {
    let home = tempfile::tempdir().unwrap();
    let mut first = Agent::owning(home.path());
    let ping = |agent: &mut Agent| agent.say(&Request::Ping {});
    ping(&mut first);
    assert_eq!(first.reply(), Reply::Owned { recovered: false });
    // While waiting for the tree, which is announced to the owner of the tree.
    let mut second = Agent::owning(home.path());
    assert_eq!(second.reply(), Reply::Busy {});
    let wanted = home
        .path()
        .join(format!(".crabbox/workspace-owners/{}.wanted", "ab".repeat(32)));
    assert!(within(Duration::from_secs(5), || wanted.exists()));
    ping(&mut second);
    // During a command, twice in a row.
    first.run(&["sh", "-c", "echo $$; exec sleep 20"]);
    let pid = first.number();
    ping(&mut first);
    ping(&mut first);
    first.say(&Request::Stop {});
    ping(&mut first);
    assert_eq!(first.reply(), Reply::Stopped { gone: true });
    assert!(!is_alive(pid));
    // Within a list, and within a file.
    first.begin_copy("~/to", false, "text");
    ping(&mut first);
    first.say(&Request::Received {});
    assert_eq!(first.reply(), Reply::Received {});
    first.say(&Request::Release {});
    ping(&mut first);
    assert_eq!(first.reply(), Reply::Released {});
    assert_eq!(second.reply(), Reply::Owned { recovered: false });
    assert!(!wanted.exists());
}

#[test]
fn a_command_whose_agent_was_killed_ends_before_the_next_client_has_the_tree() {
    let home = tempfile::tempdir().unwrap();
    let mut agent = Agent::owning(home.path());
    assert_eq!(agent.reply(), Reply::Owned { recovered: false });
    // The command leaves a file if it runs to its end.
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
    // A command that cannot be started leaves no note that a client would wait for.
    next.run(&["/no/such/program"]);
    assert!(matches!(next.reply(), Reply::Unstarted { absent: true, .. }));
    let notes = std::fs::read_dir(home.path().join(".crabbox/workspace-owners")).unwrap();
    let is_child = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().ends_with(".child");
    assert!(!notes.flatten().any(is_child));
}

/// The start time of a process as ps prints it, with single spaces.
fn lstart(pid: u32, zone: Option<&str>) -> String {
    let mut ps = Program::new("ps");
    ps.args(["-o", "lstart=", "-p", &pid.to_string()]);
    if let Some(zone) = zone {
        ps.env("TZ", zone);
    }
    let said = String::from_utf8(ps.output().unwrap().stdout).unwrap();
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_a_killed_agent_leaves_the_go_program_can_read() {
    let home = tempfile::tempdir().unwrap();
    let file = |end: &str| {
        let key = home
            .path()
            .join(".crabbox/workspace-owners")
            .join("ab".repeat(32));
        fs::read_to_string(key.with_added_extension(end)).unwrap()
    };
    let mut agent = Agent::owning(home.path());
    assert_eq!(agent.reply(), Reply::Owned { recovered: false });
    agent.run(&["sh", "-c", "echo $$; exec sleep 20"]);
    let pid = agent.number();
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    // The owner file is expired, so the Go program does not wait for it.
    assert_eq!(file("owner"), format!("v1\n{}\n0\n", "cd".repeat(32)));
    // From the first moment the text is that of ps, which tells the Go program that the command still runs.
    let named = |pid: u32| {
        let child = file("child");
        let mut lines = child.lines();
        assert_eq!(lines.next(), Some(pid.to_string().as_str()), "{child:?}");
        lines.next().unwrap().to_owned()
    };
    assert_eq!(named(pid), lstart(pid, None), "{:?}", file("child"));
    // Also in another time zone, whichever way it is named.
    for zone in [
        "",
        "Asia/Kathmandu",
        ":Asia/Kathmandu",
        "XXX-3:17",
        "/etc/localtime",
        "none",
    ] {
        let mut agent = Agent::start(home.path(), &["env", &format!("TZ={zone}")]);
        agent.own();
        assert_eq!(agent.reply(), Reply::Child {});
        assert_eq!(agent.reply(), Reply::Owned { recovered: true });
        agent.run(&["sh", "-c", "echo $$; exec sleep 20"]);
        let pid = agent.number();
        assert_eq!(named(pid), lstart(pid, Some(zone)), "{zone:?}");
        agent.process.kill().unwrap();
        agent.process.wait().unwrap();
    }
    // After a second ps itself has been asked, and a text that differs is corrected.
    let mut agent = Agent::owning(home.path());
    assert_eq!(agent.reply(), Reply::Child {});
    assert_eq!(agent.reply(), Reply::Owned { recovered: true });
    agent.run(&["sh", "-c", "echo $$; exec sleep 20"]);
    let pid = agent.number();
    let key = home
        .path()
        .join(".crabbox/workspace-owners")
        .join("ab".repeat(32));
    let wrong = file("child").replace(&lstart(pid, None), "Thu Jan 1 00:00:00 1970");
    fs::write(key.with_added_extension("child"), wrong).unwrap();
    assert!(
        within(Duration::from_secs(10), || named(pid) == lstart(pid, None)),
        "{:?}",
        file("child")
    );
    agent.say(&Request::Stop {});
    assert_eq!(agent.reply(), Reply::Stopped { gone: true });
}

#[test]
fn what_is_no_message_ends_the_conversation_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut unknown = Vec::new();
    put(&mut unknown, 250, |_| {});
    // An unknown message, one that is too long, and something that is not a frame.
    let mut long = unknown.clone();
    long[5] = 0x40;
    for bytes in [unknown, long, b"GET / HTTP/1.0\r\n".to_vec()] {
        let mut agent = Agent::start(home.path(), &[]);
        agent.input.as_mut().unwrap().write_all(&bytes).unwrap();
        let status = agent.process.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{bytes:?}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A home directory for copies, and an agent that runs there.
fn copying() -> (tempfile::TempDir, Agent) {
    let home = tempfile::tempdir().unwrap();
    let agent = Agent::start(home.path(), &[]);
    (home, agent)
}

#[test]
fn a_copy_has_its_modes_and_times_and_is_merged_into_what_is_there() {
    let (home, mut agent) = copying();
    let at = |name: &str| home.path().join(name);
    assert_eq!(agent.copy("~/to", false, "text"), Reply::Received {});
    let look = |name: &str| {
        let meta = at(name).symlink_metadata().unwrap();
        (meta.mode() & 0o7777, meta.mtime())
    };
    assert_eq!(
        (look("to"), look("to/d")),
        ((0o555, 1_000_000), (0o755, 1_000_000))
    );
    assert_eq!(
        (look("to/f"), look("to/d/g")),
        ((0o640, 2_000_000), (0o711, 2_000_000))
    );
    assert_eq!(look("to/l").1, 3_000_000);
    assert_eq!(at("to/f").metadata().unwrap().mtime_nsec(), 5);
    assert_eq!(fs::read(at("to/f")).unwrap(), b"text\0\0\0\0");
    assert_eq!(fs::read_link(at("to/l")).unwrap(), Path::new("f"));
    // Into an existing directory it goes under its own name; other files there stay.
    fs::create_dir_all(at("in/name/d")).unwrap();
    fs::write(at("in/name/d/own"), "own").unwrap();
    fs::write(at("in/name/l"), "gives way").unwrap();
    let path = at("in").to_str().unwrap().to_owned();
    assert_eq!(agent.copy(&path, false, "new"), Reply::Received {});
    assert_eq!(names(&at("in/name")), ["d", "f", "l"]);
    assert_eq!(names(&at("in/name/d")), ["g", "own"]);
    assert_eq!(
        (look("in/name"), look("in/name/l").1),
        ((0o555, 1_000_000), 3_000_000)
    );
    // A trailing slash creates the directory and its parents.
    let path = at("made/deep/").to_str().unwrap().to_owned();
    assert_eq!(agent.copy(&path, true, "new"), Reply::Received {});
    assert_eq!(names(&at("made/deep")), ["name"]);
    assert_eq!(names(home.path()), ["in", "made", "to"], "nothing else is left");
}

#[test]
fn what_is_in_the_way_of_a_copy_leaves_everything_as_it_was() {
    let (home, mut agent) = copying();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("in/name/d/g")).unwrap();
    fs::write(at("in/name/f"), "old").unwrap();
    fs::create_dir(at("links")).unwrap();
    symlink("../in", at("links/name")).unwrap();
    fs::write(at("file"), "old").unwrap();
    for (to, says) in [
        ("in", "in/name/d/g is there already and is a directory"),
        ("links", "links/name is there already and is not a directory"),
        ("file", "file is there already and is not a directory"),
    ] {
        let path = at(to).to_str().unwrap().to_owned();
        let Reply::Failed { why } = agent.copy(&path, false, "new") else {
            panic!("{to}: it was put")
        };
        assert_eq!(why, at("").join(says).to_str().unwrap());
    }
    assert_eq!(fs::read(at("in/name/f")).unwrap(), b"old");
    assert_eq!(fs::read(at("file")).unwrap(), b"old");
    assert_eq!(
        (names(&at("in/name")), names(&at("in"))),
        (vec!["d".into(), "f".into()], vec!["name".into()])
    );
    // If the client goes before everything was sent, nothing of the copy stays.
    agent.begin_copy(at("half").to_str().unwrap(), false, "half");
    let staged = || {
        names(home.path())
            .iter()
            .any(|name| name.starts_with(".crabbox-cp"))
    };
    assert!(within(Duration::from_secs(5), staged), "it has not begun");
    agent.input = None;
    assert!(within(Duration::from_secs(5), || !staged()), "it is left over");
    assert_eq!(names(home.path()), ["file", "in", "links"]);
}

/// An empty file system; needs root.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(at: std::path::PathBuf) -> Self {
        Self::with(at, "rw")
    }

    /// With these options of tmpfs(5).
    fn with(at: std::path::PathBuf, options: &str) -> Self {
        let mut mount = Program::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "crabbox-test"])
            .arg(&at);
        assert!(mount.status().unwrap().success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Program::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_copy_into_another_file_system_has_its_modes_and_times_too() {
    let (home, mut agent) = copying();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("in/name")).unwrap();
    let _mounted = Mounted::new(at("in/name"));
    fs::write(at("in/name/f"), "old").unwrap();
    assert_eq!(agent.copy("~/in", false, "new"), Reply::Received {});
    assert_eq!(names(&at("in/name")), ["d", "f", "l"]);
    assert_eq!(fs::read(at("in/name/f")).unwrap(), b"new\0\0\0\0");
    for (name, mode, seconds) in [
        ("f", 0o640, 2_000_000),
        ("d", 0o755, 1_000_000),
        ("d/g", 0o711, 2_000_000),
    ] {
        let meta = at("in/name").join(name).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (mode, seconds), "{name}");
    }
    assert_eq!(fs::read_link(at("in/name/l")).unwrap(), Path::new("f"));
}

#[test]
fn a_tree_is_told_by_kinds_and_whole_or_not_at_all() {
    let (home, mut agent) = copying();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("t/d\n")).unwrap();
    fs::write(at("t/d\n/f"), "x").unwrap();
    symlink("d\n", at("t/l")).unwrap();
    assert!(Program::new("mkfifo").arg(at("t/p")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(at("t/s")).unwrap();
    assert_eq!(
        agent.tree(&at("t"), false).unwrap(),
        ["d", "dd\n", "fd\n/f", "ll", "pp", "ss"]
    );
    assert_eq!(
        agent.tree(&at("t"), true).unwrap(),
        ["d", "dd\n", "dl", "fd\n/f", "fl/f", "pp", "ss"]
    );
    assert_eq!(agent.tree(&at("t/d\n/f"), false).unwrap(), ["f"]);
    symlink("..", at("t/d\n/up")).unwrap();
    symlink("nothing", at("t/none")).unwrap();
    for (path, follow, says) in [
        ("t/missing", true, "t/missing does not exist"),
        ("t/l", false, "t/l is a symbolic link; -L copies what it leads to"),
        (
            "t/d\n",
            true,
            "t/d\n/up/d\n leads back to a directory that it is in",
        ),
        ("t", true, ""),
    ] {
        let why = agent.tree(&at(path), follow).unwrap_err();
        let want = if says.is_empty() {
            String::new()
        } else {
            at(says).display().to_string()
        };
        assert!(why.starts_with(&want), "{why}");
    }
}

#[test]
fn a_cache_is_measured_once_a_name_and_emptied_without_following_a_link() {
    let (home, mut agent) = copying();
    let at = |name: &str| home.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    fs::create_dir_all(at("npm/.hidden")).unwrap();
    fs::write(at("npm/.hidden/x"), vec![1; 70_000]).unwrap();
    fs::hard_link(at("npm/.hidden/x"), at("npm/again")).unwrap();
    fs::create_dir(at("elsewhere")).unwrap();
    fs::write(at("elsewhere/kept"), vec![1; 70_000]).unwrap();
    symlink("../elsewhere", at("npm/link")).unwrap();
    symlink("elsewhere", at("pnpm")).unwrap();
    let mut size = |name: &str| {
        agent.say(&Request::Size { dir: text(name) });
        match agent.reply() {
            Reply::Sized { found, bytes } => (found, bytes),
            other => panic!("{other:?}"),
        }
    };
    let (found, bytes) = size("npm");
    assert!(found && (70_000..140_000).contains(&bytes), "{bytes}");
    assert!(size("pnpm").0 && size("pnpm").1 < 70_000);
    assert_eq!(size("git"), (false, 0));
    for name in ["npm", "pnpm", "git"] {
        agent.say(&Request::Clear { dir: text(name) });
        assert_eq!(agent.reply(), Reply::Cleared {}, "{name}");
    }
    assert!(names(&at("npm")).is_empty());
    assert_eq!(names(&at("pnpm")), ["kept"]);
}
