//! The lock of a tree, and the files by which we and the Go program see each other.
//!
//! `.gate` is the lock, `.owner` names who has the tree, `.child` the command that runs there. What is written here must always be something
//! that the Go program can read: what it cannot read locks it out of the lease for good. It holds the gate only while it writes, and owns the
//! tree until the second in its owner file, which it renews. So a gate that is free is not yet a tree that is. We own the tree by the gate
//! alone, which the kernel gives back whatever becomes of us: our owner file has expired from the start, so that the Go program recovers at
//! once when we are gone.

mod older;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crabbox_agent_protocol::Reply;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::bytes::discard;
use crate::failure::{At as _, Failure};
use crate::process::{Stat, end_group, lstart};
use crate::seen::{Seen, Time};
use crate::talk::Talk;
use older::Older;

/// How often is looked again at what somebody else has.
const PAUSE: Duration = Duration::from_millis(50);
/// At a Go program's owner file, which says until when.
const OWNER_PAUSE: Duration = Duration::from_millis(500);

/// The tree, ours.
#[derive(Debug)]
pub(crate) struct Owner {
    gate: File,
    files: Files,
    /// What keeps earlier versions out on a host that has no flock(1).
    _older: Option<Older>,
    /// When the last command began, by the clock of the file system.
    pub(crate) began: Option<Time>,
}

/// Where the files are.
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
}

/// Waits until the tree is this client's.
pub(crate) fn own(talk: &mut Talk, key: &str, token: &str) -> Result<Owner, Failure> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !word(key) || !word(token) {
        return Err(Failure::Refused("the name of a lock is none".to_owned()));
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
    let mut waiting = Waiting { talk, said: None };
    let older = Older::of(&files);
    if let Some(older) = &older {
        waiting.until(PAUSE, &Reply::Busy {}, || older.take())?;
    }
    loop {
        waiting.until(PAUSE, &Reply::Busy {}, || take(&gate, &files))?;
        if is_vacant(&files) {
            break;
        }
        // It needs the gate to renew, and to go.
        rustix::fs::flock(&gate, FlockOperation::Unlock).at(&files.gate())?;
        waiting.pause(OWNER_PAUSE, &Reply::Busy {})?;
    }
    // Whoever started a command of ours held the gate until it was gone itself, so nobody waits for that command any more.
    let orphan = Child::load(&files)
        .filter(Child::is_alive)
        .and_then(|child| child.ours);
    if let Some((_, group)) = orphan.filter(|(_, group)| *group > 1) {
        waiting.tell(&Reply::Child {})?;
        end_group(group);
    }
    waiting.until(PAUSE, &Reply::Child {}, || Ok(!is_busy(&files)))?;
    discard(&files.child())?;
    let recovered = files.owner().exists();
    let mut file = private()
        .write(true)
        .truncate(true)
        .open(files.owner())
        .at(&files.owner())?;
    file.write_all(format!("v1\n{token}\n0\n").as_bytes())
        .at(&files.owner())?;
    talk.say(&Reply::Owned { recovered })?;
    Ok(Owner {
        gate,
        files,
        _older: older,
        began: None,
    })
}

/// A file for this user only.
fn private() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.create(true).mode(0o600);
    options
}

fn take(gate: &File, files: &Files) -> Result<bool, Failure> {
    match rustix::fs::flock(gate, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno).at(&files.gate()),
    }
}

/// Somebody waits, and can go at any time.
struct Waiting<'a> {
    talk: &'a mut Talk,
    said: Option<Reply>,
}

impl Waiting<'_> {
    /// Asks again and again; tells what for when it is not so at once.
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

    fn pause(&mut self, pause: Duration, state: &Reply) -> Result<(), Failure> {
        self.tell(state)?;
        let limit = Timespec::try_from(pause).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let input = self.talk.input();
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            // Whoever waits says nothing: it does not want the tree any more.
            _ => Err(Failure::Gone),
        }
    }
}

/// Whether the owner file names nobody, or somebody whose time is over.
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

/// What a child file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Child {
    pid: u32,
    /// In the words of ps(1); empty where nobody asked it.
    named: String,
    /// In clock ticks, and the group; the Go program writes neither.
    ours: Option<(u64, u32)>,
}

