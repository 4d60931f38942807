//! What stands at a path below an open directory, without opening it for reading.
//!
//! Each question is asked of one descriptor, so that what it says is of one and the same object. It must never follow a link,
//! neither on the way nor at the end.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat2, readlinkat};
use rustix::io::Errno;

use super::{Beneath, BeneathError, NO_LINKS};
use crate::entry_path::EntryPath;

impl Beneath {
    /// What stands under `below`: its kind, or `None` for nothing. A link is not followed.
    pub fn kind(&self, below: &EntryPath) -> Result<Option<FileType>, BeneathError> {
        let found = self.stat(below)?;
        Ok(found.map(|facts| FileType::from_raw_mode(facts.st_mode)))
    }

    /// The facts of what stands under `below`, of a link those of itself, or `None` for nothing.
    pub fn stat(&self, below: &EntryPath) -> Result<Option<Stat>, BeneathError> {
        let found = self.hold(below)?;
        found.map(|found| self.facts(&found, below)).transpose()
    }

    /// The target and the facts of the symbolic link under `below`, or `None` when something else stands there, or nothing.
    pub fn link(&self, below: &EntryPath) -> Result<Option<(CString, Stat)>, BeneathError> {
        let Some(found) = self.hold(below)? else {
            return Ok(None);
        };
        let facts = self.facts(&found, below)?;
        if !FileType::from_raw_mode(facts.st_mode).is_symlink() {
            return Ok(None);
        }
        // An empty path is the link that the descriptor stands for: readlink(2).
        let target = readlinkat(&found, c"", Vec::new())
            .map_err(|errno| BeneathError::io("read the link", &self.full(below), errno))?;
        Ok(Some((target, facts)))
    }

    /// The directory `below`, to look at what is in it by name; unlike [`Beneath::dir`] it need not be readable.
    pub fn enter(&self, below: &EntryPath) -> Result<OwnedFd, BeneathError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.handle, below.as_path(), flags, Mode::empty(), NO_LINKS)
            .map_err(|errno| BeneathError::walk("open directory", &self.full(below), errno))
    }

    fn hold(&self, below: &EntryPath) -> Result<Option<OwnedFd>, BeneathError> {
        // With these two flags a link in the last part is opened itself; one on the way still is an error: openat2(2).
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&self.handle, below.as_path(), flags, Mode::empty(), NO_LINKS) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BeneathError::walk("look at", &self.full(below), errno)),
        }
    }

    fn facts(&self, found: &OwnedFd, below: &EntryPath) -> Result<Stat, BeneathError> {
        fstat(found).map_err(|errno| BeneathError::io("look at", &self.full(below), errno))
    }
}
