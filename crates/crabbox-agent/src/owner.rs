//! The lock of a tree, and the files through which this program and the Go program see each other.
//!
//! `.gate` is the lock, `.owner` names the owner of the tree, `.child` the command that runs there.
//! Everything written here must be readable for the Go program: a file that it cannot parse locks it out of
//! the lease for good. The Go program holds the gate only while it writes, and owns the tree until the time
//! in its owner file, which it renews; so a free gate does not yet mean a free tree. We own the tree by
//! holding the gate alone, which the kernel releases whenever we end: our owner file is expired from the
//! start, so that the Go program can recover immediately when we are gone.

mod silence;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crabbox_agent_protocol::{Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::bytes::discard;
use crate::failure::{At as _, Failure};
use crate::process::{self, Stat, end_group};
use crate::seen::{FileState, Time};
use crate::talk::{ClientMessage, Conversation};
use silence::Silence;

/// How often to try again while another client has the tree.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a waiting agent renews its `.wanted` file. The agent of a silent client checks that file every
/// few seconds.
const WANT_EVERY: Duration = Duration::from_secs(2);
/// How often to check a Go program's owner file for expiry.
const OWNER_PAUSE: Duration = Duration::from_millis(500);
/// Written in place of the start time from ps(1) where there is none. With no text there, the Go program would
/// refuse the tree for good, even after the command has ended; with this text, it takes the command for
/// another process with that pid and treats ours as gone.
const UNNAMED: &str = "not asked yet";

/// Ownership of the tree.
#[derive(Debug)]
pub(crate) struct Owner {
    gate: File,
    files: Files,
    /// The watch that gives up the tree when the client has fallen silent and another one waits.
    _silence: Silence,
    /// When the last command began, by the clock of the file system.
    pub(crate) began: Option<Time>,
}

/// The paths of the files.
#[derive(Debug, Clone)]
struct Files(PathBuf);

impl Files {
    fn named(&self, end: &str) -> PathBuf {
        self.0.with_added_extension(end)
    }

    fn gate(&self) -> PathBuf {
        self.named("gate")
    }

    fn owner(&self) -> PathBuf {
        self.named("owner")
    }

    fn child(&self) -> PathBuf {
        self.named("child")
    }

    /// Renewed while a client waits for the tree; an agent whose own client has fallen silent then gives it
    /// up.
    fn wanted(&self) -> PathBuf {
        self.named("wanted")
    }

    /// Ends a command that still runs, and leaves the other files as a killed client would.
    fn abandon(&self) {
        // A note with our own pid means that no command has started yet.
        let child = Child::load(self);
        let child = child.filter(|child| child.pid != std::process::id() && child.is_alive());
        let gone = match child.and_then(|child| child.ours) {
            Some((_, group)) if group > 1 => end_group(group),
            _ => true,
        };
        // If the command could not be ended, the next client waits for it.
        if gone {
            discard(&self.child()).ok();
        }
    }
}

/// Waits until this client owns the tree.
pub(crate) fn own(talk: &mut Conversation, key: &str, token: &str) -> Result<Owner, Failure> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !word(key) || !word(token) {
        return Err(Failure::Refused("the name of a lock is invalid".to_owned()));
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| {
        Failure::Refused("the user of the lease has no home directory (HOME is not set)".to_owned())
    })?;
    let dir = Path::new(&home).join(".crabbox/workspace-owners");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .at(&dir)?;
    let files = Files(dir.join(key));
    let gate = private().append(true).open(files.gate()).at(&files.gate())?;
    let mut waiting = Waiting {
        talk,
        said: None,
        wanted: files.wanted(),
        asked: None,
    };
    loop {
        waiting.until(PAUSE, &Reply::Busy {}, || take(&gate, &files))?;
        if is_vacant(&files) {
            break;
        }
        // The owner needs the gate to renew and to release.
        rustix::fs::flock(&gate, FlockOperation::Unlock).at(&files.gate())?;
        waiting.pause(OWNER_PAUSE, &Reply::Busy {})?;
    }
    // The agent that started this command held the gate until it ended, so no client waits for the command
    // any more.
    let orphan = Child::load(&files)
        .filter(Child::is_alive)
        .and_then(|child| child.ours);
    if let Some((_, group)) = orphan.filter(|(_, group)| *group > 1) {
        waiting.tell(&Reply::Child {})?;
        end_group(group);
    }
    waiting.until(PAUSE, &Reply::Child {}, || Ok(!is_busy(&files)))?;
    discard(&files.child())?;
    discard(&files.wanted())?;
    let recovered = files.owner().exists();
    put(&files.owner(), &format!("v1\n{token}\n0\n"))?;
    talk.say(&Reply::Owned { recovered })?;
    let silence = Silence::watch(talk.arrivals()?, files.clone())?;
    Ok(Owner {
        gate,
        files,
        _silence: silence,
        began: None,
    })
}