impl Child {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (first, named, last) = (
            lines.next()?,
            lines.next().unwrap_or_default(),
            lines.next().unwrap_or_default(),
        );
        // An earlier version had all of it in one line.
        let words: Vec<&str> = first
            .split(' ')
            .chain(last.split(' '))
            .filter(|word| !word.is_empty())
            .collect();
        let (pid, rest) = words.split_first()?;
        let ours = match rest {
            [began, group, ..] => Some((began.parse().ok()?, group.parse().ok()?)),
            [began] => Some((began.parse().ok()?, 0)),
            [] => None,
        };
        Some(Self {
            pid: pid.parse().ok()?,
            named: named.to_owned(),
            ours,
        })
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
            None => lstart(self.pid).is_none_or(|now| now == self.named),
        }
    }

    fn text(&self) -> String {
        let Self { pid, named, ours } = self;
        let (began, group) = ours.unwrap_or_default();
        format!("{pid}\n{named}\n{began} {group}\n")
    }
}

/// Reads these bytes as a child file.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: &[u8]) {
    Child::parse(&String::from_utf8_lossy(bytes));
}

/// Whether a command still runs whose client has gone.
fn is_busy(files: &Files) -> bool {
    Child::load(files).is_some_and(|child| child.is_alive())
}

impl Owner {
    /// Notes the process that the next client must wait for. That line in the words of ps(1) comes later, see [`Self::name`]: a process for which
    /// no short command should wait. Until then it is empty, and the Go program keeps out of the tree.
    ///
    /// Where `/proc` is not there, or is another process namespace's, it refuses: its numbers would name somebody else, and the next client could
    /// begin while this command still runs.
    pub(crate) fn note(&mut self, pid: u32) -> Result<(), Failure> {
        let own = std::process::id();
        let is_ours =
            std::fs::read_link("/proc/self").is_ok_and(|shown| shown == Path::new(&own.to_string()));
        let stat = Stat::of(pid).filter(|_| is_ours).ok_or_else(|| {
            let why =
                "/proc in the lease does not show the command: mount it for the process namespace of sshd";
            Failure::Refused(why.to_owned())
        })?;
        let child = Child {
            pid,
            named: String::new(),
            ours: Some((stat.began, stat.group)),
        };
        let file = self.files.child();
        let mut open = private().write(true).truncate(true).open(&file).at(&file)?;
        open.write_all(child.text().as_bytes()).at(&file)?;
        // In our own name, before it begins: what it writes at once is younger.
        if pid == own {
            self.began = Some(Seen::of(&open.metadata().at(&file)?).modified);
        }
        Ok(())
    }

    /// There is no command after all.
    pub(crate) fn forget(&self) {
        discard(&self.files.child()).ok();
    }

    /// Names the process for the Go program. The file keeps its time: it is when the command began.
    pub(crate) fn name(&self) {
        let file = self.files.child();
        let Some(child) = Child::load(&self.files).filter(|child| child.named.is_empty()) else {
            return;
        };
        let (Some(named), Ok(meta)) = (lstart(child.pid), file.metadata()) else {
            return;
        };
        let text = Child { named, ..child }.text();
        // Without it the Go program keeps out of the tree for longer than it has to, and nothing else.
        if crate::bytes::write(&file, &[text.as_bytes()]).is_ok()
            && let Ok(open) = File::options().write(true).open(&file)
        {
            let when = UNIX_EPOCH
                + Duration::from_nanos(
                    u64::try_from(meta.mtime() * 1_000_000_000 + meta.mtime_nsec()).unwrap_or(0),
                );
            open.set_times(std::fs::FileTimes::new().set_modified(when)).ok();
        }
    }

    /// Gives the tree back.
    pub(crate) fn release(self) {
        discard(&self.files.owner()).ok();
        discard(&self.files.child()).ok();
        drop(self.gate);
    }

    /// Leaves the tree without a word, as a client does that was killed. A command of its that still runs is ended first.
    pub(crate) fn abandon(self) {
        // In our own name it is no command yet.
        let child = Child::load(&self.files);
        let child = child.filter(|child| child.pid != std::process::id() && child.is_alive());
        let gone = match child.and_then(|child| child.ours) {
            Some((_, group)) if group > 1 => end_group(group),
            _ => true,
        };
        // The next client waits for what could not be ended.
        if gone {
            discard(&self.files.child()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_read_as_each_of_us_writes_it() {
        let ours = Child::parse("12\n\n34 56\n").unwrap();
        assert_eq!((ours.pid, ours.ours), (12, Some((34, 56))));
        assert_eq!(Child::parse(&ours.text()), Some(ours));
        let go = Child::parse("12\nSun Nov 29 12:00:00 2026\n").unwrap();
        assert_eq!(
            (go.pid, go.named.as_str(), go.ours),
            (12, "Sun Nov 29 12:00:00 2026", None)
        );
        assert_eq!(Child::parse("12 34 56\n").unwrap().ours, Some((34, 56)));
        for nobody in ["", "\n", "x\n", "12 x\n", "-1\n"] {
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
