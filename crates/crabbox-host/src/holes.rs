//! Punches holes into a lease's disk file, so that blocks freed by the guest return to the host's file
//! system.
//!
//! The file is opened once and used only through its descriptor. The program that writes to it may be
//! compromised, so a path that is a link, a shared file or another user's file is refused, and nothing beyond
//! the file's length may be changed.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;

use crate::files::FileError;

/// Alignment of offsets and lengths, in bytes: no common file system has smaller blocks, and partial blocks
/// would be zeroed, not freed.
pub const GRAIN: u64 = 4096;

/// Why a disk's blocks cannot be freed.
#[derive(Debug, thiserror::Error)]
pub enum HoleError {
    /// The file could not be opened or inspected.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not a private file of the lease.
    #[error("will not punch holes into {}: it is not a file of user {owner} alone", path.display())]
    NotPrivate {
        /// The file.
        path: PathBuf,
        /// The expected owner.
        owner: u32,
    },
    /// The range is not inside the file.
    #[error("there are no whole blocks from {offset} on for {length} bytes in a file of {size} bytes")]
    Outside {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
        /// The file's length.
        size: u64,
    },
    /// The file system does not support holes.
    #[error("its file system cannot free parts of a file")]
    Unsupported,
    /// The system call failed otherwise.
    #[error("cannot free a part of it")]
    Punch(#[source] std::io::Error),
}

/// A private disk file into which holes can be punched.
#[derive(Debug)]
pub struct Holes {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Holes {
    /// Opens the disk at `path`, which must be a regular file with no other name that belongs to user
    /// `owner`.
    pub fn open(path: &Path, owner: u32) -> Result<Self, HoleError> {
        // NONBLOCK: opening a pipe of that name must not block.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP => HoleError::NotPrivate {
                path: path.to_owned(),
                owner,
            },
            errno => FileError::io("open", path, errno).into(),
        })?;
        let file = File::from(file);
        let facts = file
            .metadata()
            .map_err(|source| FileError::io("inspect", path, source))?;
        if !facts.is_file() || facts.nlink() != 1 || facts.uid() != owner {
            return Err(HoleError::NotPrivate {
                path: path.to_owned(),
                owner,
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            length: facts.len(),
        })
    }

    /// Length of the disk in bytes, as it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that the disk occupies now.
    pub fn allocated(&self) -> Result<u64, HoleError> {
        let facts = self.file.metadata();
        let facts = facts.map_err(|source| FileError::io("inspect", &self.path, source))?;
        Ok(facts.blocks() * 512)
    }

