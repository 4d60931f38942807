//! Moves a staged copy to its destination: directories are merged, a file or link is replaced by a file or
//! link.
//!
//! It must never follow a link in the place of a directory, nor begin if something is in the way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::{DIRECTORY, STAGE};
use crate::bytes::path;
use crate::carry::{Carry, modified, times};
use crate::failure::{At as _, Failure};

/// A file or directory that is to be moved to another directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move<'a> {
    /// The directory that it is in.
    pub(super) from: BorrowedFd<'a>,
    /// Its name there.
    pub(super) name: &'a Path,
    /// The directory that it goes to.
    pub(super) to: BorrowedFd<'a>,
    /// Its name there.
    pub(super) leaf: &'a Path,
    /// Its place, for messages.
    pub(super) shown: &'a Path,
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

impl Move<'_> {
    /// The stat of what is to be moved.
    fn stat(&self) -> Result<Stat, Failure> {
        rustix::fs::statat(self.from, self.name, AtFlags::SYMLINK_NOFOLLOW).at(self.shown)
    }

    /// The type of what is at the destination, if anything.
    fn there(&self) -> Result<Option<FileType>, Failure> {
        match rustix::fs::statat(self.to, self.leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(kind(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).at(self.shown),
        }
    }

    /// Opens source and destination, both directories. The source is made accessible first, whatever mode it
    /// is to have in the end.
    fn open(&self, stat: &Stat) -> Result<(OwnedFd, OwnedFd), Failure> {
        if stat.st_mode & 0o700 != 0o700 {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700);
            rustix::fs::chmodat(self.from, self.name, mode, AtFlags::empty()).at(self.shown)?;
        }
        let open = |within, leaf| rustix::fs::openat(within, leaf, DIRECTORY, Mode::empty()).at(self.shown);
        Ok((open(self.from, self.name)?, open(self.to, self.leaf)?))
    }

    /// The move of an entry of a directory that is merged into an existing one.
    fn child<'c>((from, to): &'c (OwnedFd, OwnedFd), name: &'c Path, shown: &'c Path) -> Move<'c> {
        Move {
            from: from.as_fd(),
            name,
            to: to.as_fd(),
            leaf: name,
            shown,
        }
    }

    /// Checks that nothing is in the way of [`Self::carry_out`].
    pub(super) fn fits(&self) -> Result<(), Failure> {
        let in_the_way = |what| {
            Err(Failure::Refused(format!(
                "{} is there already and is {what}",
                crate::bytes::show(self.shown)
            )))
        };
        let stat = self.stat()?;
        match (kind(&stat) == FileType::Directory, self.there()?) {
            (_, None) | (false, Some(FileType::RegularFile | FileType::Symlink)) => Ok(()),
            (true, Some(FileType::Directory)) => {
                let both = self.open(&stat)?;
                for name in names(&both.0, self.shown)? {
                    Self::child(&both, &name, &self.shown.join(&name)).fits()?;
                }
                rustix::fs::fchmod(&both.0, Mode::from_raw_mode(stat.st_mode & 0o7777)).at(self.shown)
            }
            (true, Some(_)) => in_the_way("not a directory"),
            (false, Some(FileType::Directory)) => in_the_way("a directory"),
            (false, Some(_)) => in_the_way("not a regular file"),
        }
    }

    /// Performs the move.
    pub(super) fn carry_out(&self) -> Result<(), Failure> {
        let stat = self.stat()?;
        if kind(&stat) != FileType::Directory {
            return match rustix::fs::renameat(self.from, self.name, self.to, self.leaf) {
                Err(Errno::XDEV) => self.carry(&stat).at(self.shown),
                moved => moved.at(self.shown),
            };
        }
        if self.there()?.is_none() {
            match self.rename_directory(&stat) {
                // The destination is a mount point of another file system.
                Err(Errno::XDEV) => rustix::fs::mkdirat(self.to, self.leaf, Mode::RWXU).at(self.shown)?,
                moved => return moved.at(self.shown),
            }
        }
        let both = self.open(&stat)?;
        for name in names(&both.0, self.shown)? {
            Self::child(&both, &name, &self.shown.join(&name)).carry_out()?;
        }
        rustix::fs::fchmod(&both.1, Mode::from_raw_mode(stat.st_mode & 0o7777)).at(self.shown)?;
        rustix::fs::futimens(&both.1, &times(modified(&stat))).at(self.shown)
    }

    /// Moves a directory. It has to be writable for that, because its `..` changes.
    fn rename_directory(&self, stat: &Stat) -> Result<(), Errno> {
        let Self {
            from, name, to, leaf, ..
        } = *self;
        let mode = stat.st_mode & 0o7777;
        let is_closed = mode & 0o200 == 0;
        if is_closed {
            rustix::fs::chmodat(from, name, Mode::from_raw_mode(mode | 0o200), AtFlags::empty())?;
        }
        rustix::fs::renameat_with(from, name, to, leaf, RenameFlags::NOREPLACE).or_else(
            |errno| match errno {
                // The kernel or file system does not support flags. The destination was checked a moment ago,
                // and a plain rename does not replace a non-empty directory.
                Errno::NOSYS | Errno::INVAL => rustix::fs::renameat(from, name, to, leaf),
                errno => Err(errno),
            },
        )?;
        if is_closed {
            rustix::fs::chmodat(to, leaf, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Copies a file or link to another file system, and renames it into place there.
    fn carry(&self, stat: &Stat) -> Result<(), std::io::Error> {
        let new = format!("{STAGE}{:x}", std::process::id());
        let carry = Carry {
            from: self.from,
            name: self.name,
            to: self.to,
            new: Path::new(&new),
            leaf: self.leaf,
        };
        carry.out(stat)
    }
}

fn names(dir: impl AsFd, shown: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).at(shown)? {
        let entry = entry.at(shown)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(path(name).to_owned());
        }
    }
    Ok(names)
}
