//! Puts a shared, read-only file into a lease's own directory without copying it.
//!
//! It uses a hard link if the file system permits one, otherwise a read-only bind mount. It must never make a
//! shared file writable through the lease: the caller passes it only to users who may not write the original.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use super::{FileError, parent_of, remove_if_there, sync_dir};

/// How a shared file was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// A hard link: removing the name is enough.
    HardLink,
    /// A bind mount (root only): it must be unmounted before the directory can be removed.
    Bind,
}

/// Gives `source` the second name `target`, which must not exist.
///
/// The link fails over file system borders (`EXDEV`), at the link limit (`EMLINK`) and where the kernel
/// protects files of other users (`EPERM`, `fs.protected_hardlinks`); then a read-only bind mount is made,
/// which only root may.
pub fn place_read_only(source: &Path, target: &Path) -> Result<Placement, FileError> {
    match std::fs::hard_link(source, target) {
        Ok(()) => {
            sync_dir(parent_of(target))?;
            return Ok(Placement::HardLink);
        }
        Err(error) if needs_bind(&error) => {}
        Err(error) => return Err(FileError::io("hard-link to", target, error)),
    }
    std::fs::File::create_new(target).map_err(|error| FileError::io("create", target, error))?;
    let bound = mount_bind(source, target).and_then(|()| {
        mount_remount(
            target,
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            c"",
        )
        .inspect_err(|_| {
            // Undo the mount; if even that fails, removing the file below reports it.
            unmount(target, UnmountFlags::empty()).ok();
        })
    });
    if let Err(error) = bound {
        // Remove the empty mount point; the error of the mount is the one to report.
        std::fs::remove_file(target).ok();
        return Err(FileError::io("bind-mount the shared file at", target, error));
    }
    Ok(Placement::Bind)
}

fn needs_bind(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::XDEV | Errno::PERM | Errno::MLINK)
    )
}

/// Undoes [`place_read_only`] at `target`, for both methods; succeeds if it is already gone.
pub fn withdraw(target: &Path) -> Result<(), FileError> {
    match unmount(target, UnmountFlags::NOFOLLOW) {
        // EINVAL: nothing is mounted there. EPERM: we are not root, so we cannot have mounted it.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT | Errno::PERM) => {}
        Err(error) => return Err(FileError::io("unmount", target, error)),
    }
    remove_if_there(target)
        .map(drop)
        .map_err(|source| FileError::io("remove", target, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn one_file_system_gets_a_hard_link() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::write(&source, "shared").unwrap();
        assert_eq!(place_read_only(&source, &target).unwrap(), Placement::HardLink);
        assert_eq!(source.metadata().unwrap().ino(), target.metadata().unwrap().ino());
        withdraw(&target).unwrap();
        withdraw(&target).unwrap();
        assert!(source.exists() && !target.exists());
    }

    #[test]
    fn another_file_system_gets_a_read_only_mount() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let (source, target) = (other.path().join("source"), dir.path().join("target"));
        std::fs::write(&source, "shared").unwrap();
        assert_eq!(place_read_only(&source, &target).unwrap(), Placement::Bind);
        let text = std::fs::read_to_string(&target).unwrap();
        let write = std::fs::write(&target, "mine now");
        withdraw(&target).unwrap();
        assert_eq!(text, "shared");
        assert_eq!(write.unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert!(source.exists() && !target.exists());
    }

    #[test]
    fn a_name_that_is_taken_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::write(&source, "shared").unwrap();
        std::fs::write(&target, "taken").unwrap();
        assert!(place_read_only(&source, &target).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "taken");
    }
}
