//! Detects whether a file system can share blocks of files, by trying it.
//!
//! The test uses two unnamed files (`O_TMPFILE`), which no other process can see and which disappear when
//! they are closed. It must never leave a file, even if this process dies.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// One block of every usual file system, in bytes: only whole blocks can be shared.
const BLOCK: [u8; 4096] = [1; 4096];

/// Tests in `dir`. An error means that no file could be created there at all.
pub fn works_in(dir: &Path) -> io::Result<bool> {
    let mut source = match unnamed(dir) {
        // A file system without unnamed files cannot share blocks either: all those that share blocks support
        // them.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(false),
        other => other?,
    };
    let target = unnamed(dir)?;
    source.write_all(&BLOCK)?;
    Ok(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
}

fn unnamed(dir: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clone::{CloneMethod, clone_file};

    #[test]
    fn the_trial_says_what_a_copy_does_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let said = works_in(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let from = dir.path().join("from");
        std::fs::write(&from, BLOCK).unwrap();
        let method = clone_file(&from, &dir.path().join("to")).unwrap();
        assert_eq!(said, method == CloneMethod::Reflink);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(works_in(Path::new("/nowhere")).is_err());
    }
}
