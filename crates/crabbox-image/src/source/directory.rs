//! A root tree in a directory of this host, copied with owners, modes and hard links. The original is only read.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::SourceError;
use super::tree::{Facts, Kind, Tree};

/// The one attribute that packages set: what a program may do without being root's.
const CAPABILITY: &str = "security.capability";

/// Copies everything in `from`, and nothing that is mounted below it.
pub(super) fn copy(from: &Path, tree: &Tree) -> Result<(), SourceError> {
    let facts = look(from)?;
    let mut copying = Copying {
        from,
        device: facts.dev(),
        names: BTreeMap::new(),
        tree,
    };
    copying.directory(Path::new(""), &facts)
}

struct Copying<'a> {
    from: &'a Path,
    device: u64,
    /// The first name of each file that has several, by inode.
    names: BTreeMap<u64, PathBuf>,
    tree: &'a Tree,
}

impl Copying<'_> {
    fn directory(&mut self, path: &Path, facts: &Metadata) -> Result<(), SourceError> {
        self.put(path, Kind::Directory, &kept(facts))?;
        if facts.dev() != self.device {
            return Ok(());
        }
        let dir = self.from.join(path);
        let unread = |source| self.unread(source);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(unread)? {
            names.push(entry.map_err(unread)?.file_name());
        }
        // In one order, whatever the file system's is: the same tree gives the same image.
        names.sort();
        for name in names {
            self.entry(&path.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<(), SourceError> {
        let place = self.from.join(path);
        let facts = look(&place)?;
        let kind = facts.file_type();
        if kind.is_dir() {
            return self.directory(path, &facts);
        }
        if facts.nlink() > 1
            && let Some(first) = self.names.get(&facts.ino())
        {
            return self.put(path, Kind::Link(first), &kept(&facts));
        }
        self.names.insert(facts.ino(), path.to_owned());
        if kind.is_symlink() {
            let target = std::fs::read_link(&place).map_err(|source| self.unread(source))?;
            self.put(path, Kind::Symlink(&target), &kept(&facts))
        } else if kind.is_file() {
            let mut file = File::open(&place).map_err(|source| self.unread(source))?;
            let mut kept = kept(&facts);
            let mut value = vec![0; 256];
            if let Ok(length) = rustix::fs::fgetxattr(&file, CAPABILITY, &mut value) {
                value.truncate(length);
                kept.attributes.push((CAPABILITY.into(), value));
            }
            self.put(path, Kind::File(&mut file), &kept)
        } else if kind.is_fifo() {
            self.put(path, Kind::Fifo, &kept(&facts))
        } else if kind.is_socket() || path.starts_with("dev") {
            // A socket is nothing without its process, and every guest makes its devices anew.
            Ok(())
        } else {
            Err(SourceError::Device {
                archive: self.from.display().to_string(),
                entry: path.display().to_string(),
            })
        }
    }

    fn put(&self, path: &Path, kind: Kind<'_>, facts: &Facts) -> Result<(), SourceError> {
        self.tree
            .put(path, kind, facts)
            .map_err(|source| SourceError::Write {
                archive: self.from.display().to_string(),
                entry: path.display().to_string(),
                source,
            })
    }

    fn unread(&self, source: std::io::Error) -> SourceError {
        SourceError::Read {
            archive: self.from.display().to_string(),
            source,
        }
    }
}

fn look(path: &Path) -> Result<Metadata, SourceError> {
    Ok(std::fs::symlink_metadata(path)
        .map_err(|source| crabbox_host::files::FileError::io("look at", path, source))?)
}

fn kept(facts: &Metadata) -> Facts {
    Facts {
        mode: facts.mode(),
        uid: facts.uid(),
        gid: facts.gid(),
        modified: facts.mtime(),
        attributes: Vec::new(),
    }
}
