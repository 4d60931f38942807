//! The file systems of volumes: ext4 with a journal, because a volume has to survive the sudden end of its
//! machine.
//!
//! Guests wrote what is checked here, so every program that reads it is confined. A volume is never mounted
//! on the host, never shrunk, and never reported as damaged because a check could not be done.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crabbox_host::clone;
use crabbox_host::command::Captured;
use crabbox_host::confine::Confinement;
use crabbox_host::files::{self, FileError};

use super::{DiskError, Format, confined, format_in_memory};
use crate::inspect::{self, InspectError};

/// The label of a volume.
const LABEL: &str = "crabbox-volume";

/// A layer's features, and those that a lasting file system needs: a journal, backup superblocks, and room
/// for the group descriptors of a larger size.
const VOLUME: Format = Format {
    features: "none,has_journal,resize_inode,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
               huge_file,dir_nlink,extra_isize,metadata_csum",
    label: LABEL,
    extended: "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
};

/// Time limit for a check, which usually only replays a journal of some MiB.
const CHECK_LIMIT: Duration = Duration::from_mins(2);
/// Time limit for growing a volume, and for the full check before it.
const GROW_LIMIT: Duration = Duration::from_mins(5);

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a damaged volume must not be attached"]
pub enum Health {
    /// The file system is intact, possibly after its journal was replayed.
    Whole,
    /// Repairing it requires a decision about its files.
    Damaged {
        /// The checker's last message.
        why: String,
    },
}

/// Makes the new file `path` a private (mode 0600), empty, sparse volume of `size_mib` MiB, and syncs it to
/// disk.
pub fn make(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    format_in_memory(path, size_mib, &VOLUME)?;
    sync(path)
}

/// Replays the journal of the volume `path`, a file of ours, and repairs what can be repaired without data
/// loss. Fails once `cancelled` returns true.
pub fn mend(path: &Path, cancelled: &dyn Fn() -> bool) -> Result<Health, DiskError> {
    check(path, &["-p"], CHECK_LIMIT, cancelled)
}

/// Whether the file system of the volume `path`, which was just found intact, is smaller than `size_mib` MiB,
/// because it must grow or because growing was interrupted.
pub fn is_smaller(path: &Path, size_mib: u64) -> Result<bool, DiskError> {
    let facts = inspect::superblock(path)?;
    // A difference of less than one block does not count.
    Ok(facts.bytes().saturating_add(u64::from(facts.block_size)) <= size_mib.saturating_mul(1 << 20))
}

