//! The file systems of volumes: ext4 with a journal, because a volume has to survive the sudden end of its machine.
//!
//! Guests have written what is checked here, so every program that reads it is confined. A volume is never mounted on the host, and never
//! made smaller.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crabbox_host::clone;
use crabbox_host::confine::Confinement;
use crabbox_host::files::{self, FileError};

use super::{DiskError, Format, confined, format_in_memory};
use crate::inspect;

/// The label of a volume.
const LABEL: &str = "crabbox-volume";

/// A layer's features, with what has to survive: a journal, backups of the superblock, and room for the descriptors of a larger one.
const VOLUME: Format = Format {
    features: "none,has_journal,resize_inode,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
               huge_file,dir_nlink,extra_isize,metadata_csum",
    label: LABEL,
    extended: "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
};

/// Time limit for a check: mostly it replays a journal of some MiB.
const CHECK_LIMIT: Duration = Duration::from_mins(2);
/// Time limit for growing one, and for the full check before it.
const GROW_LIMIT: Duration = Duration::from_mins(5);

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a damaged volume must not be attached"]
pub enum Health {
    /// The file system is whole, maybe since its journal was replayed.
    Whole,
    /// It cannot be mended without a decision about its files.
    Damaged {
        /// What the checker said last.
        why: String,
    },
}

/// Makes the new file `path` a private (mode 0600), empty, sparse volume of `size_mib` MiB, and has it on the disk.
pub fn make(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    format_in_memory(path, size_mib, &VOLUME)?;
    sync(path)
}

/// Replays the journal of the volume `path`, which is a file of ours, and mends what can be mended without loss.
pub fn mend(path: &Path) -> Result<Health, DiskError> {
    check(path, &["-p"], CHECK_LIMIT)
}

/// Grows the file system of the volume `path`, which was found whole, to `size_mib` MiB unless it is as large. When the process dies
/// meanwhile, the next check says whether it is whole, and the next call goes on.
pub fn grow(path: &Path, size_mib: u64) -> Result<Health, DiskError> {
    let bytes = size_mib.saturating_mul(1 << 20);
    if inspect::superblock(path)?.bytes() >= bytes {
        return Ok(Health::Whole);
    }
    // resize2fs insists on a full check since the last mount.
    if let damaged @ Health::Damaged { .. } = check(path, &["-f", "-p"], GROW_LIMIT)? {
        return Ok(damaged);
    }
    clone::grow_file(path, bytes)?;
    let confinement = Arc::new(Confinement::to_change(path, bytes)?);
    confined("resize2fs", &confinement)
        .limit(GROW_LIMIT)
        .arg(confinement.name())
        .run()
        .map_err(|source| DiskError::Tool {
            attempt: "grow the file system of",
            disk: path.to_owned(),
            source,
        })?;
    sync(path)?;
    Ok(Health::Whole)
}

fn check(path: &Path, options: &[&str], limit: Duration) -> Result<Health, DiskError> {
    let length = files::open_regular(path)
        .and_then(|file| file.metadata())
        .map_err(|source| FileError::io("look at", path, source))?
        .len();
    let confinement = Arc::new(Confinement::to_change(path, length)?);
    let checked = confined("e2fsck", &confinement)
        .args(options)
        .arg(confinement.name())
        .limit(limit)
        .capture()
        .map_err(|source| DiskError::Tool {
            attempt: "check",
            disk: path.to_owned(),
            source,
        })?;
    // The exit code is a bit mask: 1 and 2 mean "errors, all repaired" (e2fsck(8)).
    if checked.status.code().is_some_and(|code| code & !3 == 0) {
        return Ok(Health::Whole);
    }
    // A checker that its file brings down is one that found it damaged.
    let said = checked.stdout_text() + &checked.stderr_text();
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    let how = match (checked.status.code(), checked.status.signal()) {
        (Some(code), _) => format!("e2fsck exited with {code}"),
        (None, signal) => format!("e2fsck was ended by signal {}", signal.unwrap_or_default()),
    };
    Ok(Health::Damaged {
        why: last.map_or_else(|| how.clone(), |last| format!("{how}: {}", short(last))),
    })
}

/// A line of a program that read what a guest wrote, without what could repaint a terminal.
fn short(line: &str) -> String {
    let clean = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    line.chars().map(clean).take(160).collect()
}

fn sync(path: &Path) -> Result<(), DiskError> {
    let synced = files::open_regular(path).and_then(|file| file.sync_all());
    Ok(synced.map_err(|source| FileError::io("write out", path, source))?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use crabbox_host::command::Cmd;

    use super::*;

    fn occupied(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * 512
    }

    /// Has debugfs write a file into the volume, as a guest would.
    fn write(path: &Path, content: &str) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept");
        std::fs::write(&file, content).unwrap();
        Cmd::new("debugfs")
            .args(["-w", "-R", &format!("write {} kept", file.display())])
            .arg(path)
            .run()
            .unwrap();
    }

    fn read(path: &Path) -> String {
        let read = Cmd::new("debugfs").args(["-R", "cat kept"]).arg(path).run();
        read.unwrap().stdout_text()
    }

    #[test]
    fn a_volume_has_a_journal_and_costs_little() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 10 * 1024).unwrap();
        let facts = inspect::superblock(&path).unwrap();
        assert_eq!(
            (facts.label.as_str(), facts.bytes(), facts.journal),
            (LABEL, 10 << 30, true)
        );
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(occupied(&path) < 8 << 20, "{} bytes", occupied(&path));
        assert_eq!(mend(&path).unwrap(), Health::Whole);
        assert!(make(&path, 1024).is_err(), "it never replaces a file");
    }

    #[test]
    fn one_that_grows_keeps_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        write(&path, "precious");
        assert_eq!(grow(&path, 2048).unwrap(), Health::Whole);
        assert_eq!(inspect::superblock(&path).unwrap().bytes(), 2 << 30);
        assert_eq!(read(&path), "precious");
        assert_eq!(mend(&path).unwrap(), Health::Whole);
        // It never gets smaller.
        assert_eq!(grow(&path, 64).unwrap(), Health::Whole);
        assert_eq!(inspect::superblock(&path).unwrap().bytes(), 2 << 30);
    }

    #[test]
    fn a_damaged_one_is_told_and_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        write(&path, "precious");
        let file = File::options().write(true).open(&path).unwrap();
        // The superblock, and the group's tables behind it; a volume of one group has no backup.
        file.write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
        let Health::Damaged { why } = mend(&path).unwrap() else {
            panic!("it cannot be whole");
        };
        assert!(why.starts_with("e2fsck exited with 8"), "{why}");
        assert!(grow(&path, 128).is_err(), "it is no file system");
        assert_eq!(path.metadata().unwrap().len(), 64 << 20, "it was not grown");
    }
}
