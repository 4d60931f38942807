//! The journal file of a lease, `journal.jsonl`: one line per entry, appended before and after each effect.
//!
//! The first write creates the file and syncs it and its directory to disk, so that a lease is never without
//! a journal. Later lines are one `write` each and are not synced unless their effect survives a reboot: they
//! only need to survive the death of our processes, and the page cache does. After a crash of the host none
//! of the kernel's objects exist any more, and files are found by their paths.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::journal::{Entry, Journal, JournalError, Step};
use crabbox_core::process::ProcessId;
use crabbox_host::files;

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalFileError {
    /// The file cannot be read.
    #[error("cannot read journal {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write journal {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a journal.
    #[error("journal {} cannot be used", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: JournalError,
    },
}

impl JournalFileError {
    /// Whether a newer version of this program wrote it.
    pub fn is_too_new(&self) -> bool {
        matches!(
            self,
            Self::Corrupt {
                source: JournalError::TooNew { .. },
                ..
            }
        )
    }
}

/// An open journal. Only the holder of the lease's lock may have one.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    file: File,
    /// Its length in bytes, up to the end of the last complete line.
    whole: u64,
    state: Journal,
}

/// An effect that is about to happen. Close it with [`Pending::done`] once the effect has happened. Dropping
/// it leaves the step live, which is right for a failed effect: its undo also handles a partial effect.
#[derive(Debug)]
#[must_use = "an effect that happened must be marked done"]
pub struct Pending {
    seq: u32,
}

impl JournalFile {
    /// Starts the journal of a new lease; the file must not exist.
    pub fn create(path: &Path, open: &Entry) -> Result<Self, JournalFileError> {
        let fail = |source| JournalFileError::Write {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            whole: 0,
            state: Journal::default(),
        };
        journal.append(open)?;
        journal.file.sync_all().map_err(fail)?;
        // Sync the journal's name and the lease directory's name.
        for dir in path.ancestors().skip(1).take(2) {
            files::sync_dir(dir).map_err(|error| fail(std::io::Error::other(error)))?;
        }
        Ok(journal)
    }

