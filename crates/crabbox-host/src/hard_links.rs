//! Detects whether a file system supports hard links, without making one.
//!
//! An unnamed file that was opened to stay so (`O_TMPFILE` with `O_EXCL`, open(2)) can never be linked. If
//! the file system has hard links, the kernel reports that there is no such file; otherwise it reports that
//! the operation is not permitted (`vfs_link` in `fs/namei.c` checks in this order). It must never leave a
//! trace, not even in the times of the directory.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// Tests in `dir`. An error means that the answer could not be determined there.
pub fn work_in(dir: &Path) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let to = dir.join(".crabbox-never-made");
    match rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::NOENT) => Ok(true),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
        // No kernel does this: linking this file was excluded when it was opened.
        Ok(()) => {
            std::fs::remove_file(&to)?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_a_link_does_and_leaves_no_trace() {
        for base in [&std::env::temp_dir(), Path::new("/dev/shm")] {
            let dir = tempfile::tempdir_in(base).unwrap();
            let before = dir.path().metadata().unwrap().modified().unwrap();
            let said = work_in(dir.path()).unwrap();
            assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), before);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            let (one, two) = (dir.path().join("one"), dir.path().join("two"));
            std::fs::write(&one, "").unwrap();
            assert_eq!(said, std::fs::hard_link(one, two).is_ok());
        }
    }

    #[test]
    fn where_no_file_can_be_made_it_is_not_known() {
        assert!(work_in(Path::new("/nowhere")).is_err());
        assert!(work_in(Path::new("/proc/self")).is_err());
    }
}