/// Makes the new file `copy` a copy of the volume `path`, which was found intact, with a file system of
/// `size_mib` MiB. Only a complete copy is [`Health::Whole`]; `path` itself keeps its size. Fails once
/// `cancelled` returns true.
///
/// resize2fs has no journal: if it is killed at the wrong moment, in one of five cases it leaves a file
/// system that cannot be repaired without a decision about its files. So it never works on the only copy.
pub fn grow(
    path: &Path,
    copy: &Path,
    size_mib: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<Health, DiskError> {
    // resize2fs insists on a full check since the last mount.
    if let damaged @ Health::Damaged { .. } = check(path, &["-f", "-p"], GROW_LIMIT, cancelled)? {
        return Ok(damaged);
    }
    clone::clone_file(path, copy)?;
    super::undo_unless_ok(resize(copy, size_mib, cancelled), copy)?;
    Ok(Health::Whole)
}

/// Grows the file system in `copy`; the file may already be longer.
fn resize(copy: &Path, size_mib: u64, cancelled: &dyn Fn() -> bool) -> Result<(), DiskError> {
    let bytes = size_mib.saturating_mul(1 << 20).max(length(copy)?);
    clone::grow_file(copy, bytes)?;
    let confinement = Arc::new(Confinement::to_change(copy, bytes)?);
    let grown = confined("resize2fs", &confinement)
        .limit(GROW_LIMIT)
        .arg(confinement.name())
        .arg(format!("{size_mib}M"))
        .capture_unless(cancelled)
        .map_err(|source| DiskError::Tool {
            attempt: "grow the file system of",
            disk: copy.to_owned(),
            source,
        })?;
    if !grown.status.success() {
        return Err(unchecked(copy, "resize2fs", &grown));
    }
    sync(copy)
}

fn length(path: &Path) -> Result<u64, DiskError> {
    let facts = files::open_regular(path)
        .and_then(|file| file.metadata())
        .map_err(|source| FileError::io("inspect", path, source))?;
    Ok(facts.len())
}

fn check(
    path: &Path,
    options: &[&str],
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<Health, DiskError> {
    let confinement = Arc::new(Confinement::to_change(path, length(path)?)?);
    let checked = confined("e2fsck", &confinement)
        .args(options)
        .arg(confinement.name())
        .limit(limit)
        .capture_unless(cancelled)
        .map_err(|source| DiskError::Tool {
            attempt: "check",
            disk: path.to_owned(),
            source,
        })?;
    // The exit code is a bit mask: 1 and 2 mean "errors, all repaired" (e2fsck(8)).
    if checked.status.code().is_some_and(|code| code & !3 == 0) {
        return Ok(Health::Whole);
    }
    if is_damage(path, &checked)? {
        let why = how_it_ended("e2fsck", &checked);
        return Ok(Health::Damaged { why });
    }
    Err(unchecked(path, "e2fsck", &checked))
}

/// Whether a failed check found damage. Any other cause may be the host's: a signal, a lack of memory or disk
/// space, an unreadable disk, or a feature that only a newer checker supports.
fn is_damage(path: &Path, checked: &Captured) -> Result<bool, DiskError> {
    const UNCORRECTED: i32 = 4;
    const OPERATIONAL: i32 = 8;
    let Some(code) = checked.status.code() else {
        return Ok(false);
    };
    let output = checked.stdout_text() + &checked.stderr_text();
    // With -p e2fsck reports these like damage, with the same exit code: e2fsck/ehandler.c.
    if output.contains("Error reading block") || output.contains("Error writing block") {
        return Ok(false);
    }
    match code & !3 {
        UNCORRECTED => Ok(true),
        OPERATIONAL => {
            // The messages are from lib/ext2fs/ext2_err.et; LC_ALL=C keeps them untranslated.
            const BAD: [&str; 3] = [
                "Bad magic number in super-block",
                "Superblock checksum does not match superblock",
                "The ext2 superblock is corrupt",
            ];
            let is_none = match inspect::superblock(path) {
                Ok(_) => false,
                Err(InspectError::File(error)) => return Err(error.into()),
                Err(InspectError::NotExt4 { .. } | InspectError::Damaged { .. }) => true,
            };
            Ok(is_none || BAD.iter().any(|bad| output.contains(bad)))
        }
        _ => Ok(false),
    }
}

fn unchecked(path: &Path, program: &str, ended: &Captured) -> DiskError {
    DiskError::Unchecked {
        disk: path.to_owned(),
        how: how_it_ended(program, ended),
    }
}

/// How a program ended, with its last line of output.
fn how_it_ended(program: &str, ended: &Captured) -> String {
    let output = ended.stdout_text() + "\n" + &ended.stderr_text();
    let last = output.lines().map(str::trim).rfind(|line| !line.is_empty());
    let ending = match (ended.status.code(), ended.status.signal()) {
        (Some(code), _) => format!("{program} exited with {code}"),
        (None, signal) => format!("{program} was ended by signal {}", signal.unwrap_or_default()),
    };
    last.map_or_else(|| ending.clone(), |last| format!("{ending}: {}", short(last)))
}

/// A line of a program that has read a guest's data, with everything but printable ASCII replaced.
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
    use std::process::ExitStatus;

    use crabbox_host::clock;
    use crabbox_host::command::{Cmd, CommandError};

    use super::*;

    fn occupied(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * 512
    }

    /// Writes a file into the volume with debugfs, as a guest would.
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
        assert_eq!(mend(&path, &|| false).unwrap(), Health::Whole);
        assert!(make(&path, 1024).is_err(), "it never replaces a file");
    }

    #[test]
    fn one_that_grows_keeps_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("volume"), dir.path().join("copy"));
        make(&path, 64).unwrap();
        write(&path, "precious");
        assert_eq!(grow(&path, &copy, 2048, &|| false).unwrap(), Health::Whole);
        assert_eq!(inspect::superblock(&copy).unwrap().bytes(), 2 << 30);
        assert_eq!(mend(&copy, &|| false).unwrap(), Health::Whole);
        assert_eq!(copy.metadata().unwrap().mode() & 0o7777, 0o600);
        // The original is unchanged, whatever happens to the copy.
        assert_eq!(inspect::superblock(&path).unwrap().bytes(), 64 << 20);
        assert_eq!((read(&path), read(&copy)), ("precious".into(), "precious".into()));
        assert!(
            grow(&path, &copy, 128, &|| false).is_err(),
            "it never replaces a file"
        );
        assert_eq!(read(&copy), "precious");
    }

    #[test]
    fn a_damaged_one_is_told_and_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        write(&path, "precious");
        let file = File::options().write(true).open(&path).unwrap();
        // The superblock, and the group's tables after it; a volume with a single group has no backup
        // superblock.
        file.write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
        let Health::Damaged { why } = mend(&path, &|| false).unwrap() else {
            panic!("it cannot be whole");
        };
        assert!(why.starts_with("e2fsck exited with 8"), "{why}");
        let copy = dir.path().join("copy");
        let grown = grow(&path, &copy, 128, &|| false).unwrap();
        assert!(matches!(grown, Health::Damaged { .. }) && !copy.exists());
        assert_eq!(path.metadata().unwrap().len(), 64 << 20, "it was not grown");
    }

    #[test]
    fn a_file_that_is_longer_than_its_file_system_still_has_to_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("volume"), dir.path().join("copy"));
        make(&path, 64).unwrap();
        write(&path, "precious");
        assert!(!is_smaller(&path, 64).unwrap() && is_smaller(&path, 65).unwrap());
        clone::grow_file(&path, 256 << 20).unwrap();
        assert_eq!(mend(&path, &|| false).unwrap(), Health::Whole);
        assert!(is_smaller(&path, 128).unwrap());
        assert_eq!(grow(&path, &copy, 128, &|| false).unwrap(), Health::Whole);
        assert!(!is_smaller(&copy, 128).unwrap());
        assert_eq!(inspect::superblock(&copy).unwrap().bytes(), 128 << 20);
        assert_eq!(read(&copy), "precious");
    }

    #[test]
    fn only_what_the_checker_says_of_the_file_system_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        let ended = |status: i32, said: &str| Captured {
            status: ExitStatus::from_raw(status),
            stdout: said.as_bytes().to_vec(),
            stderr: Vec::new(),
            cut: false,
        };
        let is_damage = |status, said| is_damage(&path, &ended(status, said)).unwrap();
        assert!(is_damage(4 << 8, "UNEXPECTED INCONSISTENCY"));
        assert!(is_damage(5 << 8, ""));
        assert!(is_damage(
            8 << 8,
            "e2fsck: Superblock checksum does not match superblock while trying to open /file"
        ));
        for (status, said) in [
            (9, ""),
            (11, ""),
            (
                4 << 8,
                "Error writing block 7 (Attempt to write block to filesystem resulted in short write).",
            ),
            (
                8 << 8,
                "e2fsck: Memory allocation failed while trying to open /file",
            ),
            (8 << 8, "/file has unsupported feature(s): FEATURE_R31"),
            (12 << 8, ""),
            (16 << 8, ""),
            (32 << 8, ""),
            (127 << 8, ""),
        ] {
            assert!(!is_damage(status, said), "{status} {said}");
        }
    }

    #[test]
    fn a_file_system_that_only_a_newer_checker_knows_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        write(&path, "precious");
        let set = Cmd::new("debugfs")
            .args(["-w", "-R", "feature FEATURE_R31"])
            .arg(&path)
            .run();
        drop(set.unwrap());
        let told = mend(&path, &|| false).unwrap_err();
        assert!(
            matches!(&told, DiskError::Unchecked { how, .. } if how.contains("e2fsck exited with 8")),
            "{told}"
        );
    }

    #[test]
    fn a_check_ends_when_its_user_gives_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        for told in [
            mend(&path, &|| true),
            grow(&path, &dir.path().join("copy"), 128, &|| true),
        ] {
            assert!(
                matches!(
                    told,
                    Err(DiskError::Tool {
                        source: CommandError::Cancelled { .. },
                        ..
                    })
                ),
                "{told:?}"
            );
        }
    }

    #[test]
    fn no_checker_outlives_who_started_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make(&path, 64).unwrap();
        let confinement = Arc::new(Confinement::to_change(&path, 64 << 20).unwrap());
        let cmd = confined("sleep", &confinement).arg("600");
        // For the kernel, the death of the parent thread counts as the death of the parent.
        let mut child = std::thread::scope(|threads| {
            let started = threads.spawn(|| cmd.spawn(&mut cmd.to_std()));
            started.join().unwrap().unwrap()
        });
        let ended = clock::poll_until(Duration::from_secs(20), || child.try_wait().unwrap());
        child.kill().ok();
        child.wait().unwrap();
        assert_eq!(ended.and_then(|status| status.signal()), Some(9));
    }
}
