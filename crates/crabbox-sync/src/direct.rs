//! Files whole, through the sync's own conversation: no second process on either side, and no comparison of contents.
//!
//! It pays where bytes cost little: into a machine on this host, and for a few small files anywhere. It must never follow a
//! link in any place of a path, whatever the tree became since it was listed, and never send more of a file than it had when it
//! was opened.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{PIECE, Reply, Request};
use crabbox_host::beneath::Beneath;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use crabbox_ssh::far::{Far, FarError};
use rustix::fs::{FileType, Mode, OFlags};

use crate::entry::{Entry, Kind, show};
use crate::events::{Progress, SyncEvents};
use crate::rsync::Sent;

/// How often progress is told.
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
    /// The lease gave no answer.
    #[error("no answer from the lease")]
    Call {
        /// How it failed.
        #[source]
        source: FarError,
    },
    /// The lease gave another answer.
    #[error("the lease's side of the sync answered out of order: {answer}")]
    OutOfOrder {
        /// Its beginning.
        answer: String,
    },
}

/// Where what is sent goes.
pub(crate) trait To {
    /// A message.
    fn ask(&mut self, request: &Request) -> Result<(), FarError>;
    /// A piece of a file.
    fn send(&mut self, piece: &[u8]) -> Result<(), FarError>;
    /// Whether the far side has said something already: only when it takes no more.
    fn has_answer(&mut self) -> bool;
}

impl To for Far {
    fn ask(&mut self, request: &Request) -> Result<(), FarError> {
        Self::ask(self, request)
    }

    fn send(&mut self, piece: &[u8]) -> Result<(), FarError> {
        Self::send(self, piece)
    }

    fn has_answer(&mut self) -> bool {
        Self::has_answer(self)
    }
}

/// Entries that were sent, whose answer is not there yet: none where the far side has said something before all of them were, which is why it
/// does not listen any more.
#[derive(Debug)]
#[must_use = "whether they arrived is not known yet"]
pub(crate) struct Streamed(Option<Sent>);

/// Sends the entries, each with the number by which the far side knows it. `is_awaited` says whether it owes an answer to something else: then one
/// that comes meanwhile is no reason to stop.
pub(crate) fn send<'e>(
    far: &mut Far,
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
            // The far side has half of a file, and waits for the rest.
            far.give_up();
            Err(DirectError::Read {
                path: show(&path),
                source,
            })
        }
        Err(Stop::Far(source)) => Err(DirectError::Call { source }),
        Err(Stop::Answered) => Ok(Streamed(None)),
        Ok(sent) => Ok(Streamed(Some(sent))),
    }
}

impl Streamed {
    /// Waits until they have arrived.
    pub(crate) fn received(self, far: &mut Far) -> Result<Sent, DirectError> {
        match (far.reply(), self.0) {
            (Ok(Reply::Received {}), Some(sent)) => Ok(sent),
            (Err(FarError::Failed { why }), _) => Err(DirectError::Refused { why }),
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
    /// A file here cannot be read.
    Read { path: Vec<u8>, source: std::io::Error },
    /// Nobody listens any more.
    Far(FarError),
    /// The far side has said something.
    Answered,
}

impl From<FarError> for Stop {
    fn from(error: FarError) -> Self {
        Self::Far(error)
    }
}

/// The files on their way.
struct Stream<'a, T: To> {
    out: &'a mut T,
    root: Beneath,
    /// Directories that the far side has been told of.
    dirs: HashSet<Vec<u8>>,
    block: Vec<u8>,
    progress: Progress,
    told: Instant,
    /// Whether an answer that comes meanwhile is to something else.
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
            // The manifest has at most as many entries as a number of the protocol counts.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let there = match entry.kind {
                Kind::File => self.file(number, entry)?,
                Kind::Symlink => self.link(number, entry)?,
            };
            if !there {
                sent = Sent::SomeVanished;
            }
            self.progress.files = self.progress.files.map(|files| files + 1);
            if self.told.elapsed() >= TELL_EVERY {
                self.told = Instant::now();
                self.events.progress(self.progress);
                // A full disk there is not filled with the rest.
                if !self.is_awaited && self.out.has_answer() {
                    return Err(Stop::Answered);
                }
            }
        }
        self.out.ask(&Request::Received {})?;
        self.events.progress(self.progress);
        Ok(sent)
    }

    /// False when it has vanished, or is no file any more.
    fn file(&mut self, number: u32, entry: &Entry) -> Result<bool, Stop> {
        let stop = |source: std::io::Error| Stop::Read {
            path: entry.path.clone(),
            source,
        };
        let path = below(&entry.path)?;
        // A named pipe in the place of the file does not hold us up: `open_file` sees to that.
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
            // A hole costs nothing on the way, and stays one.
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

    /// The directories above `path` that the far side has not been told of, from the top.
    fn way_to(&mut self, path: &[u8]) -> Result<(), Stop> {
        let Some(cut) = path.iter().rposition(|byte| *byte == b'/') else {
            return Ok(());
        };
        let dir = &path[..cut];
        if self.dirs.contains(dir) {
            return Ok(());
        }
        self.way_to(dir)?;
        // It was there a moment ago; whoever takes it away now gets a file of which the next sync knows better.
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

/// The part of a time that is less than a second, in nanoseconds, whatever the type of the field is.
fn below_a_second(nanoseconds: impl TryInto<u32>) -> u32 {
    nanoseconds.try_into().unwrap_or(0)
}

/// A path of the manifest, which git or our own walk gave and which therefore is one below the root.
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

    /// What is sent of `paths` when `swap` happens between the listing and the reading of the files.
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

    /// What was sent, as text.
    #[derive(Default)]
    struct Kept(String);

    impl To for Kept {
        fn ask(&mut self, request: &Request) -> Result<(), FarError> {
            use std::fmt::Write as _;
            match request {
                Request::Link { target, .. } => self.0.push_str(&String::from_utf8_lossy(target)),
                other => writeln!(self.0, "{other:?}").unwrap(),
            }
            Ok(())
        }

        fn send(&mut self, piece: &[u8]) -> Result<(), FarError> {
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
        // Out of the tree, and to what of it is not synced.
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