    /// Opens the journal of an existing lease; `None` if there is none (a lease of the Go program).
    pub fn open(path: &Path) -> Result<Option<Self>, JournalFileError> {
        let Some(state) = read(path)? else { return Ok(None) };
        let fail = |source| JournalFileError::Write {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
        // Cut off a torn last line, so that new entries start on a line of their own.
        let bytes = std::fs::read(path).map_err(fail)?;
        let whole = whole_lines(&bytes) as u64;
        file.set_len(whole).map_err(fail)?;
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            whole,
            state,
        }))
    }

    /// The state that the journal describes.
    pub fn state(&self) -> &Journal {
        &self.state
    }

    /// Writes the intent of `step`.
    pub fn begin(&mut self, step: Step) -> Result<Pending, JournalFileError> {
        let seq = self.state.next_seq;
        let durable = step.outlives_boot();
        self.append(&Entry::Begin { seq, step })?;
        if durable {
            self.sync()?;
        }
        Ok(Pending { seq })
    }

    /// Writes the mark of the effect, with the process that it started.
    #[expect(clippy::needless_pass_by_value, reason = "what is done is pending no more")]
    pub fn done(&mut self, pending: Pending, process: Option<ProcessId>) -> Result<(), JournalFileError> {
        let Pending { seq } = pending;
        self.append(&Entry::Done { seq, process })
    }

    /// Syncs what was written: for a mark that decides how the lease is treated after a crash of the host.
    pub fn sync(&self) -> Result<(), JournalFileError> {
        self.file.sync_data().map_err(|source| JournalFileError::Write {
            path: self.path.clone(),
            source,
        })
    }

    /// Writes that step `seq` was undone.
    pub fn undone(&mut self, seq: u32) -> Result<(), JournalFileError> {
        self.append(&Entry::Undone { seq })
    }

    /// Writes a fact for later use.
    pub fn note(&mut self, name: &str, value: &str) -> Result<(), JournalFileError> {
        self.append(&Entry::Note {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }

    fn append(&mut self, entry: &Entry) -> Result<(), JournalFileError> {
        let fail = |source| JournalFileError::Write {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(entry).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        // Cut off a partial line that a full disk has left; otherwise it would make this line unreadable, and
        // with it the whole journal.
        self.file.set_len(self.whole).map_err(fail)?;
        if let Err(error) = self.file.write_all(&line) {
            // Best effort: a partial line is also cut off before the next write and by `open`.
            self.file.set_len(self.whole).ok();
            return Err(fail(error));
        }
        self.whole += line.len() as u64;
        self.state
            .apply(entry.clone())
            .map_err(|source| JournalFileError::Corrupt {
                path: self.path.clone(),
                source,
            })
    }
}

/// Reads a journal without the right to change it; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Journal>, JournalFileError> {
    let bytes = match files::read_named(path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(source) => {
            return Err(JournalFileError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    // A write may be torn within a character, so only complete lines are decoded.
    let journal = text(&bytes[..whole_lines(&bytes)])
        .and_then(Journal::parse)
        .map_err(|source| JournalFileError::Corrupt {
            path: path.to_owned(),
            source,
        })?;
    Ok(Some(journal))
}

/// Number of bytes up to the last complete line.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1)
}

fn text(bytes: &[u8]) -> Result<&str, JournalError> {
    std::str::from_utf8(bytes).map_err(|error| {
        // Lines count from 1: text without a line break is one line.
        let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        let bad = bytes
            .split(|byte| *byte == b'\n')
            .nth(line - 1)
            .unwrap_or_default();
        JournalError::BadLine {
            line,
            text: String::from_utf8_lossy(bad).chars().take(120).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::journal::VERSION;

    fn open_entry() -> Entry {
        Entry::Open {
            version: VERSION,
            lease: "cbx_0123456789ab".into(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        }
    }

    #[test]
    fn what_was_begun_is_live_until_undone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = JournalFile::create(&path, &open_entry()).unwrap();
        let pending = journal.begin(Step::Key { dir: "/k".into() }).unwrap();
        assert_eq!(
            read(&path).unwrap().unwrap().live.len(),
            1,
            "the intent is on disk before the effect"
        );
        journal.done(pending, None).unwrap();
        journal.note("disk", "reflink").unwrap();
        drop(journal);
        let mut again = JournalFile::open(&path).unwrap().unwrap();
        assert_eq!(again.state().note("disk"), Some("reflink"));
        again.undone(0).unwrap();
        assert!(read(&path).unwrap().unwrap().live.is_empty());
    }

    #[test]
    fn a_torn_line_is_dropped_and_later_entries_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        drop(JournalFile::create(&path, &open_entry()).unwrap());
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(br#"{"entry":"beg"#)
            .unwrap();
        let mut journal = JournalFile::open(&path).unwrap().unwrap();
        let pending = journal.begin(Step::Claim {}).unwrap();
        journal.done(pending, None).unwrap();
        drop(journal);
        assert_eq!(read(&path).unwrap().unwrap().live.len(), 1);
    }

    /// A small tmpfs of `bytes`, which the test mounts as root.
    struct Small(tempfile::TempDir);

    impl Small {
        fn new(bytes: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).unwrap();
            Self(dir)
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn a_line_that_a_full_disk_cut_costs_that_line_alone() {
        let small = Small::new(64 << 10);
        let path = small.0.path().join("journal.jsonl");
        let mut journal = JournalFile::create(&path, &open_entry()).unwrap();
        let pending = journal.begin(Step::Claim {}).unwrap();
        journal.done(pending, None).unwrap();
        // Fill the disk except for the page that the journal has begun, then fill that page.
        let fill = small.0.path().join("fill");
        std::fs::write(&fill, vec![0; 128 << 10]).unwrap_err();
        while journal.note("some", &"long ".repeat(50)).is_ok() {}
        assert!(journal.undone(7).is_err() || journal.note("more", &"x".repeat(300)).is_err());
        std::fs::remove_file(&fill).unwrap();
        journal.undone(0).unwrap();
        let there = read(&path).unwrap().unwrap();
        assert!(there.live.is_empty(), "{there:?}");
    }

    #[test]
    fn a_second_journal_is_never_started_over_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        drop(JournalFile::create(&path, &open_entry()).unwrap());
        assert!(JournalFile::create(&path, &open_entry()).is_err());
        assert!(read(&dir.path().join("none")).unwrap().is_none());
    }
}
