//! A root tree in a directory of this host, copied with owners, modes and hard links. The original is only
//! read, and must never be left through a link.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crabbox_host::budget::{self, Budget};
use crabbox_host::tree::{Facts, Kind, Tree};
use rustix::fs::{FileType, Stat};

use super::SourceError;

/// The only extended attribute that packages set: file capabilities.
const CAPABILITY: &str = "security.capability";

/// Copies everything in `from`, except file systems mounted below it.
pub(super) fn copy(from: &Path, tree: &Tree, budget: &mut Budget) -> Result<(), SourceError> {
    let from = Tree::open(from)?;
    let mut copying = Copying {
        device: 0,
        from: &from,
        names: BTreeMap::new(),
        tree,
        budget,
    };
    let facts = copying.look(Path::new(""))?;
    copying.device = facts.st_dev;
    copying.directory(Path::new(""), &facts)
}

struct Copying<'a> {
    from: &'a Tree,
    device: u64,
    /// The first name of each file with several names, by inode.
    names: BTreeMap<u64, PathBuf>,
    tree: &'a Tree,
    budget: &'a mut Budget,
}

impl Copying<'_> {
    fn directory(&mut self, path: &Path, facts: &Stat) -> Result<(), SourceError> {
        self.put(path, Kind::Directory, &kept(facts))?;
        if facts.st_dev != self.device {
            return Ok(());
        }
        // In sorted order, so that the same tree gives the same image on every file system.
        for name in self.from.names(path).map_err(|source| self.unread(source))? {
            self.entry(&path.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<(), SourceError> {
        super::check_depth(&self.from.path().display().to_string(), path)?;
        let facts = self.look(path)?;
        let kind = FileType::from_raw_mode(facts.st_mode);
        if kind.is_dir() {
            return self.directory(path, &facts);
        }
        if facts.st_nlink > 1
            && let Some(first) = self.names.get(&facts.st_ino)
        {
            return self.put(path, Kind::Link(first), &kept(&facts));
        }
        self.names.insert(facts.st_ino, path.to_owned());
        match kind {
            FileType::Symlink => {
                let target = self
                    .from
                    .link_target(path)
                    .map_err(|source| self.unread(source))?;
                self.put(path, Kind::Symlink(&target), &kept(&facts))
            }
            FileType::RegularFile => self.file(path, &facts),
            FileType::Fifo => self.put(path, Kind::Fifo, &kept(&facts)),
            // Skip sockets, which are useless without their process, and devices below dev, which every guest
            // makes itself.
            FileType::Socket => Ok(()),
            _ if path.starts_with("dev") => Ok(()),
            _ => Err(SourceError::Device {
                archive: self.from.path().display().to_string(),
                entry: path.display().to_string(),
            }),
        }
    }

    fn file(&mut self, path: &Path, facts: &Stat) -> Result<(), SourceError> {
        let opened = self.from.plain_file(path).map_err(|source| self.unread(source))?;
        // It was a file when it was listed, so its absence is an error.
        let mut file = opened.ok_or_else(|| self.unread(io::ErrorKind::NotFound.into()))?;
        let mut kept = kept(facts);
        let mut value = vec![0; 256];
        if let Ok(length) = rustix::fs::fgetxattr(&file, CAPABILITY, &mut value) {
            value.truncate(length);
            kept.attributes.push((CAPABILITY.into(), value));
        }
        let archive = self.from.path().display().to_string();
        let entry = path.display().to_string();
        let length = u64::try_from(facts.st_size).unwrap_or(u64::MAX);
        // Check before reading: a file may be a hole of any length.
        self.budget.allows(length).map_err(|source| SourceError::Over {
            archive: archive.clone(),
            entry: entry.clone(),
            source,
        })?;
        let (budget, mut failed) = (&mut *self.budget, None);
        let mut fill = |target: &mut File| {
            let filled = budget::fill(&mut (&mut file).take(length), target, 0, budget);
            filled.map(drop).map_err(|error| {
                failed = Some(error);
                io::Error::from(io::ErrorKind::Other)
            })
        };
        let written = self.tree.put(path, Kind::File(&mut fill), &kept);
        if let Some(error) = failed {
            return Err(super::unfilled(&archive, path, error));
        }
        written.map_err(|source| SourceError::Write {
            archive,
            entry,
            source,
        })
    }

    fn look(&self, path: &Path) -> Result<Stat, SourceError> {
        let place = || self.from.shown(path);
        let looked = self.from.look(path);
        Ok(looked.map_err(|source| crabbox_host::files::FileError::io("inspect", &place(), source))?)
    }

    fn put(&self, path: &Path, kind: Kind<'_>, facts: &Facts) -> Result<(), SourceError> {
        self.tree
            .put(path, kind, facts)
            .map_err(|source| SourceError::Write {
                archive: self.from.path().display().to_string(),
                entry: path.display().to_string(),
                source,
            })
    }

    fn unread(&self, source: io::Error) -> SourceError {
        SourceError::Read {
            archive: self.from.path().display().to_string(),
            source,
        }
    }
}

fn kept(facts: &Stat) -> Facts {
    Facts {
        mode: facts.st_mode,
        uid: facts.st_uid,
        gid: facts.st_gid,
        modified: super::stored_time(facts.st_mtime),
        attributes: Vec::new(),
    }
}
