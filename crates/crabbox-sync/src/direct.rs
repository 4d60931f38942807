//! Sends whole files over the sync's own conversation: no second process on either side, and no comparison of
//! contents.
//!
//! This pays off where bytes are cheap: into a machine on this host, and for a few small files anywhere. It
//! must never follow a link in any component of a path, even if the tree has changed since it was listed, and
//! never send more of a file than its size when it was opened.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{PIECE, Reply, Request};
use crabbox_host::beneath::Beneath;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use rustix::fs::{FileType, Mode, OFlags};

use crate::entry::{Entry, Kind, show};
use crate::events::{Progress, SyncEvents};
use crate::rsync::Sent;

/// How often progress is reported.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Why files could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// One of them cannot be read here.
    #[error("cannot read {path}")]
    Read {
        /// The path.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The lease could not take them.
    #[error("the lease cannot take them: {why}")]
    Refused {
        /// The path and the reason.
        why: String,
    },
    /// The lease did not answer.
    #[error("no answer from the lease")]
    Call {
        /// How it failed.
        #[source]
        source: AgentError,
    },
    /// The lease gave an unexpected answer.
    #[error("the lease's side of the sync answered out of order: {answer}")]
    OutOfOrder {
        /// The beginning of the answer.
        answer: String,
    },
}

/// The receiver of what is sent.
pub(crate) trait To {
    /// Sends a message.
    fn ask(&mut self, request: &Request) -> Result<(), AgentError>;
    /// Sends a chunk of a file.
    fn send(&mut self, piece: &[u8]) -> Result<(), AgentError>;
    /// Whether the agent has already answered, which it does early only if it takes no more.
    fn has_answer(&mut self) -> bool;
}

impl To for AgentClient {
    fn ask(&mut self, request: &Request) -> Result<(), AgentError> {
        Self::ask(self, request)
    }

    fn send(&mut self, piece: &[u8]) -> Result<(), AgentError> {
        Self::send(self, piece)
    }

    fn has_answer(&mut self) -> bool {
        Self::has_answer(self)
    }
}

/// Entries that were sent but not yet acknowledged. `None` if the agent answered before all were sent,
/// because it does not read any more then.
#[derive(Debug)]
#[must_use = "whether they arrived is not known yet"]
pub(crate) struct Streamed(Option<Sent>);

/// Sends the entries, each with its number in the manifest. `is_awaited` says whether the agent still owes a
/// reply to another request: then an early reply is no reason to stop.
pub(crate) fn send<'e>(
    far: &mut AgentClient,
    root: &Path,
    entries: impl Iterator<Item = (usize, &'e Entry)>,
    is_awaited: bool,
    events: &dyn SyncEvents,
) -> Result<Streamed, DirectError> {
    let root = Beneath::open(root).map_err(|source| DirectError::Read {
        path: root.display().to_string(),
        source: source.into(),
    })?;
    let mut stream = Stream::new(far, root, events);
    stream.is_awaited = is_awaited;
    match stream.all(entries) {
        Err(Stop::Read { path, source }) => {
            // The agent has half of a file and waits for the rest.
            far.give_up();
            Err(DirectError::Read {
                path: show(&path),
                source,
            })
        }
        Err(Stop::Agent(source)) => Err(DirectError::Call { source }),
        Err(Stop::Answered) => Ok(Streamed(None)),
        Ok(sent) => Ok(Streamed(Some(sent))),
    }
}

impl Streamed {
    /// Waits until the entries have arrived.
    pub(crate) fn received(self, far: &mut AgentClient) -> Result<Sent, DirectError> {
        match (far.reply(), self.0) {
            (Ok(Reply::Received {}), Some(sent)) => Ok(sent),
            (Err(AgentError::Failed { why }), _) => Err(DirectError::Refused { why }),
            (Ok(other), _) => Err(DirectError::OutOfOrder {
                answer: format!("{other:?}").chars().take(200).collect(),
            }),
            (Err(source), _) => Err(DirectError::Call { source }),
        }
    }
}

/// Why the stream ended early.
#[derive(Debug)]
enum Stop {
    /// A local file cannot be read.
    Read { path: Vec<u8>, source: std::io::Error },
    /// The conversation has failed.
    Agent(AgentError),
    /// The agent has answered early.
    Answered,
}

