//! Unpacks a tar archive into a tree: a complete one, or a layer over others (layers of the OCI image
//! specification).
//!
//! An archive must never be accepted before all of it was read and its digest is correct; declared sizes are
//! checked against a budget first.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::archive::{ArchiveError, Member, MemberKind, Reader};
use crabbox_host::budget::Budget;
use crabbox_host::digest;
use crabbox_host::tree::{self, Facts, Kind, Tree};
use sha2::{Digest as _, Sha256};

use super::blobs::Part;
use super::{SourceError, compression};

/// Prefix of a whiteout file in a layer, which hides the file without the prefix in lower layers.
const WHITEOUT: &str = ".wh.";

/// Name of an opaque whiteout, which hides everything that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Extended attributes that a guest uses; others belong to the host that packed the archive.
const ATTRIBUTES: [&str; 2] = ["security.capability", "user."];

/// Maximum number of entries of one archive; all of Debian's archive has fewer.
const ENTRIES_LIMIT: u64 = 1 << 22;

/// Maximum number of bytes after an archive's end; writers pad their last record, which is at most a
/// megabyte.
const REST_LIMIT: u64 = 16 << 20;

/// The expected digest of an archive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected<'a> {
    /// Of its bytes as stored, in hexadecimal.
    Packed(&'a str),
    /// Of the uncompressed archive.
    Content(&'a str),
}

/// Fills `tree` from the archive in `file`; returns the digest of its bytes.
pub(super) fn unpack(
    name: &str,
    file: File,
    tree: &Tree,
    budget: &mut Budget,
) -> Result<String, SourceError> {
    let archive = Named(name);
    let bytes = file.metadata().map_err(|source| archive.unread(source))?.len();
    let content = Box::new(file);
    let part = Part { content, bytes };
    archive.each(part, None, |path, member, reader| {
        archive.put(path, member, reader, tree, budget)
    })
}

/// Applies the layer that `open` opens to `tree`. The layer is read twice, because whiteouts may follow the
/// entries that the same layer adds; its digest is checked each time.
pub(super) fn apply(
    name: &str,
    expected: Expected<'_>,
    mut open: impl FnMut() -> Result<Part, SourceError>,
    tree: &Tree,
    budget: &mut Budget,
) -> Result<(), SourceError> {
    let archive = Named(name);
    archive.each(open()?, Some(expected), |path, member, _| {
        let Some((dir, hidden)) = whiteout(path) else {
            // A directory that replaces a link does so before whiteouts in it count, or they would hide what
            // is in the link's target.
            return match member.kind {
                MemberKind::Directory => tree.make_way(path),
                _ => Ok(()),
            }
            .map_err(|source| archive.unwritten(path, source));
        };
        let done = match hidden {
            Some(hidden) => tree.remove(&dir.join(hidden)),
            None => tree.empty(dir),
        };
        done.map_err(|source| archive.unwritten(path, source))
    })?;
    archive.each(open()?, Some(expected), |path, member, reader| {
        match whiteout(path) {
            Some(_) => Ok(()),
            None => archive.put(path, member, reader, tree, budget),
        }
    })?;
    Ok(())
}

/// The directory and the hidden name of a whiteout; no name means that everything in it is hidden.
fn whiteout(path: &Path) -> Option<(&Path, Option<&OsStr>)> {
    let (dir, name) = (path.parent()?, path.file_name()?);
    if name == OPAQUE {
        return Some((dir, None));
    }
    let hidden = name.as_bytes().strip_prefix(WHITEOUT.as_bytes())?;
    // A whiteout must hide a single name: `.wh..` would hide the directory that contains it, `.wh...` the one
    // above.
    let is_name = !matches!(hidden, b"" | b"." | b"..");
    is_name.then(|| (dir, Some(OsStr::from_bytes(hidden))))
}

/// An archive's name, for error messages.
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

    fn failed(&self, error: ArchiveError) -> SourceError {
        match error {
            ArchiveError::Read(source) => self.unread(source),
            ArchiveError::Write { path, source } => {
                self.unwritten(Path::new(OsStr::from_bytes(&path)), source)
            }
            ArchiveError::Over { path, over } => SourceError::Over {
                archive: self.0.to_owned(),
                entry: String::from_utf8_lossy(&path).into_owned(),
                source: over,
            },
            source => SourceError::Archive {
                archive: self.0.to_owned(),
                source,
            },
        }
    }

    fn inside(&self, path: &[u8]) -> Result<PathBuf, SourceError> {
        let path = Path::new(OsStr::from_bytes(path));
        let inside = tree::inside(path).map_err(|tree::Leaves| SourceError::Escape {
            archive: self.0.to_owned(),
            entry: path.display().to_string(),
        })?;
        super::check_depth(self.0, &inside)?;
        Ok(inside)
    }

    /// Calls `act` with every entry and its name in the tree, and returns the digest of the bytes in `part`.
    /// For a damaged archive, the digest error takes precedence.
    fn each(
        &self,
        part: Part,
        expected: Option<Expected<'_>>,
        mut act: impl FnMut(&Path, &Member, &mut Reader<&mut Watched<'_>>) -> Result<(), SourceError>,
    ) -> Result<String, SourceError> {
        let unread = |source| self.unread(source);
        let of_content = matches!(expected, Some(Expected::Content(_)));
        let mut packed = Hashed::new(part.content.take(part.bytes), !of_content);
        let (read, content) = {
            let inner = compression::reader(&mut packed).map_err(unread)?;
            let mut content = Watched {
                inner: Hashed::new(inner, of_content),
                is_over: false,
            };
            let read = self.walk(&mut content, expected.is_some(), &mut act);
            let read = read.and_then(|()| self.pass_rest(&mut content));
            (read, content.inner.digest())
        };
        let is_damaged = matches!(read, Err(SourceError::Read { .. } | SourceError::Archive { .. }));
        if read.is_err() && !(is_damaged && matches!(expected, Some(Expected::Packed(_)))) {
            return read.map(|()| String::new());
        }
        io::copy(&mut packed, &mut io::sink()).map_err(unread)?;
        let found = if of_content { content } else { packed.digest() };
        match expected {
            Some(Expected::Packed(digits) | Expected::Content(digits)) if digits != found => {
                Err(SourceError::Digest {
                    archive: self.0.to_owned(),
                    blob: format!("sha256:{digits}"),
                    found,
                })
            }
            _ => read.map(|()| found),
        }
    }

    fn walk<'w>(
        &self,
        content: &mut Watched<'w>,
        has_digest: bool,
        act: &mut impl FnMut(&Path, &Member, &mut Reader<&mut Watched<'w>>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut reader = Reader::new(&mut *content);
        let mut entries = 0;
        while let Some(member) = reader.next_member().map_err(|error| self.failed(error))? {
            entries += 1;
            if entries > ENTRIES_LIMIT {
                return Err(SourceError::TooMany {
                    archive: self.0.to_owned(),
                    limit: ENTRIES_LIMIT,
                });
            }
            act(&self.inside(&member.path)?, &member, &mut reader)?;
        }
        // An archive ends with blocks of zeros. If the file ended before them, only a digest tells whether it
        // is truncated or was written without them.
        if content.is_over && !has_digest {
            return Err(self.unread(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Reads the bytes after the archive's end, where compressed formats have their checksums.
    fn pass_rest(&self, content: &mut Watched<'_>) -> Result<(), SourceError> {
        let passed = io::copy(&mut content.by_ref().take(REST_LIMIT + 1), &mut io::sink());
        if passed.map_err(|source| self.unread(source))? <= REST_LIMIT {
            return Ok(());
        }
        let why = format!("more than {REST_LIMIT} bytes are behind its end");
        Err(self.unread(io::Error::new(io::ErrorKind::FileTooLarge, why)))
    }

    fn put(
        &self,
        path: &Path,
        member: &Member,
        reader: &mut Reader<&mut Watched<'_>>,
        tree: &Tree,
        budget: &mut Budget,
    ) -> Result<(), SourceError> {
        let mut facts = Facts {
            mode: member.mode,
            uid: self.owner(path, member.uid)?,
            gid: self.owner(path, member.gid)?,
            modified: super::stored_time(member.mtime),
            attributes: Vec::new(),
        };
        let target = Path::new(OsStr::from_bytes(&member.link));
        let entry = || path.display().to_string();
        let archive = || self.0.to_owned();
        let written = match member.kind {
            MemberKind::Directory => tree.put(path, Kind::Directory, &facts),
            MemberKind::File => {
                facts.attributes = attributes(member);
                let mut failed = None;
                let mut fill = |file: &mut File| {
                    reader.extract(member, file, budget).map_err(|error| {
                        failed = Some(error);
                        io::Error::from(io::ErrorKind::Other)
                    })
                };
                let written = tree.put(path, Kind::File(&mut fill), &facts);
                // Distinguish errors of the archive from errors of the disk.
                if let Some(error) = failed {
                    return Err(self.failed(error));
                }
                written
            }
            MemberKind::Symlink if !member.link.is_empty() => tree.put(path, Kind::Symlink(target), &facts),
            MemberKind::HardLink if !member.link.is_empty() => {
                let target = self.inside(&member.link)?;
                tree.put(path, Kind::Link(&target), &facts)
            }
            MemberKind::Fifo => tree.put(path, Kind::Fifo, &facts),
            MemberKind::CharDevice | MemberKind::BlockDevice if path.starts_with("dev") => Ok(()),
            MemberKind::CharDevice | MemberKind::BlockDevice => {
                return Err(SourceError::Device {
                    archive: archive(),
                    entry: entry(),
                });
            }
            MemberKind::Symlink | MemberKind::HardLink | MemberKind::Other(_) => {
                return Err(SourceError::Kind {
                    archive: archive(),
                    entry: entry(),
                });
            }
        };
        written.map_err(|source| self.unwritten(path, source))
    }

    /// uids beyond 32 bits do not exist on Linux, and the highest 32-bit number is not a valid uid.
    fn owner(&self, path: &Path, id: u64) -> Result<u32, SourceError> {
        let narrow = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        narrow.ok_or_else(|| SourceError::Owner {
            archive: self.0.to_owned(),
            entry: path.display().to_string(),
            id,
        })
    }
}

fn attributes(member: &Member) -> Vec<(OsString, Vec<u8>)> {
    let known = |name: &[u8]| ATTRIBUTES.iter().any(|kept| name.starts_with(kept.as_bytes()));
    let kept = member.xattrs.iter().filter(|(name, _)| known(name));
    kept.map(|(name, value)| (OsStr::from_bytes(name).to_owned(), value.clone()))
        .collect()
}

/// The decompressed bytes, with a flag for their end.
struct Watched<'a> {
    inner: Hashed<Box<dyn Read + 'a>>,
    is_over: bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.is_over |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

/// A reader that computes the digest of all bytes read, if it is needed.
struct Hashed<R> {
    inner: R,
    state: Option<Sha256>,
}

impl<R> Hashed<R> {
    fn new(inner: R, is_wanted: bool) -> Self {
        let state = is_wanted.then(Sha256::new);
        Self { inner, state }
    }

    /// The digest in hexadecimal; empty if it was not requested.
    fn digest(&self) -> String {
        let state = self.state.clone();
        state
            .map(|state| digest::hex(&state.finalize()))
            .unwrap_or_default()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(state) = &mut self.state {
            state.update(&buffer[..count]);
        }
        Ok(count)
    }
}
