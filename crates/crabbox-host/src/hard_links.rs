//! Whether a file in a directory can have a second name, found out without giving one to any.
//!
//! A file without a name that was opened to stay so (`O_TMPFILE` with `O_EXCL`, open(2)) can never be linked: where the file system has
//! hard links the kernel says that there is no such file, and where it has none that this is not permitted (`vfs_link` in `fs/namei.c`
//! asks in this order). It must never leave a trace, the times of the directory included.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// Asks in `dir`. An error means that it could not be found out there.
pub fn work_in(dir: &Path) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let to = dir.join(".crabbox-never-made");
    match rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::NOENT) => Ok(true),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
        // No kernel does that: the name was refused for good when the file was opened.
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
