//! The parts of an image on disk, by name: files of a directory, or members of a tar archive, read where they lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crabbox_host::files::FileError;
use tar::EntryType;

use super::{SourceError, compression, tree};

/// Documents are small; a larger one is no document.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// How many links may lead from a name to its content.
const LINK_LIMIT: usize = 8;

/// The parts.
#[derive(Debug)]
pub(super) struct Blobs {
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Archive {
        file: PathBuf,
        members: BTreeMap<PathBuf, Member>,
    },
}

#[derive(Debug)]
enum Member {
    Content { offset: u64, bytes: u64 },
    Link(PathBuf),
}

impl Blobs {
    /// The parts in `path`; an archive that is compressed as a whole is unpacked into `scratch` first.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        if path.is_dir() {
            let place = Place::Directory(path.to_owned());
            return Ok(Self { name, place });
        }
        let unread = |source| SourceError::Read {
            archive: name.clone(),
            source,
        };
        let mut head = [0; 8];
        let length = super::open(path)?.read(&mut head).map_err(unread)?;
        let file = if compression::is_compressed(&head[..length]) {
            let plain = scratch.join("archive.tar");
            let fail = |source| FileError::io("write", &plain, source);
            let mut target = File::create_new(&plain).map_err(fail)?;
            let mut content = compression::reader(super::open(path)?).map_err(unread)?;
            io::copy(&mut content, &mut target).map_err(unread)?;
            plain
        } else {
            path.to_owned()
        };
        let members = members(&name, &file)?;
        let place = Place::Archive { file, members };
        Ok(Self { name, place })
    }

    /// Where they come from, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the part `name`.
    pub(super) fn read(&self, name: &str) -> Result<Box<dyn Read>, SourceError> {
        let missing = || SourceError::NoBlob {
            archive: self.name.clone(),
            blob: name.to_owned(),
        };
        let path = tree::inside(Path::new(name)).map_err(|tree::Leaves| SourceError::Escape {
            archive: self.name.clone(),
            entry: name.to_owned(),
        })?;
        match &self.place {
            Place::Directory(dir) => {
                let path = dir.join(path);
                if !path.is_file() {
                    return Err(missing());
                }
                Ok(Box::new(super::open(&path)?))
            }
            Place::Archive { file, members } => {
                let mut path = path;
                for _ in 0..LINK_LIMIT {
                    match members.get(&path).ok_or_else(missing)? {
                        Member::Link(target) => path.clone_from(target),
                        Member::Content { offset, bytes } => {
                            let mut content = super::open(file)?;
                            content
                                .seek(SeekFrom::Start(*offset))
                                .map_err(|source| FileError::io("read", file, source))?;
                            return Ok(Box::new(content.take(*bytes)));
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// The whole of the small part `name`.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let mut text = Vec::new();
        self.read(name)?
            .take(DOCUMENT_LIMIT)
            .read_to_end(&mut text)
            .map_err(|source| SourceError::Read {
                archive: self.name.clone(),
                source,
            })?;
        Ok(text)
    }
}

fn members(name: &str, file: &Path) -> Result<BTreeMap<PathBuf, Member>, SourceError> {
    let unread = |source| SourceError::Read {
        archive: name.to_owned(),
        source,
    };
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(super::open(file)?);
    for entry in archive.entries_with_seek().map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let path = entry.path().map_err(unread)?.into_owned();
        let Ok(path) = tree::inside(&path) else { continue };
        let member = match (entry.header().entry_type(), entry.link_name().map_err(unread)?) {
            (EntryType::Regular | EntryType::Continuous, _) => Member::Content {
                offset: entry.raw_file_position(),
                bytes: entry.size(),
            },
            // A link's target is relative to its own directory, as `docker save` writes layers that it has twice.
            (EntryType::Symlink, Some(target)) => match joined(&path, &target) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            (EntryType::Link, Some(target)) => match tree::inside(&target) {
                Ok(target) => Member::Link(target),
                Err(tree::Leaves) => continue,
            },
            _ => continue,
        };
        members.insert(path, member);
    }
    Ok(members)
}

/// `target` seen from the directory of `path`, with `..` taken literally; `None` when it leaves the archive.
fn joined(path: &Path, target: &Path) -> Option<PathBuf> {
    let mut at = path.parent()?.to_owned();
    for part in target.components() {
        match part {
            std::path::Component::Normal(name) => at.push(name),
            std::path::Component::ParentDir if !at.pop() => return None,
            std::path::Component::ParentDir | std::path::Component::CurDir => {}
            std::path::Component::RootDir | std::path::Component::Prefix(_) => return None,
        }
    }
    Some(at)
}
