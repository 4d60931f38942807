//! The logs of a lease: the guest's serial console, the VMM's log, and the supervisor's log.
//!
//! The lease itself or its VMM writes the first two, so a file is read only if it is a regular file and not a
//! link, and its text must be neutralised before it reaches a terminal.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;
use crabbox_host::bounded_log::older;
use crabbox_store::leases;
use crabbox_store::places::LeaseDir;
use rustix::fs::{Mode, OFlags};

use crate::context::Engine;
use crate::lease::find::{self, Purpose, ResolveError};

/// Bytes of one file that are read at first, counted from its end. The console is limited to far less.
const FIRST_LIMIT: u64 = 64 << 20;

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The guest's serial console.
    Console,
    /// The VMM's log.
    Vmm,
    /// The supervisor's log.
    Supervisor,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// There is no such lease.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The log was never written.
    #[error("lease {id} has no {what}: {} does not exist", path.display())]
    Missing {
        /// The lease.
        id: String,
        /// Which log.
        what: &'static str,
        /// Its expected path.
        path: PathBuf,
    },
    /// The path is not a regular file.
    #[error("{} is not a regular file, so it is not read", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl Fault for LogsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::Missing { .. } => Kind::Unavailable,
            Self::NotAFile { .. } | Self::Read { .. } => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Resolve(error) => error.hints(),
            Self::Missing {
                what: "console log", ..
            } => vec!["--vmm shows the VMM's own log".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// A log that can be read from its beginning and then followed.
#[derive(Debug)]
pub struct Log {
    dir: LeaseDir,
    path: PathBuf,
    /// The file being read; its offset is at the end of what has been read.
    file: File,
    inode: u64,
}

/// Opens the log and reads its current contents.
pub fn open(engine: &Engine, text: &str, source: Source) -> Result<(Log, Vec<u8>), LogsError> {
    let found = find::find(&engine.places, text, Purpose::Look)?;
    let Some(stored) = found.stored else {
        return Err(ResolveError::StaleClaim { id: found.id }.into());
    };
    let (what, path) = match source {
        Source::Console => ("console log", stored.dir.console()),
        Source::Vmm if stored.record.log_path.is_empty() => ("VMM log", stored.dir.vmm_log()),
        Source::Vmm => ("VMM log", PathBuf::from(&stored.record.log_path)),
        Source::Supervisor => ("supervisor log", stored.dir.supervisor_log()),
    };
    let mut bytes = Vec::new();
    if source != Source::Vmm
        && let Some((mut file, _)) = open_regular(&older(&path))?
    {
        read_newest(&mut file, &path, &mut bytes)?;
    }
    let Some((mut file, inode)) = open_regular(&path)? else {
        return Err(LogsError::Missing {
            id: stored.record.lease_id,
            what,
            path,
        });
    };
    read_newest(&mut file, &path, &mut bytes)?;
    Ok((
        Log {
            dir: stored.dir,
            path,
            file,
            inode,
        },
        bytes,
    ))
}

impl Log {
    /// The directory of its lease.
    pub fn dir(&self) -> &LeaseDir {
        &self.dir
    }

    /// Returns what was written since the last call; follows a rotated log.
    pub fn more(&mut self) -> Result<Vec<u8>, LogsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LogsError::Read { path, source }
        };
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).map_err(failed(&self.path))?;
        // The file may be gone with its lease.
        if let Some((mut file, inode)) = open_regular(&self.path)?
            && inode != self.inode
        {
            // Read what was written to the old file between our last read and the rotation.
            self.file.read_to_end(&mut bytes).map_err(failed(&self.path))?;
            file.read_to_end(&mut bytes).map_err(failed(&self.path))?;
            (self.file, self.inode) = (file, inode);
        }
        Ok(bytes)
    }

    /// Whether the log is complete: the lease is gone or its machine does not run.
    pub fn is_over(&self) -> bool {
        // A lease that is being made has no process yet; its record says so.
        leases::read(&self.dir).map_or(true, |stored| {
            !find::is_running(&stored.record)
                && crabbox_core::labels::state(&stored.record.labels) != LeaseState::Provisioning
        })
    }
}

/// Opens a regular file; `None` if it does not exist. Never follows a link and never waits for the writer of
/// a pipe.
fn open_regular(path: &Path) -> Result<Option<(File, u64)>, LogsError> {
    let failed = |source: io::Error| LogsError::Read {
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => {
            return Err(LogsError::NotAFile {
                path: path.to_owned(),
            });
        }
        Err(errno) => return Err(failed(errno.into())),
    };
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(LogsError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(Some((file, facts.ino())))
}

fn read_newest(file: &mut File, path: &Path, into: &mut Vec<u8>) -> Result<(), LogsError> {
    let failed = |source| LogsError::Read {
        path: path.to_owned(),
        source,
    };
    let size = file.metadata().map_err(failed)?.len();
    if size > FIRST_LIMIT {
        file.seek(SeekFrom::Start(size - FIRST_LIMIT)).map_err(failed)?;
    }
    file.read_to_end(into).map_err(failed)?;
    Ok(())
}