    /// Whether `length` bytes from `offset` on are whole blocks of the disk.
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        let end = offset.checked_add(length);
        length > 0
            && offset.is_multiple_of(GRAIN)
            && length.is_multiple_of(GRAIN)
            && end.is_some_and(|end| end <= self.length)
    }

    /// Frees every run of zeros of at least `least` bytes; the contents do not change. Returns the number of
    /// freed bytes. Stops with `None` as soon as `stop` says so, which is called before each MiB.
    pub fn punch_zeros(&self, least: u64, stop: &dyn Fn() -> bool) -> Result<Option<u64>, HoleError> {
        let fail = |source| FileError::io("read", &self.path, source);
        let (mut freed, mut run) = (0, 0);
        let mut free = |end: u64, run: u64| -> Result<(), HoleError> {
            if run >= least.max(GRAIN) {
                self.punch(end - run, run)?;
                freed += run;
            }
            Ok(())
        };
        let mut chunk = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.length {
            if stop() {
                return Ok(None);
            }
            let count = self.file.read_at(&mut chunk, at).map_err(fail)?;
            let whole = count - count % usize::try_from(GRAIN).unwrap_or(1);
            if whole == 0 {
                break;
            }
            for page in chunk[..whole].chunks(usize::try_from(GRAIN).unwrap_or(1)) {
                if page.iter().all(|byte| *byte == 0) {
                    run += GRAIN;
                } else {
                    free(at, run)?;
                    run = 0;
                }
                at += GRAIN;
            }
        }
        free(at, run)?;
        Ok(Some(freed))
    }

    /// Frees `length` bytes at `offset`; they then read as zeros, and the file's length does not change.
    pub fn punch(&self, offset: u64, length: u64) -> Result<(), HoleError> {
        if !self.contains(offset, length) {
            return Err(HoleError::Outside {
                offset,
                length,
                size: self.length,
            });
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, offset, length).map_err(|errno| match errno {
            Errno::OPNOTSUPP | Errno::NOSYS => HoleError::Unsupported,
            errno => HoleError::Punch(errno.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn full(dir: &Path) -> PathBuf {
        let path = dir.join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        path
    }

    #[test]
    fn what_is_punched_reads_as_zeros_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let holes = Holes::open(&full(dir.path()), own()).unwrap();
        let before = holes.allocated().unwrap();
        holes.punch(8192, 512 << 10).unwrap();
        holes.punch(8192, 4096).unwrap();
        assert_eq!(before - holes.allocated().unwrap(), 512 << 10);
        let mut bytes = vec![1; 1 << 20];
        holes.file.read_exact_at(&mut bytes, 0).unwrap();
        let end = 8192 + (512 << 10);
        assert!(bytes[8192..end].iter().all(|byte| *byte == 0));
        assert!(bytes[..8192].iter().chain(&bytes[end..]).all(|byte| *byte == 7));
    }

    #[test]
    fn runs_of_zeros_are_freed_and_everything_reads_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut bytes = vec![0; (2 << 20) + 4096 + 5];
        for at in [0, 70_000, 1 << 20, (2 << 20) + 4096] {
            bytes[at] = 7;
        }
        std::fs::write(&path, &bytes).unwrap();
        let holes = Holes::open(&path, own()).unwrap();
        let before = holes.allocated().unwrap();
        assert_eq!(holes.punch_zeros(64 << 10, &|| true).unwrap(), None);
        assert_eq!(before, holes.allocated().unwrap());
        let freed = holes.punch_zeros(64 << 10, &|| false).unwrap().unwrap();
        assert_eq!(before - holes.allocated().unwrap(), freed);
        assert!(freed > 1_900_000, "{freed}");
        assert!(std::fs::read(&path).unwrap() == bytes);
        assert_eq!(
            Holes::open(&path, own())
                .unwrap()
                .punch_zeros(4 << 20, &|| false)
                .unwrap(),
            Some(0)
        );
    }

    #[test]
    fn nothing_outside_of_the_file_or_less_than_a_block_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = full(dir.path());
        let holes = Holes::open(&path, own()).unwrap();
        let size = 1 << 20;
        for (offset, length) in [
            (0, 0),
            (1, 4096),
            (4096, 1),
            (0, size + 4096),
            (size, 4096),
            (u64::MAX - 4095, 4096),
            (4096, u64::MAX - 4095),
        ] {
            let error = holes.punch(offset, length).unwrap_err();
            assert!(
                matches!(error, HoleError::Outside { .. }),
                "{offset} {length}: {error}"
            );
        }
        assert!(std::fs::read(&path).unwrap() == vec![7; 1 << 20]);
    }

    #[test]
    fn a_link_a_shared_file_and_somebody_elses_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = full(dir.path());
        let refused =
            |path: &Path, owner| matches!(Holes::open(path, owner), Err(HoleError::NotPrivate { .. }));
        assert!(!refused(&path, own()));
        assert!(refused(&path, own() + 1));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link, own()));
        std::fs::hard_link(&path, dir.path().join("other")).unwrap();
        assert!(refused(&path, own()), "it has two names");
        assert!(refused(Path::new("/dev/null"), own()));
        assert!(matches!(Holes::open(dir.path(), own()), Err(HoleError::File(_))));
    }
    #[test]
    fn a_file_system_that_keeps_files_whole_is_told_from_a_failure() {
        // A procfs file, which has no blocks to free.
        let path = PathBuf::from("/proc/self/comm");
        let holes = Holes {
            file: File::options().read(true).write(true).open(&path).unwrap(),
            path,
            length: 4096,
        };
        assert!(matches!(holes.punch(0, 4096), Err(HoleError::Unsupported)));
        let read_only = Holes {
            file: File::open("/proc/self/exe").unwrap(),
            path: PathBuf::new(),
            length: 4096,
        };
        assert!(matches!(read_only.punch(0, 4096), Err(HoleError::Punch(_))));
    }
}
