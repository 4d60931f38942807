//! The private writable disks of a lease.
//!
//! For our image it is an empty layer above the shared base, for a foreign image a private copy of the whole.
//! The cost of neither may grow with the size of the disk, and neither may change its source image or leave
//! an incomplete disk behind.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crabbox_host::clone::{self, CloneError, CloneMethod};
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::confine::Confinement;
use crabbox_host::files::{self, FileError};
use rustix::fs::MemfdFlags;

use crate::inspect::{self, InspectError, Superblock};

/// The label of a writable layer, which the guest may check before it mounts.
pub(crate) const LAYER_LABEL: &str = "crabbox-layer";

/// All format options of a layer are set here, so that the result does not depend on the host's
/// `mke2fs.conf`.
///
/// No journal: a layer never outlives its microVM. With `metadata_csum` the inode tables need not be written,
/// so the cost is the same for every size. One backup superblock group less and packed metadata keep the file
/// small.
const LAYER_FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,\
                              huge_file,dir_nlink,extra_isize,metadata_csum";

/// Smallest layer, in MiB: below it the format has no room for data.
pub(crate) const LAYER_MIN_MIB: u64 = 16;

/// Time limit for checking or growing a foreign image.
const E2FSPROGS_LIMIT: Duration = Duration::from_mins(10);

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The requested size is too small for a file system.
    #[error("a writable layer of {want_mib} MiB is too small; ask for at least {LAYER_MIN_MIB} MiB")]
    LayerTooSmall {
        /// The requested size.
        want_mib: u64,
    },
    /// The image is larger than the requested disk; shrinking would cut off its data.
    #[error(
        "a disk of {want_mib} MiB is smaller than its image {} of {image_mib} MiB; set firecracker.diskMiB to at \
         least that, or to 0 to keep the image's size", image.display()
    )]
    Shrink {
        /// The image.
        image: PathBuf,
        /// Its length in MiB, rounded up.
        image_mib: u64,
        /// The requested size.
        want_mib: u64,
    },
    /// A tool of the ext4 suite is missing or failed.
    #[error("cannot {attempt} {}", disk.display())]
    Tool {
        /// The operation: `format`, `check`, `grow`.
        attempt: &'static str,
        /// The disk.
        disk: PathBuf,
        /// The failure.
        #[source]
        source: CommandError,
    },
    /// The checker found errors that it could not repair.
    #[error("the file system of {} has errors that e2fsck cannot repair (exit code {code}): {said}", image.display())]
    Unrepairable {
        /// The image the disk was copied from.
        image: PathBuf,
        /// The checker's exit code, a bit mask.
        code: i32,
        /// Its last line.
        said: String,
    },
    /// The check itself failed, which says nothing about the disk.
    #[error("cannot check {}: {how}", disk.display())]
    Unchecked {
        /// The disk.
        disk: PathBuf,
        /// How it ended, and its last line.
        how: String,
    },
    /// The image is not a bootable file system.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It could not be copied.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// A file could not be made.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The result of copying a foreign image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskReport {
    /// How the copy was made.
    pub method: CloneMethod,
    /// Length of the disk, in bytes.
    pub bytes: u64,
    /// Whether its file system had to be grown.
    pub grown: bool,
}

/// Makes the new file `path` a private (mode 0600), empty, writable ext4 file system of `size_mib` MiB.
///
/// The file is sparse: it takes some 100 KiB whatever its size. The guest should mount it with
/// `noinit_itable`, or its kernel would write the unused inode tables in the background and make the file
/// grow on the host.
///
/// It is formatted in memory and its few data blocks are copied: mke2fs syncs four times, each of which waits
/// for a disk, and a layer never has to survive a power cut.
pub fn make_layer(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    if size_mib < LAYER_MIN_MIB {
        return Err(DiskError::LayerTooSmall { want_mib: size_mib });
    }
    format_in_memory(path, size_mib, &LAYER)
}

/// The mke2fs options for a kind of file system.
struct Format {
    features: &'static str,
    label: &'static str,
    extended: &'static str,
}

const LAYER: Format = Format {
    features: LAYER_FEATURES,
    label: LAYER_LABEL,
    extended: "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0,root_owner=0:0",
};

/// Makes the new private file `path` an empty file system of `size_mib` MiB.
fn format_in_memory(path: &Path, size_mib: u64, format: &Format) -> Result<(), DiskError> {
    let fail = |source: std::io::Error| FileError::io("format in memory", path, source);
    let memory = rustix::fs::memfd_create(c"crabbox-layer", MemfdFlags::CLOEXEC)
        .map(std::fs::File::from)
        .map_err(|error| fail(error.into()))?;
    memory.set_len(size_mib.saturating_mul(1 << 20)).map_err(fail)?;
    // The name by which another process can open it.
    let name = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let name = Path::new(&name);
    run_mke2fs(name, path, format)?;
    clone::clone_file(name, path)?;
    Ok(())
}

