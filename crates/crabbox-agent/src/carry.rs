//! Copies a file or link to another file system, where a rename is not possible.
//!
//! It is copied under a temporary name in the target directory and renamed there. What is at the target must
//! neither be removed before that nor followed if it is a link.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW};

/// A file or link that is to be copied to another file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carry<'a> {
    /// The directory that it is in.
    pub(crate) from: BorrowedFd<'a>,
    /// Its name there.
    pub(crate) name: &'a Path,
    /// The directory that it goes to.
    pub(crate) to: BorrowedFd<'a>,
    /// Its temporary name there; nothing of that name may exist.
    pub(crate) new: &'a Path,
    /// Its final name there. A file or link of this name is replaced.
    pub(crate) leaf: &'a Path,
}

impl Carry<'_> {
    /// Copies the file or link that `stat` describes, with its mode and modification time. The original
    /// stays.
    pub(crate) fn out(&self, stat: &Stat) -> io::Result<()> {
        let placed = self
            .make(stat)
            .and_then(|()| Ok(rustix::fs::renameat(self.to, self.new, self.to, self.leaf)?));
        if placed
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists)
        {
            rustix::fs::unlinkat(self.to, self.new, AtFlags::empty()).ok();
        }
        placed
    }

    fn make(&self, stat: &Stat) -> io::Result<()> {
        let Self {
            from, name, to, new, ..
        } = *self;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, new)?;
            rustix::fs::utimensat(to, new, &times(modified(stat)), AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut old = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut copy = File::from(rustix::fs::openat(to, new, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(&mut old, &mut copy)?;
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        Ok(rustix::fs::futimens(&copy, &times(modified(stat)))?)
    }
}

/// The modification time in a stat(2) result.
#[expect(
    clippy::useless_conversion,
    reason = "the types of these fields differ between machines"
)]
pub(crate) fn modified(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime.into(),
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// File times with this modification time and the current time as access time.
pub(crate) fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        last_modification: modified,
    }
}
