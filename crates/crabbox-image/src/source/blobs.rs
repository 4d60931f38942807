//! The parts of an image on disk, by name: files in a directory, or members of a tar archive, read in place.
//! No name may lead outside of the directory or archive.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crabbox_host::archive::{MemberKind, Reader};
use crabbox_host::budget::{self, Budget};
use crabbox_host::files::FileError;
use crabbox_host::tree::{self, Tree};

use super::{SourceError, compression};

/// Maximum size of a document, in bytes.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Maximum number of parts in an archive; an image has some dozens.
const MEMBERS_LIMIT: usize = 1 << 16;

/// Maximum number of links from a name to its content.
const LINK_LIMIT: usize = 8;

/// The parts.
#[derive(Debug)]
pub(super) struct Blobs {
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(Tree),
    Archive {
        file: PathBuf,
        members: BTreeMap<PathBuf, Member>,
    },
}

#[derive(Debug)]
enum Member {
    Content {
        offset: u64,
        bytes: u64,
    },
    Link(PathBuf),
    /// A sparse file, whose content is not in one piece.
    Sparse,
}

impl Blobs {
    /// The parts in `path`; a compressed archive is decompressed into `scratch` first.
    pub(super) fn open(path: &Path, scratch: &Path, budget: &mut Budget) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        if let Some(dir) = super::directory(path)? {
            let place = Place::Directory(dir);
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
            let target = create_new(&plain).map_err(fail)?;
            let mut content = compression::reader(super::open(path)?).map_err(unread)?;
            budget::fill(&mut content, &target, 0, budget)
                .map_err(|error| super::unfilled(&name, &plain, error))?;
            plain
        } else {
            path.to_owned()
        };
        let members = members(&name, &file)?;
        let place = Place::Archive { file, members };
        Ok(Self { name, place })
    }

    /// Their source, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the part `name`.
    pub(super) fn read(&self, name: &str) -> Result<Part, SourceError> {
        let missing = || SourceError::NoBlob {
            archive: self.name.clone(),
            blob: name.to_owned(),
        };
        let mut path = tree::inside(Path::new(name)).map_err(|tree::Leaves| SourceError::Escape {
            archive: self.name.clone(),
            entry: name.to_owned(),
        })?;
        match &self.place {
            Place::Directory(dir) => {
                let fail = |source| FileError::io("open", &dir.shown(&path), source);
                let file = dir.file(&path).map_err(fail)?.ok_or_else(missing)?;
                let bytes = file.metadata().map_err(fail)?.len();
                let content = Box::new(file);
                Ok(Part { content, bytes })
            }
            Place::Archive { file, members } => {
                for _ in 0..LINK_LIMIT {
                    match members.get(&path).ok_or_else(missing)? {
                        Member::Link(target) => path.clone_from(target),
                        Member::Sparse => {
                            return Err(SourceError::Sparse {
                                archive: self.name.clone(),
                                blob: name.to_owned(),
                            });
                        }
                        Member::Content { offset, bytes } => {
                            let mut content = super::open(file)?;
                            content
                                .seek(SeekFrom::Start(*offset))
                                .map_err(|source| FileError::io("read", file, source))?;
                            let (content, bytes) = (Box::new(content), *bytes);
                            return Ok(Part { content, bytes });
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// The complete content of the small part `name`.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let part = self.read(name)?;
        let unread = |source| SourceError::Read {
            archive: self.name.clone(),
            source,
        };
        if part.bytes > DOCUMENT_LIMIT {
            let why = format!("{name} has more than {DOCUMENT_LIMIT} bytes");
            return Err(unread(io::Error::new(io::ErrorKind::FileTooLarge, why)));
        }
        let mut text = Vec::new();
        part.content
            .take(part.bytes)
            .read_to_end(&mut text)
            .map_err(unread)?;
        Ok(text)
    }
}

/// A part that is being read.
pub(super) struct Part {
    pub(super) content: Box<dyn Read>,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file is in a scratch directory of ours, under a name of ours"
)]
fn create_new(path: &Path) -> io::Result<File> {
    File::create_new(path)
}

fn members(name: &str, file: &Path) -> Result<BTreeMap<PathBuf, Member>, SourceError> {
    let failed = |source| SourceError::Archive {
        archive: name.to_owned(),
        source,
    };
    let mut members = BTreeMap::new();
    let at = Rc::new(Cell::new(0));
    let mut archive = Reader::new(Counted {
        inner: BufReader::with_capacity(1 << 20, super::open(file)?),
        at: Rc::clone(&at),
    });
    while let Some(member) = archive.next_member().map_err(failed)? {
        let path_of = |text: &[u8]| PathBuf::from(OsStr::from_bytes(text));
        let Ok(path) = tree::inside(&path_of(&member.path)) else {
            continue;
        };
        let found = match member.kind {
            // No tool that writes images makes sparse members; tar does, of the layout's directory.
            MemberKind::File if member.pieces.is_some() => Member::Sparse,
            MemberKind::File => Member::Content {
                offset: at.get(),
                bytes: member.size,
            },
            // A link's target is relative to the link's own directory: `docker save` writes a repeated layer
            // as a link.
            MemberKind::Symlink => match joined(&path, &path_of(&member.link)) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            MemberKind::HardLink => match tree::inside(&path_of(&member.link)) {
                Ok(target) => Member::Link(target),
                Err(tree::Leaves) => continue,
            },
            _ => continue,
        };
        if members.len() >= MEMBERS_LIMIT {
            return Err(SourceError::TooMany {
                archive: name.to_owned(),
                limit: MEMBERS_LIMIT as u64,
            });
        }
        members.insert(path, found);
    }
    Ok(members)
}

/// A file, with the current offset.
struct Counted<R> {
    inner: R,
    at: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

/// `target` relative to the directory of `path`, with `..` taken literally; `None` if it leaves the archive.
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
