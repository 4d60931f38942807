//! Private copies of disk images: shared blocks (reflink) if the file system supports them, otherwise a copy
//! of the data without the holes.
//!
//! The cost depends on the data in the image, not on its length. It must never fill holes (`std::fs::copy`
//! does on ext4), overwrite an existing file, or leave a partial copy behind.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::files::{self, FileError};

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// The file system shares the blocks until one side writes (`FICLONE`): constant time, no space.
    Reflink,
    /// The data was copied and the holes were preserved.
    SparseCopy,
}

impl std::fmt::Display for CloneMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reflink => "reflink",
            Self::SparseCopy => "sparse copy",
        })
    }
}

/// Why an image could not be copied or grown.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The file system is full; the partial copy has been removed.
    #[error("no room to copy {} to {}: it needs {}, and {} are free there",
        from.display(), to.display(), mib(*.needed_bytes), mib(*.free_bytes))]
    NoSpace {
        /// The original.
        from: PathBuf,
        /// The intended copy.
        to: PathBuf,
        /// Bytes that the original occupies on the disk.
        needed_bytes: u64,
        /// Bytes free at the destination once the partial copy was removed.
        free_bytes: u64,
    },
    /// The original is not a plain file.
    #[error("cannot copy {}: it is not a regular file", path.display())]
    NotAFile {
        /// The original.
        path: PathBuf,
    },
    /// The file would have to become shorter, which would cut off data.
    #[error("will not shrink {} from {} to {}", path.display(), mib(*.have_bytes), mib(*.want_bytes))]
    Shrink {
        /// The file.
        path: PathBuf,
        /// Its length now, in bytes.
        have_bytes: u64,
        /// The requested length, in bytes.
        want_bytes: u64,
    },
    /// A file could not be opened, created, read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Bytes as text in MiB, rounded up, for messages.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

/// Copies `from` to the new file `to` (mode 0600), sharing blocks where the file system can and keeping holes
/// elsewhere.
///
/// The content is not synced to the medium: a lease's disk never outlives its microVM. On any error `to` does
/// not exist, unless it existed before, in which case it is untouched.
pub fn clone_file(from: &Path, to: &Path) -> Result<CloneMethod, CloneError> {
    let source = open(from).map_err(|error| FileError::io("open", from, error))?;
    let facts = source
        .metadata()
        .map_err(|error| FileError::io("inspect", from, error))?;
    if !facts.is_file() {
        return Err(CloneError::NotAFile {
            path: from.to_owned(),
        });
    }
    let target = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| FileError::io("create", to, error))?;
    fill(&source, &target, facts.len()).map_err(|error| {
        let removed = discard(target, to);
        let error: std::io::Error = error.into();
        if files::out_of_space(&error) {
            let free_bytes = files::free_bytes(to.parent().unwrap_or(Path::new("."))).unwrap_or(0);
            let (from, to) = (from.to_owned(), to.to_owned());
            return CloneError::NoSpace {
                from,
                to,
                needed_bytes: facts.blocks() * 512,
                free_bytes,
            };
        }
        match removed {
            Ok(()) => FileError::io("write the copy", to, error).into(),
            Err(error) => FileError::io("remove the half-written copy", to, error).into(),
        }
    })
}

/// Opens the original; a pipe of that name does not block.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Removes a copy and frees its blocks. A child that another thread is just forking also has the descriptor
/// until its exec, so the copy is truncated first: then it occupies no space meanwhile.
fn discard(partial: File, path: &Path) -> std::io::Result<()> {
    // Remove it even if it cannot be truncated.
    partial.set_len(0).ok();
    drop(partial);
    std::fs::remove_file(path)
}

fn fill(source: &File, target: &File, length: u64) -> Result<CloneMethod, Errno> {
    match ioctl_ficlone(target, source) {
        Ok(()) => return Ok(CloneMethod::Reflink),
        // The file system does not support it (OPNOTSUPP, NOTTY, NOSYS), or not between these two (XDEV), or
        // not for this file (INVAL, PERM, TXTBSY): fall back to copying.
        Err(
            Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::XDEV
            | Errno::INVAL
            | Errno::PERM
            | Errno::TXTBSY,
        ) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::ftruncate(target, length)?;
    let mut position = 0;
    while position < length {
        let start = match seek(source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // No data after this offset: the rest is a hole, which `ftruncate` has made.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        // The end of the file counts as a hole. If the file has grown meanwhile, copy only its original
        // length.
        let end = seek(source, SeekFrom::Hole(start))?.min(length);
        copy_range(source, target, start, end)?;
        position = end;
    }
    Ok(CloneMethod::SparseCopy)
}

/// Copies the bytes from `start` to `end`, in the kernel where it can.
fn copy_range(source: &File, target: &File, start: u64, end: u64) -> Result<(), Errno> {
    let (mut from, mut to) = (start, start);
    while from < end {
        // In bounded pieces, so that signals are handled soon and 32-bit limits are never reached.
        let want = usize::try_from((end - from).min(64 * 1024 * 1024)).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            // The source was truncated meanwhile: the missing part reads as zeros in the copy.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // The kernel cannot copy between these file systems, so copy in user space.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut position: u64, end: u64) -> Result<(), Errno> {
    let mut chunk = vec![0; 1024 * 1024];
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    while position < end {
        let want = usize::try_from(end - position)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let count = source.read_at(&mut chunk[..want], position).map_err(errno)?;
        if count == 0 {
            return Ok(());
        }
        target.write_all_at(&chunk[..count], position).map_err(errno)?;
        position += count as u64;
    }
    Ok(())
}

/// Makes the file at `path` exactly `bytes` long by adding a hole at its end; refuses to shorten it.
pub fn grow_file(path: &Path, bytes: u64) -> Result<(), CloneError> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|error| FileError::io("open", path, error))?;
    let have_bytes = file
        .metadata()
        .map_err(|error| FileError::io("inspect", path, error))?
        .len();
    if bytes < have_bytes {
        return Err(CloneError::Shrink {
            path: path.to_owned(),
            have_bytes,
            want_bytes: bytes,
        });
    }
    file.set_len(bytes)
        .map_err(|error| FileError::io("grow", path, error))?;
    Ok(())
}

#[cfg(test)]
mod tests;