/// Options to create a file that only this user can read.
fn private() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.create(true).mode(0o600);
    options
}

/// Writes a file atomically, because the Go program cannot parse a partial one.
fn put(path: &Path, text: &str) -> Result<File, Failure> {
    let new = path.with_added_extension("new");
    let mut file = private().write(true).truncate(true).open(&new).at(&new)?;
    file.write_all(text.as_bytes()).at(&new)?;
    std::fs::rename(&new, path).at(path)?;
    Ok(file)
}

fn take(gate: &File, files: &Files) -> Result<bool, Failure> {
    match rustix::fs::flock(gate, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno).at(&files.gate()),
    }
}

/// A client that waits for the tree, and may go at any time.
struct Waiting<'a> {
    talk: &'a mut Conversation,
    said: Option<Reply>,
    /// The `.wanted` file for the other client; `asked` is when it was last written.
    wanted: PathBuf,
    asked: Option<Instant>,
}

impl Waiting<'_> {
    /// Polls until `is_so`, and reports `state` to the client while it is not.
    fn until(
        &mut self,
        pause: Duration,
        state: &Reply,
        mut is_so: impl FnMut() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        while !is_so()? {
            self.pause(pause, state)?;
        }
        Ok(())
    }

    fn tell(&mut self, state: &Reply) -> Result<(), Failure> {
        if self.said.as_ref() != Some(state) {
            self.talk.say(state)?;
            self.said = Some(state.clone());
        }
        Ok(())
    }

    /// Tells the agent that owns the tree that another client wants it.
    fn want(&mut self) {
        if self.asked.is_none_or(|asked| asked.elapsed() >= WANT_EVERY) {
            self.asked = Some(Instant::now());
            // If it cannot be written, we wait until the other client's session ends.
            private().write(true).open(&self.wanted).ok();
        }
    }

    fn pause(&mut self, pause: Duration, state: &Reply) -> Result<(), Failure> {
        self.tell(state)?;
        if *state == (Reply::Busy {}) {
            self.want();
        }
        let limit = Timespec::try_from(pause).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let input = self.talk.input();
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            // A waiting client sends only pings; anything else means that it no longer wants the tree.
            _ => match self.talk.hear_any() {
                Ok(ClientMessage::Request(Request::Ping {})) => Ok(()),
                heard => {
                    // If other clients wait too, they write the file again.
                    discard(&self.wanted).ok();
                    Err(heard.err().unwrap_or(Failure::Gone))
                }
            },
        }
    }
}

/// Whether the owner file names no owner, or one whose time has expired.
fn is_vacant(files: &Files) -> bool {
    let text = std::fs::read(files.owner()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines = text.lines();
    let (Some("v1"), Some(token), Some(until)) = (lines.next(), lines.next(), lines.next()) else {
        return true;
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    token.len() != 64 || until.parse::<u64>().map_or(true, |until| until <= now)
}

/// The contents of a child file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Child {
    pid: u32,
    /// The start time as ps(1) prints it, or [`UNNAMED`].
    named: String,
    /// The start time in clock ticks, and the process group; the Go program writes neither.
    ours: Option<(u64, u32)>,
}

impl Child {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.parse().ok()?;
        let named = lines.next().unwrap_or_default().to_owned();
        let ours = match lines.next().unwrap_or_default() {
            "" => None,
            line => {
                let (began, group) = line.split_once(' ')?;
                Some((began.parse().ok()?, group.parse().ok()?))
            }
        };
        Some(Self { pid, named, ours })
    }

    fn load(files: &Files) -> Option<Self> {
        let text = std::fs::read(files.child()).ok()?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn is_alive(&self) -> bool {
        let Some(stat) = Stat::of(self.pid) else {
            return false;
        };
        match self.ours {
            Some((began, _)) => stat.began == began,
            None => process::lstart(self.pid).is_none_or(|now| now == self.named),
        }
    }

    fn text(&self) -> String {
        let Self { pid, named, ours } = self;
        let (began, group) = ours.unwrap_or_default();
        format!("{pid}\n{named}\n{began} {group}\n")
    }
}

/// Parses these bytes as a child file.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: &[u8]) {
    Child::parse(&String::from_utf8_lossy(bytes));
}

