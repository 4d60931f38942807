//! Inspects a path below an open directory without opening it for reading.
//!
//! All facts come from one descriptor, so that they describe one object. It must never follow a link, neither
//! in the path nor at its end.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat2, readlinkat};
use rustix::io::Errno;

use super::{Beneath, BeneathError, NO_LINKS};
use crate::entry_path::EntryPath;

impl Beneath {
    /// The kind of object at `below`, or `None` if nothing is there. A link is not followed.
    pub fn kind(&self, below: &EntryPath) -> Result<Option<FileType>, BeneathError> {
        let found = self.stat(below)?;
        Ok(found.map(|facts| FileType::from_raw_mode(facts.st_mode)))
    }

    /// The attributes of the object at `below` (for a link, its own), or `None` if nothing is there.
    pub fn stat(&self, below: &EntryPath) -> Result<Option<Stat>, BeneathError> {
        let found = self.hold(below)?;
        found.map(|found| self.facts(&found, below)).transpose()
    }

    /// The target and attributes of the symbolic link at `below`, or `None` if there is no link.
    pub fn link(&self, below: &EntryPath) -> Result<Option<(CString, Stat)>, BeneathError> {
        let Some(found) = self.hold(below)? else {
            return Ok(None);
        };
        let facts = self.facts(&found, below)?;
        if !FileType::from_raw_mode(facts.st_mode).is_symlink() {
            return Ok(None);
        }
        // An empty path means the link that the descriptor refers to: readlink(2).
        let target = readlinkat(&found, c"", Vec::new())
            .map_err(|errno| BeneathError::io("read the link", &self.full(below), errno))?;
        Ok(Some((target, facts)))
    }

    /// The directory `below`, for looking at its entries by name; unlike with [`Beneath::dir`] it need not be
    /// readable.
    pub fn enter(&self, below: &EntryPath) -> Result<OwnedFd, BeneathError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.handle, below.as_path(), flags, Mode::empty(), NO_LINKS)
            .map_err(|errno| BeneathError::walk("open directory", &self.full(below), errno))
    }

    fn hold(&self, below: &EntryPath) -> Result<Option<OwnedFd>, BeneathError> {
        // With these two flags a link at the end of the path is opened itself; a link earlier in the path is
        // still an error: openat2(2).
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&self.handle, below.as_path(), flags, Mode::empty(), NO_LINKS) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BeneathError::walk("inspect", &self.full(below), errno)),
        }
    }

    fn facts(&self, found: &OwnedFd, below: &EntryPath) -> Result<Stat, BeneathError> {
        fstat(found).map_err(|errno| BeneathError::io("inspect", &self.full(below), errno))
    }
}
