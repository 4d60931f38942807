//! Files whole, through the sync's own conversation: no second process on either side, and no comparison of contents.
//!
//! It pays where bytes cost little: into a machine on this host, and for a few small files anywhere. It must never follow a
//! link in the last place of a path, and never send more of a file than it had when it was opened.

use std::collections::HashSet;
use std::io::{BufWriter, Read as _, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

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
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(root, flags, Mode::empty()).map_err(|source| DirectError::Read {
        path: root.display().to_string(),
        source: source.into(),
    })?;
    let poured = session
        .pour(|pipe| {
            let mut stream = Stream {
                out: BufWriter::with_capacity(2 * BLOCK, pipe),
                root: handle,
                dirs: HashSet::new(),
                block: vec![0; BLOCK],
                progress: Progress {
                    bytes: 0,
                    files: Some(0),
                },
                told: Instant::now(),
                events,
            };
            stream.all(entries)
        })
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
    root: OwnedFd,
    /// Directories that the far side has been told of.
    dirs: HashSet<Vec<u8>>,
    block: Vec<u8>,
    progress: Progress,
    told: Instant,
    events: &'a dyn SyncEvents,
}

impl<W: Write> Stream<'_, W> {
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
        // A named pipe in the place of the file must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.root, &entry.path, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(false),
            Err(error) => return Err(stop(error.into())),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| stop(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        self.way_to(&entry.path)?;
        let mut left = u64::try_from(stat.st_size).unwrap_or(0);
        let mut file = std::fs::File::from(file);
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
        let looked = rustix::fs::readlinkat(&self.root, &entry.path, Vec::new())
            .and_then(|target| Ok((target, self.stat(&entry.path)?)));
        let (target, stat) = match looked {
            Ok(looked) => looked,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => return Ok(false),
            Err(source) => {
                return Err(Stop::Read {
                    path: entry.path.clone(),
                    source: source.into(),
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

    fn stat(&self, path: &[u8]) -> Result<rustix::fs::Stat, Errno> {
        rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)
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
        let mode = self.stat(dir).map_or(0o755, |stat| stat.st_mode & 0o7777);
        writeln!(self.out, "d {mode:o} {}", dir.len())?;
        self.out.write_all(dir)?;
        self.dirs.insert(dir.to_vec());
        Ok(())
    }
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
