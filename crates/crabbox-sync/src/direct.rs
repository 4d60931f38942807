//! Files whole, through the sync's own conversation: no second process on either side, and no comparison of contents.
//!
//! It pays where bytes cost little: into a machine on this host, and for a few small files anywhere. It must never follow a
//! link in any place of a path, whatever the tree became since it was listed, and never send more of a file than it had when it
//! was opened.

use std::collections::HashSet;
use std::io::{BufWriter, Read as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_host::beneath::Beneath;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use rustix::fs::{FileType, Mode, OFlags};

use crate::agent::{AgentError, Reply, Session};
use crate::entry::{Entry, Kind, nanoseconds, show};
use crate::events::{Progress, SyncEvents};
use crate::rsync::Sent;

/// A chunk of this many bytes has another one behind it, as `agent/receive.py` has it.
const BLOCK: usize = 256 * 1024;

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
        source: AgentError,
    },
    /// The lease gave another answer.
    #[error("the lease's side of the sync answered out of order: {answer}")]
    OutOfOrder {
        /// Its beginning.
        answer: String,
    },
}

/// Sends the entries, each with the number by which the far side knows it.
pub(crate) fn send<'e>(
    session: &mut Session,
    root: &Path,
    entries: impl Iterator<Item = (usize, &'e Entry)> + Send,
    events: &dyn SyncEvents,
) -> Result<Sent, DirectError> {
    let root = Beneath::open(root).map_err(|source| DirectError::Read {
        path: root.display().to_string(),
        source: source.into(),
    })?;
    let poured = session
        .pour(|pipe| Stream::new(pipe, root, events).all(entries))
        .map_err(|source| DirectError::Call { source })?;
    // A pipe that breaks is not the error: the far side says why it stopped to listen.
    let sent = match poured {
        Err(Stop::Read { path, source }) => {
            return Err(DirectError::Read {
                path: show(&path),
                source,
            });
        }
        Err(Stop::Pipe) => None,
        Ok(sent) => Some(sent),
    };
    match (session.reply(), sent) {
        (Ok(Reply::Received), Some(sent)) => Ok(sent),
        (Ok(Reply::Failed { why }), _) => Err(DirectError::Refused { why }),
        (Ok(other), _) => Err(DirectError::OutOfOrder {
            answer: format!("{other:?}").chars().take(200).collect(),
        }),
        (Err(source), _) => Err(DirectError::Call { source }),
    }
}

/// Why the stream ended early.
enum Stop {
    /// A file here cannot be read.
    Read { path: Vec<u8>, source: std::io::Error },
    /// Nobody listens any more.
    Pipe,
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Self::Pipe
    }
}

/// The files on their way.
struct Stream<'a, W: Write> {
    out: BufWriter<W>,
    root: Beneath,
    /// Directories that the far side has been told of.
    dirs: HashSet<Vec<u8>>,
    block: Vec<u8>,
    progress: Progress,
    told: Instant,
    events: &'a dyn SyncEvents,
}

impl<'a, W: Write> Stream<'a, W> {
    fn new(pipe: W, root: Beneath, events: &'a dyn SyncEvents) -> Self {
        Self {
            out: BufWriter::with_capacity(2 * BLOCK, pipe),
            root,
            dirs: HashSet::new(),
            block: vec![0; BLOCK],
            progress: Progress {
                bytes: 0,
                files: Some(0),
            },
            told: Instant::now(),
            events,
        }
    }

    fn all<'e>(&mut self, entries: impl Iterator<Item = (usize, &'e Entry)>) -> Result<Sent, Stop> {
        let mut sent = Sent::All;
        self.out.write_all(b"files\n")?;
        for (number, entry) in entries {
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
            }
        }
        self.out.write_all(b"-\n")?;
        self.out.flush()?;
        self.events.progress(self.progress);
        Ok(sent)
    }

    /// False when it has vanished, or is no file any more.
    fn file(&mut self, number: usize, entry: &Entry) -> Result<bool, Stop> {
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
        let mut read = fill(&mut file, &mut self.block, left).map_err(stop)?;
        writeln!(
            self.out,
            "f {number} {:o} {} {read}",
            stat.st_mode & 0o7777,
            nanoseconds(stat.st_mtime, stat.st_mtime_nsec)
        )?;
        self.out.write_all(&self.block[..read])?;
        loop {
            self.progress.bytes += read as u64;
            left = left.saturating_sub(read as u64);
            if read != BLOCK {
                return Ok(true);
            }
            read = fill(&mut file, &mut self.block, left).map_err(stop)?;
            // A hole costs nothing on the way, and stays one.
            if read > 0 && self.block[..read].iter().all(|byte| *byte == 0) {
                writeln!(self.out, "-{read}")?;
            } else {
                writeln!(self.out, "{read}")?;
                self.out.write_all(&self.block[..read])?;
            }
        }
    }

    fn link(&mut self, number: usize, entry: &Entry) -> Result<bool, Stop> {
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
        let target = target.as_bytes();
        let modified = nanoseconds(stat.st_mtime, stat.st_mtime_nsec);
        writeln!(self.out, "l {number} {modified} {}", target.len())?;
        self.out.write_all(target)?;
        self.progress.bytes += target.len() as u64;
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
        writeln!(self.out, "d {mode:o} {}", dir.len())?;
        self.out.write_all(dir)?;
        self.dirs.insert(dir.to_vec());
        Ok(())
    }
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
        let mut out = Vec::new();
        let root = Beneath::open(&root).unwrap();
        let sent = Stream::new(&mut out, root, &Silent).all(listed.iter().enumerate());
        let Ok(sent) = sent else {
            panic!("a swapped tree is no error")
        };
        (String::from_utf8(out).unwrap(), sent)
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
        assert_eq!((out.as_str(), sent), ("files\n-\n", Sent::SomeVanished));
        let (out, sent) = sent_after(&["a/g"], |root| {
            std::fs::remove_file(root.join("a/g")).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, root.join("a/g"), Mode::from_raw_mode(0o600)).unwrap();
        });
        assert_eq!((out.as_str(), sent), ("files\n-\n", Sent::SomeVanished));
    }
}