impl From<AgentError> for Stop {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

/// The stream of files.
struct Stream<'a, T: To> {
    out: &'a mut T,
    root: Beneath,
    /// Directories that were already sent.
    dirs: HashSet<Vec<u8>>,
    block: Vec<u8>,
    progress: Progress,
    told: Instant,
    /// Whether an early reply belongs to another request.
    is_awaited: bool,
    events: &'a dyn SyncEvents,
}

impl<'a, T: To> Stream<'a, T> {
    fn new(out: &'a mut T, root: Beneath, events: &'a dyn SyncEvents) -> Self {
        Self {
            out,
            root,
            dirs: HashSet::new(),
            block: vec![0; PIECE],
            progress: Progress {
                bytes: 0,
                files: Some(0),
            },
            told: Instant::now(),
            is_awaited: false,
            events,
        }
    }

    fn all<'e>(&mut self, entries: impl Iterator<Item = (usize, &'e Entry)>) -> Result<Sent, Stop> {
        let mut sent = Sent::All;
        for (number, entry) in entries {
            // A manifest has no more entries than the protocol can number.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let was_sent = match entry.kind {
                Kind::File => self.file(number, entry)?,
                Kind::Symlink => self.link(number, entry)?,
            };
            if !was_sent {
                sent = Sent::SomeVanished;
            }
            self.progress.files = self.progress.files.map(|files| files + 1);
            if self.told.elapsed() >= TELL_EVERY {
                self.told = Instant::now();
                self.events.progress(self.progress);
                // Stop if the agent has answered early, for example because its disk is full.
                if !self.is_awaited && self.out.has_answer() {
                    return Err(Stop::Answered);
                }
            }
        }
        self.out.ask(&Request::Received {})?;
        self.events.progress(self.progress);
        Ok(sent)
    }

    /// Sends a file; false if it has vanished or is no longer a regular file.
    fn file(&mut self, number: u32, entry: &Entry) -> Result<bool, Stop> {
        let stop = |source: std::io::Error| Stop::Read {
            path: entry.path.clone(),
            source,
        };
        let path = below(&entry.path)?;
        // `open_file` does not block on a named pipe in place of the file.
        let mut file = match self.root.open_file(&path, OFlags::RDONLY, Mode::empty()) {
            Ok(file) => file,
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(stop(error.into())),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| stop(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        self.way_to(&entry.path)?;
        let mut left = u64::try_from(stat.st_size).unwrap_or(0);
        self.out.ask(&Request::File {
            number,
            mode: stat.st_mode & 0o7777,
            seconds: stat.st_mtime,
            nanoseconds: below_a_second(stat.st_mtime_nsec),
        })?;
        let mut is_first = true;
        loop {
            let read = fill(&mut file, &mut self.block, left).map_err(stop)?;
            if read == 0 {
                return Ok(true);
            }
            left -= read as u64;
            self.progress.bytes += read as u64;
            let piece = &self.block[..read];
            // A hole costs no bandwidth, and stays a hole.
            if !is_first && piece.iter().all(|byte| *byte == 0) {
                self.out.ask(&Request::Hole { bytes: read as u64 })?;
            } else {
                self.out.send(piece)?;
            }
            is_first = false;
        }
    }

    fn link(&mut self, number: u32, entry: &Entry) -> Result<bool, Stop> {
        let (target, stat) = match self.root.link(&below(&entry.path)?) {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(false),
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => {
                return Err(Stop::Read {
                    path: entry.path.clone(),
                    source: error.into(),
                });
            }
        };
        self.way_to(&entry.path)?;
        let target = target.into_bytes();
        self.progress.bytes += target.len() as u64;
        self.out.ask(&Request::Link {
            number,
            seconds: stat.st_mtime,
            nanoseconds: below_a_second(stat.st_mtime_nsec),
            target,
        })?;
        Ok(true)
    }

    /// Sends the directories above `path` that were not sent yet, from the top.
    fn way_to(&mut self, path: &[u8]) -> Result<(), Stop> {
        let Some(cut) = path.iter().rposition(|byte| *byte == b'/') else {
            return Ok(());
        };
        let dir = &path[..cut];
        if self.dirs.contains(dir) {
            return Ok(());
        }
        self.way_to(dir)?;
        // It existed a moment ago; if it is removed now, the next sync corrects that.
        let stat = self.root.stat(&below(dir)?).ok().flatten();
        let mode = stat.map_or(0o755, |stat| stat.st_mode & 0o7777);
        self.out.ask(&Request::Directory {
            path: dir.to_vec(),
            mode,
            seconds: None,
        })?;
        self.dirs.insert(dir.to_vec());
        Ok(())
    }
}

/// The nanoseconds of a time, whatever the type of the field is.
fn below_a_second(nanoseconds: impl TryInto<u32>) -> u32 {
    nanoseconds.try_into().unwrap_or(0)
}

/// A path of the manifest, which comes from git or our own walk and is therefore below the root.
fn below(path: &[u8]) -> Result<EntryPath, Stop> {
    EntryPath::exact(path).map_err(|why: EntryPathError| Stop::Read {
        path: path.to_vec(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, why),
    })
}

/// Reads until the block is full, the file ends, or `left` bytes are read.
fn fill(file: &mut std::fs::File, block: &mut [u8], left: u64) -> std::io::Result<usize> {
    let room = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
    let mut read = 0;
    while read < room {
        match file.read(&mut block[read..room]) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::entry::Scan;
    use crate::events::Silent;

    /// What is sent for `paths` if `swap` runs between listing and reading the files.
    fn sent_after(paths: &[&str], swap: impl FnOnce(&Path)) -> (String, Sent) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let run = |script: &str| {
            let command = crabbox_host::command::Cmd::new("sh").args(["-ec", script]);
            command.cwd(dir.path()).run().unwrap();
        };
        run(
            "mkdir -p root/a/b victim/b; echo mine > root/a/b/f; ln -s mine root/a/b/l; echo mine > root/a/g; \
             echo secret > victim/b/f; ln -s secret victim/b/l; echo secret > victim/g; cp -a victim root/ignored",
        );
        let scan = Scan::start(&root).unwrap();
        let mut eye = scan.eye();
        let listed: Vec<Entry> = paths
            .iter()
            .map(|path| eye.look(path.as_bytes(), true).unwrap().unwrap())
            .collect();
        swap(&root);
        let mut out = Kept::default();
        let root = Beneath::open(&root).unwrap();
        let sent = Stream::new(&mut out, root, &Silent)
            .all(listed.iter().enumerate())
            .unwrap();
        (out.0, sent)
    }

    /// Collects what was sent, as text.
    #[derive(Default)]
    struct Kept(String);

    impl To for Kept {
        fn ask(&mut self, request: &Request) -> Result<(), AgentError> {
            use std::fmt::Write as _;
            match request {
                Request::Link { target, .. } => self.0.push_str(&String::from_utf8_lossy(target)),
                other => writeln!(self.0, "{other:?}").unwrap(),
            }
            Ok(())
        }

        fn send(&mut self, piece: &[u8]) -> Result<(), AgentError> {
            self.0.push_str(&String::from_utf8_lossy(piece));
            Ok(())
        }

        fn has_answer(&mut self) -> bool {
            false
        }
    }

    #[test]
    fn a_parent_that_became_a_link_is_not_followed() {
        let paths = ["a/b/f", "a/b/l", "a/g"];
        let (whole, all) = sent_after(&paths, |_| {});
        assert_eq!((all, whole.matches("mine").count()), (Sent::All, 3), "{whole}");
        // Links out of the tree, and to files of it that are not synced.
        for (part, target) in [
            ("a", "../victim"),
            ("a", "ignored"),
            ("a/b", "../../victim/b"),
            ("a/b", "../ignored/b"),
            ("a/b", "/proc/self/cwd"),
        ] {
            let (out, sent) = sent_after(&paths, |root| {
                std::fs::rename(root.join(part), root.join("kept")).unwrap();
                symlink(target, root.join(part)).unwrap();
            });
            assert!(!out.contains("secret"), "{part} -> {target}: {out}");
            assert_eq!(sent, Sent::SomeVanished, "{part} -> {target}: {out}");
        }
    }

    #[test]
    fn a_file_that_became_a_link_or_a_pipe_counts_as_vanished() {
        let (out, sent) = sent_after(&["a/g"], |root| {
            std::fs::remove_file(root.join("a/g")).unwrap();
            symlink("b/f", root.join("a/g")).unwrap();
        });
        assert_eq!((out.as_str(), sent), ("Received\n", Sent::SomeVanished));
        let (out, sent) = sent_after(&["a/g"], |root| {
            std::fs::remove_file(root.join("a/g")).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, root.join("a/g"), Mode::from_raw_mode(0o600)).unwrap();
        });
        assert_eq!((out.as_str(), sent), ("Received\n", Sent::SomeVanished));
    }
}
