//! Reads an ext4 image without mounting it, with `debugfs` (e2fsprogs), which never writes.
//!
//! The image is untrusted: the program that reads it is confined ([`Confinement`]), and its output is
//! validated ([`listing`]). Files are named by the inode in their directory's listing and read over a pipe;
//! no name from the image may become a path of this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crabbox_host::command::{Captured, Cmd, CommandError};
use crabbox_host::confine::Confinement;
use crabbox_host::digest;
use crabbox_host::files::FileError;
use crabbox_host::random;

pub mod listing;

use listing::{Entry, ListingError};

/// Maximum output of one script, in bytes.
const ANSWER_LIMIT: usize = 32 << 20;

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebugfsError {
    /// A confined program cannot open it, or the program cannot be confined.
    #[error(transparent)]
    File(#[from] FileError),
    /// debugfs failed, or took too long.
    #[error("cannot read the file system {}", image.display())]
    Run {
        /// The image.
        image: PathBuf,
        /// The failure.
        #[source]
        source: CommandError,
    },
    /// The output of one request is missing.
    #[error("debugfs did not say what is in {} of {}", asked, image.display())]
    NoAnswer {
        /// The image.
        image: PathBuf,
        /// The request.
        asked: String,
    },
    /// A directory listing is invalid.
    #[error("refusing the file system {}: its directory {dir}", image.display())]
    Listing {
        /// The image.
        image: PathBuf,
        /// The directory, as requested.
        dir: String,
        /// What is wrong in it.
        #[source]
        source: ListingError,
    },
    /// A file is larger than the limit for its kind.
    #[error("refusing the file system {}: {file} has {bytes} bytes, and at most {limit} are read", image.display())]
    TooLong {
        /// The image.
        image: PathBuf,
        /// The file.
        file: String,
        /// The size in its directory entry.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file cannot be read completely.
    #[error("the file system {} is damaged: {file} has {got} of {expected} bytes", image.display())]
    Damaged {
        /// The image.
        image: PathBuf,
        /// The file.
        file: String,
        /// Bytes that were read.
        got: u64,
        /// The size in its directory entry.
        expected: u64,
    },
    /// The system returned no random numbers.
    #[error("cannot get random bytes")]
    Random(#[source] std::io::Error),
}

/// A directory of an image.
#[derive(Debug, Clone)]
pub enum Dir {
    /// By its path, which is a constant or made of checked parts; links inside the image are followed.
    Path(String),
    /// By its inode, from a listing.
    Inode(u32),
}

impl std::fmt::Display for Dir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Inode(inode) => write!(f, "<{inode}>"),
        }
    }
}

/// An image that is being read.
#[derive(Debug)]
pub struct Ext4<'a> {
    program: &'a Path,
    image: &'a Path,
    confinement: Arc<Confinement>,
    started: Instant,
    limit: Duration,
}

impl<'a> Ext4<'a> {
    /// Prepares to read the file system in `image` with the debugfs `program`, for at most `limit` in total.
    /// For root the program runs as `nobody`, so others must be able to read the image.
    pub fn open(program: &'a Path, image: &'a Path, limit: Duration) -> Result<Self, DebugfsError> {
        let confinement = Arc::new(Confinement::to_read(image)?);
        Ok(Self {
            program,
            image,
            confinement,
            started: Instant::now(),
            limit,
        })
    }

    /// Those of `paths` that exist, of any kind.
    pub fn present<'p>(&self, paths: &[&'p str]) -> Result<Vec<&'p str>, DebugfsError> {
        // `imap` prints where an inode is, and nothing that the image controls.
        let questions: Vec<_> = paths.iter().map(|path| format!("imap {path}")).collect();
        let answers = self.ask(&questions)?;
        let found = |answer: &[u8]| answer.starts_with(b"Inode ");
        Ok(paths
            .iter()
            .zip(answers)
            .filter_map(|(path, answer)| found(&answer).then_some(*path))
            .collect())
    }

    /// The entries of each of `dirs`; `None` for one that does not exist or is not a directory.
    pub fn list(&self, dirs: &[Dir]) -> Result<Vec<Option<Vec<Entry>>>, DebugfsError> {
        let questions: Vec<_> = dirs.iter().map(|dir| format!("ls -p {dir}")).collect();
        let answers = self.ask(&questions)?;
        let believed = dirs.iter().zip(answers).map(|(dir, answer)| {
            listing::parse(&answer).map_err(|source| self.refused(dir.to_string(), source))
        });
        believed.collect()
    }

    /// The content of the regular file `entry`, at most `limit` bytes; `name` is for messages.
    pub fn read(&self, entry: &Entry, name: &str, limit: u64) -> Result<Vec<u8>, DebugfsError> {
        let image = || self.image.to_owned();
        let file = || name.to_owned();
        if entry.bytes > limit {
            return Err(DebugfsError::TooLong {
                image: image(),
                file: file(),
                bytes: entry.bytes,
                limit,
            });
        }
        let read = self.run(&format!("cat <{}>", entry.inode), entry.bytes)?;
        if read.cut || read.stdout.len() as u64 != entry.bytes {
            return Err(DebugfsError::Damaged {
                image: image(),
                file: file(),
                got: read.stdout.len() as u64,
                expected: entry.bytes,
            });
        }
        Ok(read.stdout)
    }

    /// The first bytes of the file at `path`, at most `most`; empty if it does not exist. For anything but a
    /// regular file the result is debugfs's own.
    pub fn head(&self, path: &str, most: u64) -> Result<Vec<u8>, DebugfsError> {
        Ok(self.run(&format!("cat {path}"), most)?.stdout)
    }

    /// One request, whose output is kept up to `most` bytes.
    fn run(&self, request: &str, most: u64) -> Result<Captured, DebugfsError> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let command = self.command().args(["-R", request]).arg(self.confinement.name());
        command
            .output_limit(most)
            .capture()
            .map_err(|source| self.failed(source))
    }

    /// The outputs of `questions`, each of which is one request. They are separated by a random mark that an
    /// image cannot contain.
    fn ask(&self, questions: &[String]) -> Result<Vec<Vec<u8>>, DebugfsError> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let mark = digest::hex(&random::bytes::<16>().map_err(DebugfsError::Random)?);
        let mark = format!("imap /{mark}");
        let script: String = questions
            .iter()
            .flat_map(|question| [question, "\n", mark.as_str(), "\n"])
            .collect();
        let command = self.command().args(["-f", "-"]).arg(self.confinement.name());
        let done = command.stdin(script).output_limit(ANSWER_LIMIT).run();
        let output = done.map_err(|source| self.failed(source))?.stdout;
        let answers = listing::answers(&output, questions, &mark);
        answers.map_err(|unanswered| DebugfsError::NoAnswer {
            image: self.image.to_owned(),
            asked: questions[unanswered].clone(),
        })
    }

    /// `-c` skips the bitmaps, which are most of the work in a large image, and opens read-only.
    fn command(&self) -> Cmd {
        Cmd::new(self.program)
            .arg("-c")
            .confined(Arc::clone(&self.confinement))
            .env("DEBUGFS_PAGER", "__none__")
            .limit(self.limit.saturating_sub(self.started.elapsed()))
    }

    /// The error for an invalid directory.
    pub(crate) fn refused(&self, dir: String, source: ListingError) -> DebugfsError {
        DebugfsError::Listing {
            image: self.image.to_owned(),
            dir,
            source,
        }
    }

    fn failed(&self, source: CommandError) -> DebugfsError {
        DebugfsError::Run {
            image: self.image.to_owned(),
            source,
        }
    }
}
