//! A tar archive into a tree: one that is whole, and one that is a layer above others (OCI image specification, `layer.md`).

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tar::{Archive, Entry, EntryType};

use super::tree::{self, Facts, Kind, Tree};
use super::{SourceError, compression};

/// A file of this name in a layer hides the one without the prefix below it.
const WHITEOUT: &str = ".wh.";

/// A file of this name hides all that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Attributes that mean something in a guest; others belong to the host that packed.
const ATTRIBUTES: [&str; 2] = ["security.capability", "user."];

/// The beginning of such an attribute's name in a PAX header.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";

/// Fills `tree` with the archive `packed`.
pub(super) fn unpack(name: &str, packed: impl Read, tree: &Tree) -> Result<(), SourceError> {
    let archive = Named(name);
    archive.each(packed, |path, entry| archive.put(path, entry, tree))
}

/// Lays the layer `packed` over `tree`; `packed` is opened twice, because what it hides may be named behind what it brings.
pub(super) fn apply<R: Read>(
    name: &str,
    mut packed: impl FnMut() -> Result<R, SourceError>,
    tree: &Tree,
) -> Result<(), SourceError> {
    let archive = Named(name);
    archive.each(packed()?, |path, _| {
        let Some((dir, hidden)) = whiteout(path) else {
            return Ok(());
        };
        let done = match hidden {
            Some(hidden) => tree.remove(&dir.join(hidden)),
            None => tree.empty(dir),
        };
        done.map_err(|source| archive.unwritten(path, source))
    })?;
    archive.each(packed()?, |path, entry| match whiteout(path) {
        Some(_) => Ok(()),
        None => archive.put(path, entry, tree),
    })
}

/// The directory and the hidden name of a whiteout; no name means that all of it is hidden.
fn whiteout(path: &Path) -> Option<(&Path, Option<&OsStr>)> {
    let (dir, name) = (path.parent()?, path.file_name()?);
    if name == OPAQUE {
        return Some((dir, None));
    }
    let hidden = name.as_bytes().strip_prefix(WHITEOUT.as_bytes())?;
    Some((dir, Some(OsStr::from_bytes(hidden))))
}

/// An archive's name, for what is wrong in it.
struct Named<'a>(&'a str);

impl Named<'_> {
    fn unread(&self, source: io::Error) -> SourceError {
        SourceError::Read {
            archive: self.0.to_owned(),
            source,
        }
    }

    fn unwritten(&self, entry: &Path, source: io::Error) -> SourceError {
        SourceError::Write {
            archive: self.0.to_owned(),
            entry: entry.display().to_string(),
            source,
        }
    }

    fn inside(&self, path: &Path) -> Result<PathBuf, SourceError> {
        tree::inside(path).map_err(|tree::Leaves| SourceError::Escape {
            archive: self.0.to_owned(),
            entry: path.display().to_string(),
        })
    }

    /// Calls `act` with every entry and its name in the tree; an archive without its end is an error.
    fn each<'a>(
        &self,
        packed: impl Read + 'a,
        mut act: impl FnMut(&Path, &mut Entry<'_, Watched<'a>>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let inner = compression::reader(packed).map_err(|source| self.unread(source))?;
        let over = Rc::new(Cell::new(false));
        let mut archive = Archive::new(Watched {
            inner,
            over: Rc::clone(&over),
        });
        for entry in archive.entries().map_err(|source| self.unread(source))? {
            let mut entry = entry.map_err(|source| self.unread(source))?;
            let path = entry.path().map_err(|source| self.unread(source))?.into_owned();
            if entry.header().entry_type() != EntryType::XGlobalHeader {
                act(&self.inside(&path)?, &mut entry)?;
            }
        }
        // An archive ends in blocks of zeros, behind which nobody looks: who met the end of the file before lost something.
        if over.get() {
            return Err(self.unread(io::ErrorKind::UnexpectedEof.into()));
        }
        // The rest is read for the check sums that compression has at its end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|source| self.unread(source))?;
        Ok(())
    }

    fn put(&self, path: &Path, entry: &mut Entry<'_, Watched<'_>>, tree: &Tree) -> Result<(), SourceError> {
        let unread = |source| self.unread(source);
        let header = entry.header().clone();
        let mut facts = Facts {
            mode: header.mode().map_err(unread)?,
            uid: narrow(header.uid().map_err(unread)?),
            gid: narrow(header.gid().map_err(unread)?),
            modified: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
            attributes: Vec::new(),
        };
        let target = entry
            .link_name()
            .map_err(unread)?
            .map(std::borrow::Cow::into_owned);
        let written = match (header.entry_type(), &target) {
            (EntryType::Directory, _) => tree.put(path, Kind::Directory, &facts),
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                facts.attributes = attributes(entry).map_err(unread)?;
                let mut broken = None;
                let mut content = Blamed {
                    inner: entry,
                    broken: &mut broken,
                };
                let written = tree.put(path, Kind::File(&mut content), &facts);
                // What failed while it was read is the archive's fault and not the disk's.
                if let Some(source) = broken {
                    return Err(unread(source));
                }
                written
            }
            (EntryType::Symlink, Some(target)) => tree.put(path, Kind::Symlink(target), &facts),
            (EntryType::Link, Some(target)) => {
                let target = self.inside(target)?;
                tree.put(path, Kind::Link(&target), &facts)
            }
            (EntryType::Fifo, _) => tree.put(path, Kind::Fifo, &facts),
            (EntryType::Char | EntryType::Block, _) if path.starts_with("dev") => Ok(()),
            (EntryType::Char | EntryType::Block, _) => {
                return Err(SourceError::Device {
                    archive: self.0.to_owned(),
                    entry: path.display().to_string(),
                });
            }
            _ => {
                return Err(SourceError::Kind {
                    archive: self.0.to_owned(),
                    entry: path.display().to_string(),
                });
            }
        };
        written.map_err(|source| self.unwritten(path, source))
    }
}

/// Owners beyond 32 bits do not exist on Linux.
fn narrow(id: u64) -> u32 {
    u32::try_from(id).unwrap_or(0)
}

fn attributes(entry: &mut Entry<'_, Watched<'_>>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let name = extension.key_bytes().strip_prefix(PAX_ATTRIBUTE.as_bytes());
        if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok())
            && ATTRIBUTES.iter().any(|kept| name.starts_with(kept))
        {
            found.push((OsString::from(name), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// An entry's content, with what went wrong while it was read. An archive that ends inside it is told when all is read.
struct Blamed<'a, R> {
    inner: R,
    broken: &'a mut Option<io::Error>,
}

/// Notes when its end was met.
struct Watched<'a> {
    inner: Box<dyn Read + 'a>,
    over: Rc<Cell<bool>>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.over.set(true);
        }
        Ok(count)
    }
}

impl<R: Read> Read for Blamed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => Ok(count),
            Err(error) => {
                let again = io::Error::from(error.kind());
                *self.broken = Some(error);
                Err(again)
            }
        }
    }
}