/// Whether a noted command still runs.
fn is_busy(files: &Files) -> bool {
    Child::load(files).is_some_and(|child| child.is_alive())
}

impl Owner {
    /// Records the process that the next client must wait for. The text of ps(1) is computed, so that a short
    /// command need not wait for that process; [`Self::name`] asks ps itself later.
    ///
    /// Refuses if `/proc` is missing or belongs to another pid namespace: its pids would name other
    /// processes, and the next client could start while this command still runs.
    pub(crate) fn note(&mut self, pid: u32) -> Result<(), Failure> {
        let own = std::process::id();
        let is_ours =
            std::fs::read_link("/proc/self").is_ok_and(|shown| shown == Path::new(&own.to_string()));
        let stat = Stat::of(pid).filter(|_| is_ours).ok_or_else(|| {
            let why =
                "/proc in the lease does not show the command: mount it for the process namespace of sshd";
            Failure::Refused(why.to_owned())
        })?;
        let ask = || process::lstart(pid).filter(|_| pid != own);
        let named = process::started(&stat).or_else(ask);
        let child = Child {
            pid,
            named: named.unwrap_or_else(|| UNNAMED.to_owned()),
            ours: Some((stat.began, stat.group)),
        };
        let file = self.files.child();
        let open = put(&file, &child.text())?;
        // The note with our own pid is written before the command starts, so anything that the command writes
        // is newer.
        if pid == own {
            self.began = Some(FileState::of(&open.metadata().at(&file)?).modified);
        }
        Ok(())
    }

    /// Removes the note: no command was started.
    pub(crate) fn forget(&self) {
        discard(&self.files.child()).ok();
    }

    /// Corrects the text of ps(1) for the Go program, which compares with what ps says on this machine. The file
    /// keeps its time, which is when the command began.
    pub(crate) fn name(&self) {
        let file = self.files.child();
        let Some(child) = Child::load(&self.files) else {
            return;
        };
        let (Some(named), Ok(meta)) = (process::lstart(child.pid), file.metadata()) else {
            return;
        };
        if named == child.named {
            return;
        }
        let text = Child { named, ..child }.text();
        // Ignore a failure: without the line, the Go program may only believe that a command has ended whose
        // agent was killed.
        if let Ok(open) = put(&file, &text) {
            let when = UNIX_EPOCH
                + Duration::from_nanos(
                    u64::try_from(meta.mtime() * 1_000_000_000 + meta.mtime_nsec()).unwrap_or(0),
                );
            open.set_times(std::fs::FileTimes::new().set_modified(when)).ok();
        }
    }

    /// Releases the tree.
    pub(crate) fn release(self) {
        // In this order: the Go program does not look for a command while there is no owner.
        discard(&self.files.child()).ok();
        discard(&self.files.owner()).ok();
        drop(self.gate);
    }

    /// Leaves the files as a killed client would, after ending a command that still runs.
    pub(crate) fn abandon(self) {
        self.files.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_read_as_each_of_us_writes_it() {
        let ours = Child::parse("12\nnot asked yet\n34 56\n").unwrap();
        assert_eq!(
            (ours.pid, ours.named.as_str(), ours.ours),
            (12, UNNAMED, Some((34, 56)))
        );
        assert_eq!(Child::parse(&ours.text()), Some(ours));
        let go = Child::parse("12\nSun Nov 29 12:00:00 2026\n").unwrap();
        assert_eq!(
            (go.pid, go.named.as_str(), go.ours),
            (12, "Sun Nov 29 12:00:00 2026", None)
        );
        for nobody in [
            "",
            "\n",
            "x\n",
            "12 34 56\n",
            "-1\n",
            "12\nnot asked yet\n34\n",
            "12\nnot asked yet\n34 x\n",
        ] {
            assert_eq!(Child::parse(nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn an_owner_s_time_is_believed_and_what_is_no_owner_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files(dir.path().join("k"));
        let token = "a".repeat(64);
        let far = u64::MAX;
        assert!(is_vacant(&files));
        for (text, vacant) in [
            (format!("v1\n{token}\n{far}\n"), false),
            (format!("v1\n{token}\n0\n"), true),
            (format!("v1\n{token}\n12\n"), true),
            (format!("v1\n{token}\nx\n"), true),
            (format!("v1\nshort\n{far}\n"), true),
            (format!("v2\n{token}\n{far}\n"), true),
            (String::new(), true),
        ] {
            std::fs::write(files.owner(), &text).unwrap();
            assert_eq!(is_vacant(&files), vacant, "{text:?}");
        }
    }
}