/// Formats the file `memory`, which will be the disk `path`.
fn run_mke2fs(memory: &Path, path: &Path, format: &Format) -> Result<(), DiskError> {
    Cmd::new("mke2fs")
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
        ])
        .args(["-O", format.features, "-L", format.label])
        .args(["-E", format.extended])
        .arg(memory)
        .limit(E2FSPROGS_LIMIT)
        .run()
        .map_err(|source| DiskError::Tool {
            attempt: "format",
            disk: path.to_owned(),
            source,
        })?;
    Ok(())
}

/// Copies the foreign image `image` to the new private file `disk` and grows its file system to `size_mib`
/// MiB.
///
/// Size 0 keeps the image's own. The image must be a bare ext4 file system; it is only read. On an error
/// `disk` is removed.
pub fn clone_rootfs(image: &Path, disk: &Path, size_mib: u64) -> Result<DiskReport, DiskError> {
    let facts = inspect::superblock(image)?;
    let length = files::open_regular(image)
        .and_then(|file| file.metadata())
        .map_err(|source| FileError::io("inspect", image, source))?
        .len();
    let have = length.max(facts.bytes());
    let want = if size_mib == 0 {
        have
    } else {
        size_mib.saturating_mul(1 << 20)
    };
    if want < have {
        let image_mib = have.div_ceil(1 << 20);
        return Err(DiskError::Shrink {
            image: image.to_owned(),
            image_mib,
            want_mib: size_mib,
        });
    }
    let method = clone::clone_file(image, disk)?;
    let grown = undo_unless_ok(grow(image, disk, want, &facts), disk)?;
    Ok(DiskReport {
        method,
        bytes: want,
        grown,
    })
}

/// Grows file and file system to `want` bytes; returns whether that was necessary.
fn grow(image: &Path, disk: &Path, want: u64, facts: &Superblock) -> Result<bool, DiskError> {
    clone::grow_file(disk, want)?;
    if want - facts.bytes() < u64::from(facts.block_size) {
        return Ok(false);
    }
    let tool = |attempt, source| DiskError::Tool {
        attempt,
        disk: disk.to_owned(),
        source,
    };
    // The image is untrusted, and both programs parse all of it.
    let confinement = Arc::new(Confinement::to_change(disk, want)?);
    let confined = |program: &str| confined(program, &confinement).limit(E2FSPROGS_LIMIT);
    // resize2fs insists on a full check since the last mount, and this replays the journal too.
    let checked = confined("e2fsck")
        .args(["-f", "-y"])
        .arg(confinement.name())
        .capture()
        .map_err(|source| tool("check", source))?;
    // The exit code is a bit mask: 1 and 2 mean "errors, all repaired"; 4 and above, or a signal, do not.
    let code = checked.status.code().unwrap_or(-1);
    if code & !3 != 0 {
        let said = checked.stdout_text() + &checked.stderr_text();
        let said = said.lines().last().unwrap_or_default();
        // Replace the name that the file had for e2fsck.
        let said = said.replacen(
            &*confinement.name().to_string_lossy(),
            &image.to_string_lossy(),
            1,
        );
        return Err(DiskError::Unrepairable {
            image: image.to_owned(),
            code,
            said,
        });
    }
    confined("resize2fs")
        .arg(confinement.name())
        .run()
        .map_err(|source| tool("grow the file system of", source))?;
    Ok(true)
}

/// A program of the ext4 suite, for the one file of `confinement`.
fn confined(program: &str, confinement: &Arc<Confinement>) -> Cmd {
    Cmd::new(program)
        .confined(Arc::clone(confinement))
        // If it outlived us, it could change a disk that belongs to the next lease by then.
        .dies_with_us()
        // There is no mount table in the confinement, and a guest's disk is never mounted on the host:
        // libext2fs, check_mntent.
        .env("EXT2FS_NO_MTAB_OK", "1")
        // resize2fs checks in /sys whether inode tables may stay unwritten; every kernel that boots such a
        // disk supports that: resize/main.c.
        .env("RESIZE2FS_FORCE_LAZY_ITABLE_INIT", "1")
}

/// Removes the disk of an operation that fails.
fn undo_unless_ok<T>(result: Result<T, DiskError>, disk: &Path) -> Result<T, DiskError> {
    if result.is_err() {
        // The original error is more useful than a failure to remove.
        files::remove_tree(disk).ok();
    }
    result
}

pub mod volume;

#[cfg(test)]
mod tests;
