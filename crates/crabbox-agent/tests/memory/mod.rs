//! Tests how much memory the agent takes for a large tree. It must grow by no more than a few bytes per file.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command as Program, Stdio};

use crabbox_agent_protocol::{PIECE, Reply, Request, Seed, SyncRequest};

use super::Agent;

const FILES: usize = 100_000;

/// The disk space that the files and a repository of them take, at a page each, in bytes.
const ROOM: u64 = 600 << 20;

/// Files per directory.
const SIBLINGS: usize = 100;

/// The most memory that the agent may take at any time, in KiB.
const LIMIT: u64 = 16 * 1024;

/// The content of every file.
const TEXT: &str = "x\n";

/// The modification time of every file, in unix seconds.
const MODIFIED: i64 = 1_700_000_000;

fn path(number: usize) -> String {
    let dir = number / SIBLINGS;
    format!("directory{:02}/sub{:02}/file{number:06}.txt", dir / 50, dir % 50)
}

/// Runs git in `dir` with this input, and returns its output.
fn git(dir: &Path, words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Program::new("git")
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        scope.spawn(move || pipe.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(done.status.success(), "git {words:?}");
    done.stdout
}

/// Makes a repository with all files in one commit, and returns that commit.
fn planted(dir: &Path) -> String {
    std::fs::create_dir(dir).unwrap();
    git(dir, &["init", "-q", "--template=", "-b", "main"], b"");
    let mut stream = format!(
        "blob\nmark :1\ndata {}\n{TEXT}commit refs/heads/main\ncommitter t <t@t> {MODIFIED} +0000\ndata 0\n",
        TEXT.len()
    );
    for number in 0..FILES {
        writeln!(stream, "M 100644 :1 {}", path(number)).unwrap();
    }
    git(dir, &["fast-import", "--quiet"], stream.as_bytes());
    let head = git(dir, &["rev-parse", "HEAD"], b"");
    String::from_utf8(head).unwrap().trim().to_owned()
}

fn rows(numbers: impl Iterator<Item = usize>, size: usize) -> Vec<u8> {
    let mut list = Vec::new();
    for number in numbers {
        write!(
            list,
            "{:016x} f 644 {size} {MODIFIED}000000000 {}\0",
            (number + 1) * size,
            path(number)
        )
        .unwrap();
    }
    list.extend_from_slice(b"-\0");
    list
}

impl Agent {
    pub(super) fn send_list(&mut self, list: &[u8]) {
        for piece in list.chunks(PIECE) {
            self.piece(piece);
        }
        self.say(&Request::End {});
    }

    /// Sends files, given by number and content.
    pub(super) fn send_files<'t>(&mut self, files: impl Iterator<Item = (usize, &'t str)>) {
        let mut waiting = Vec::new();
        for (number, text) in files {
            let file = Request::File {
                number: u32::try_from(number).unwrap(),
                mode: 0o644,
                seconds: MODIFIED,
                nanoseconds: 0,
            };
            file.frame(&mut waiting);
            crabbox_agent_protocol::put_bytes(
                &mut waiting,
                crabbox_agent_protocol::Stream::Data,
                text.as_bytes(),
            );
            if waiting.len() >= PIECE {
                self.input.as_mut().unwrap().write_all(&waiting).unwrap();
                waiting.clear();
            }
        }
        self.input.as_mut().unwrap().write_all(&waiting).unwrap();
        self.say(&Request::Received {});
        assert_eq!(self.reply(), Reply::Received {});
    }

    pub(super) fn finish(&mut self) {
        self.say(&Request::Finish {});
        let done = Reply::Done {
            unsettled: 0,
            unseeded: None,
        };
        assert_eq!(self.reply(), done);
    }

    /// Its peak memory so far, in KiB: `VmHWM` of proc_pid_status(5).
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// A directory in `/dev/shm` if there is room: creating and removing so many files on a busy disk takes
/// minutes.
fn roomy() -> tempfile::TempDir {
    let shared = "/dev/shm";
    let is_roomy = rustix::fs::statvfs(shared).is_ok_and(|there| there.f_bavail * there.f_frsize >= ROOM);
    let made = if is_roomy {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    made.unwrap()
}

/// Sends every row, as a client does that has no record of an earlier sync; the agent then asks for
/// `(all, seed)`.
fn send_all_rows(agent: &mut Agent, sync: &SyncRequest, wanted: (bool, bool)) {
    agent.say(&Request::Sync { sync: sync.clone() });
    assert_eq!(agent.reply(), Reply::Differs {});
    agent.send_list(&rows(0..FILES, TEXT.len()));
    agent.send_list(b"");
    let reply = agent.reply();
    let Reply::Stale { all, seed, .. } = reply else {
        panic!("{reply:?}");
    };
    assert_eq!((all, seed), wanted);
}

/// The first sync, with the repository.
fn first_sync(agent: &mut Agent, sync: &SyncRequest, repository: &Path) {
    send_all_rows(agent, sync, (true, true));
    for dir in 0..FILES / SIBLINGS {
        for path in [
            format!("directory{:02}", dir / 50),
            format!("directory{:02}/sub{:02}", dir / 50, dir % 50),
        ] {
            agent.say(&Request::Directory {
                path: path.into_bytes(),
                mode: 0o755,
                seconds: None,
            });
        }
    }
    agent.send_files((0..FILES).map(|number| (number, TEXT)));
    let objects = git(
        repository,
        &["rev-list", "--objects", "--no-object-names", "HEAD"],
        b"",
    );
    let pack = git(repository, &["pack-objects", "--quiet", "--stdout"], &objects);
    agent.say(&Request::Pack {
        lacks: String::new(),
        based: false,
    });
    for _ in 0..6 {
        agent.send_list(b"");
    }
    agent.send_list(&pack);
    assert_eq!(agent.reply(), Reply::Seeded {});
    agent.finish();
}

#[test]
fn a_large_tree_costs_little_memory() {
    let home = roomy();
    let repository = home.path().join("repository");
    let head = planted(&repository);
    let mut agent = Agent::start(home.path(), &[]);
    let idle = agent.peak();
    let mut sync = SyncRequest {
        lease_dir: home.path().join("lease").to_str().unwrap().to_owned(),
        fingerprint: "aa.1".to_owned(),
        base: String::new(),
        name: "w".to_owned(),
        delete: true,
        reset: false,
        distrust: false,
        seed: Some(Seed {
            id: "1".to_owned(),
            head,
            branch: "main".to_owned(),
            origin: String::new(),
            base: None,
        }),
    };
    first_sync(&mut agent, &sync, &repository);
    let first = agent.peak();
    let work = home.path().join("lease/w");
    assert_eq!(
        std::fs::read(work.join(path(FILES - 1))).unwrap(),
        TEXT.as_bytes()
    );
    assert_eq!(git(&work, &["status", "--porcelain"], b""), b"");
    // A check, and one edit in each directory.
    let edited = || (0..FILES).step_by(SIBLINGS);
    sync.base = "aa".to_owned();
    sync.fingerprint = "bb.1".to_owned();
    agent.say(&Request::Sync { sync: sync.clone() });
    assert_eq!(agent.reply(), Reply::Patch {});
    agent.send_list(&rows(edited(), 4));
    agent.send_list(b"");
    let mut unlike = Vec::new();
    for number in edited() {
        unlike.extend_from_slice(path(number).as_bytes());
        unlike.push(0);
    }
    agent.send_list(&unlike);
    assert!(matches!(agent.reply(), Reply::Stale { all: true, .. }));
    agent.send_files(edited().enumerate().map(|(number, _)| (number, "new\n")));
    agent.finish();
    let edit = agent.peak();
    // The whole manifest again, from a client that does not know what it sent.
    sync.base = String::new();
    sync.fingerprint = "cc.1".to_owned();
    send_all_rows(&mut agent, &sync, (false, false));
    let numbers = agent.list().unwrap();
    assert_eq!(numbers.len(), 4 * edited().count());
    agent.send_files(edited().map(|number| (number, TEXT)));
    agent.finish();
    let whole = agent.peak();
    let added = add_one(&mut agent, &mut sync);
    let looked = look_at_half(&mut agent, &sync, &work);
    let emptied = take_all_but_one(&mut agent, &mut sync, &work);
    assert!(
        emptied < LIMIT,
        "KiB of memory at most: idle {idle}, first sync {first}, edits {edit}, whole sync {whole}, one more file {added}, \
         changes {looked}, all but one gone {emptied}"
    );
}

/// Adds one file, which makes the agent write all paths for the Go program; returns the peak memory so far.
fn add_one(agent: &mut Agent, sync: &mut SyncRequest) -> u64 {
    (sync.base, sync.fingerprint) = ("cc".to_owned(), "dd.1".to_owned());
    agent.say(&Request::Sync { sync: sync.clone() });
    assert_eq!(agent.reply(), Reply::Patch {});
    agent.send_list(&rows(FILES..=FILES, TEXT.len()));
    agent.send_list(b"");
    agent.send_list(format!("{}\0", path(FILES)).as_bytes());
    assert!(matches!(agent.reply(), Reply::Stale { all: true, .. }));
    let parent = Path::new(&path(FILES)).parent().unwrap().to_owned();
    for dir in [parent.parent().unwrap(), &parent] {
        agent.say(&Request::Directory {
            path: dir.to_str().unwrap().as_bytes().to_vec(),
            mode: 0o755,
            seconds: None,
        });
    }
    agent.send_files([(0, TEXT)].into_iter());
    agent.finish();
    let go = Path::new(&sync.lease_dir).join("w/.git/crabbox/sync-manifest");
    let told = std::fs::read(go).unwrap();
    assert_eq!(told.split(|byte| *byte == 0).count(), FILES + 2);
    agent.peak()
}

/// Asks for changes after the guest has removed half of the tree and added as many files; returns the peak
/// memory so far.
fn look_at_half(agent: &mut Agent, sync: &SyncRequest, work: &Path) -> u64 {
    let half = FILES / SIBLINGS / 50 / 2;
    for dir in 0..half {
        let at = |prefix: &str| work.join(format!("{prefix}{dir:02}"));
        std::fs::rename(at("directory"), at("moved")).unwrap();
    }
    agent.say(&Request::Changes {
        lease_dir: sync.lease_dir.clone(),
        name: sync.name.clone(),
    });
    let list = agent.list().unwrap();
    let told = |state: u8| {
        list.split(|byte| *byte == 0)
            .filter(|row| row.first() == Some(&state))
            .count()
    };
    assert_eq!((told(b'D'), told(b'N'), told(b'M')), (FILES / 2, FILES / 2, 0));
    agent.peak()
}

/// Syncs a manifest of one file, which removes all others; returns the peak memory so far.
fn take_all_but_one(agent: &mut Agent, sync: &mut SyncRequest, work: &Path) -> u64 {
    "ee.1".clone_into(&mut sync.fingerprint);
    agent.say(&Request::Sync { sync: sync.clone() });
    assert_eq!(agent.reply(), Reply::Differs {});
    agent.send_list(&rows(FILES - 1..FILES, TEXT.len()));
    agent.send_list(b"");
    assert!(matches!(agent.reply(), Reply::Done { unsettled: 0, .. }));
    assert!(work.join(path(FILES - 1)).exists() && !work.join(path(FILES - SIBLINGS)).exists());
    agent.peak()
}
