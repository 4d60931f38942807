//! Reads untrusted tar archives one member at a time, for `pull`, `cp`, artifacts and images.
//!
//! All memory of a [`Reader`] is bounded: long names and PAX headers by [`METADATA_LIMIT`], maps of sparse
//! files by [`MAP_LIMIT`]; content is written through a [`Budget`]. It must never turn a name into a path,
//! write to a file that it was not given, or trust a declared size without checking it against the content.
//! The formats are those of tar(5): v7, ustar, GNU, PAX, and sparse files in the old GNU form and in PAX
//! forms 0.0, 0.1 and 1.0.

mod header;
mod pax;
mod sparse;

use std::fs::File;
use std::io::{self, Read};

use crate::budget::{Budget, FillError, OverBudget, fill};
use header::{Header, Type};
use pax::Records;
pub use sparse::Segment;

/// Maximum total size of one member's metadata (GNU long names, PAX headers), in bytes.
pub(crate) const METADATA_LIMIT: u64 = 64 * 1024;

/// Maximum size of the map of a sparse file, in bytes; enough for some 40,000 pieces.
pub(crate) const MAP_LIMIT: u64 = 1 << 20;

/// Length of a block of an archive, in bytes.
const BLOCK: usize = 512;

/// Whether a file that begins with these bytes is an archive, of any of the formats. v7 and the label of an
/// archive have no magic number, but a header with a checksum; one with the number and a wrong checksum is a
/// damaged archive.
pub fn is_archive(head: &[u8]) -> bool {
    let has_magic = head.get(257..262) == Some(b"ustar".as_slice());
    has_magic
        || head
            .first_chunk()
            .is_some_and(|block| Header::parse(block).is_ok())
}

/// Why reading an archive stopped.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its bytes could not be read, or it is truncated.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It is not a valid archive.
    #[error("the archive has {what}")]
    Garbled {
        /// What is wrong.
        what: &'static str,
    },
    /// A member's long name, link or PAX header exceeds the limit.
    #[error("the archive has {size} bytes of metadata for one member, more than {METADATA_LIMIT}")]
    Metadata {
        /// Its size, in bytes.
        size: u64,
    },
    /// A member is larger than the limit.
    #[error("{} cannot be stored", String::from_utf8_lossy(path))]
    Over {
        /// The member.
        path: Vec<u8>,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// A local file could not be written.
    #[error("cannot write {}", String::from_utf8_lossy(path))]
    Write {
        /// The member.
        path: Vec<u8>,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn garbled(what: &'static str) -> ArchiveError {
    ArchiveError::Garbled { what }
}

/// The type of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file, sparse or not.
    File,
    /// A directory.
    Directory,
    /// Another name of an earlier member, which [`Member::link`] names.
    HardLink,
    /// A symbolic link to [`Member::link`].
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe (FIFO).
    Fifo,
    /// Any other type, with its type byte.
    Other(u8),
}

impl MemberKind {
    /// A name for a message.
    pub fn describe(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::HardLink => "a hard link",
            Self::Symlink => "a symbolic link",
            Self::CharDevice | Self::BlockDevice => "a device",
            Self::Fifo => "a named pipe",
            Self::Other(_) => "neither a file nor a directory",
        }
    }
}

/// One member of an archive. All of its fields are untrusted.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name as written in the archive; see `EntryPath` for a usable path.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: MemberKind,
    /// The target of a link; empty for other types.
    pub link: Vec<u8>,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u64,
    /// Numeric group.
    pub gid: u64,
    /// Seconds since the epoch of its last change.
    pub mtime: i64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Length of the file with its holes, in bytes.
    pub size: u64,
    /// Extended attributes (PAX `SCHILY.xattr.`), name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The pieces of a sparse file that the archive contains; `None` for an ordinary file.
    pub pieces: Option<Vec<Segment>>,
}

/// An archive that is read from a stream.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes of the current member that have not been read yet, and of its padding.
    left: u64,
    padding: u64,
    global: Records,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the archive that comes from `from`.
    pub fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            padding: 0,
            global: Records::default(),
            is_over: false,
        }
    }

    /// The next member; skips the unread rest of the current one. `None` at the end.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let (mut name, mut link, mut local) = (None, None, Records::default());
        let mut metadata = 0_u64;
        loop {
            self.pass_over()?;
            let Some(header) = self.header()? else {
                return if metadata == 0 {
                    Ok(None)
                } else {
                    Err(garbled("metadata of a member that is not there"))
                };
            };
            if !header.kind.is_metadata() {
                return self.member(&header, name, link, &local).map(Some);
            }
            metadata = metadata.saturating_add(header.size).saturating_add(1);
            if metadata > METADATA_LIMIT {
                return Err(ArchiveError::Metadata { size: metadata - 1 });
            }
            self.begin(header.size);
            if header.kind == Type::Label {
                metadata = 0;
                continue;
            }
            let bytes = self.read_piece(header.size)?;
            match header.kind {
                Type::LongName => name = Some(header::text(&bytes).to_vec()),
                Type::LongLink => link = Some(header::text(&bytes).to_vec()),
                Type::GlobalPax => self.global.merge(&bytes)?,
                _ => local.merge(&bytes)?,
            }
        }
    }

    /// Copies the content of `member`, which must be the current one, into the empty file `to`; holes stay
    /// holes.
    pub fn extract(&mut self, member: &Member, to: &File, budget: &mut Budget) -> Result<(), ArchiveError> {
        let over = |over| ArchiveError::Over {
            path: member.path.clone(),
            over,
        };
        let failed = |error| match error {
            FillError::Read(source) => ArchiveError::Read(source),
            FillError::Over(found) => over(found),
            FillError::Write(source) => ArchiveError::Write {
                path: member.path.clone(),
                source,
            },
        };
        // Check the declared size against the budget before any byte is written.
        budget.allows(self.left).map_err(over)?;
        let whole = [Segment {
            offset: 0,
            length: self.left,
        }];
        let pieces = member.pieces.as_deref().unwrap_or(&whole);
        budget
            .take_hole(member.size.saturating_sub(self.left))
            .map_err(over)?;
        for piece in pieces.iter().filter(|piece| piece.length > 0) {
            let mut content = Content {
                reader: self,
                left: piece.length,
            };
            fill(&mut content, to, piece.offset, budget).map_err(failed)?;
        }
        to.set_len(member.size)
            .map_err(|source| failed(FillError::Write(source)))
    }

    /// The unread content of the current member, as it is in the archive: for a caller that checks its length
    /// itself.
    pub fn content(&mut self) -> Content<'_, R> {
        let left = self.left;
        Content { reader: self, left }
    }

    /// The content of the current member, at most `limit` bytes; longer content is an error.
    pub fn read_small(&mut self, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.left > limit {
            return Err(garbled("a member that is larger than such a file can be"));
        }
        self.read_piece(self.left)
    }

    /// Reads the stream to its end, so that its writer does not fail, and returns it.
    pub fn finish(mut self) -> Result<R, ArchiveError> {
        io::copy(&mut self.from, &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(self.from)
    }

    fn member(
        &mut self,
        header: &Header,
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
        local: &Records,
    ) -> Result<Member, ArchiveError> {
        let records = self.global.overlaid(local);
        let number = |key: &str, plain| records.number(key).map(|found| found.unwrap_or(plain));
        let is_bare = header.kind.is_bare();
        let size = if is_bare { 0 } else { number("size", header.size)? };
        self.begin(size);
        let text = |key: &str| records.get(key).map(<[u8]>::to_vec);
        let mut member = Member {
            path: text("path").or(name).unwrap_or_else(|| header.path.clone()),
            kind: header.kind.member(&header.path),
            link: text("linkpath").or(link).unwrap_or_else(|| header.link.clone()),
            mode: header.mode & 0o7777,
            uid: number("uid", header.uid)?,
            gid: number("gid", header.gid)?,
            mtime: records.seconds("mtime")?.unwrap_or(header.mtime),
            device: header.device,
            size,
            xattrs: records.xattrs(),
            pieces: None,
        };
        if header.kind == Type::OldSparse {
            let (pieces, real) = sparse::old(header, &mut self.from)?;
            self.set_sparse(&mut member, pieces, real)?;
        } else if member.kind == MemberKind::File && records.is_sparse() {
            if let Some(real) = text("GNU.sparse.name") {
                member.path = real;
            }
            let (pieces, real) = if let Some(map) = records.sparse_map()? {
                map
            } else {
                (sparse::in_content(self)?, records.sparse_size()?)
            };
            self.set_sparse(&mut member, pieces, real)?;
        }
        if member.path.contains(&0) || member.link.contains(&0) {
            return Err(garbled("a name with a NUL byte"));
        }
        Ok(member)
    }

    fn set_sparse(&self, member: &mut Member, pieces: Vec<Segment>, real: u64) -> Result<(), ArchiveError> {
        sparse::check(&pieces, self.left, real)?;
        member.size = real;
        member.pieces = Some(pieces);
        Ok(())
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        let over = size % BLOCK as u64;
        self.padding = if over == 0 { 0 } else { BLOCK as u64 - over };
    }

    /// Skips the unread rest of the current member.
    fn pass_over(&mut self) -> Result<(), ArchiveError> {
        let wanted = self
            .left
            .checked_add(self.padding)
            .ok_or(garbled("an impossible size"))?;
        let passed = io::copy(&mut (&mut self.from).take(wanted), &mut io::sink());
        if passed.map_err(ArchiveError::Read)? != wanted {
            return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at the end, which is a block of zeros or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if self.is_over {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.from.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => {
                    self.is_over = true;
                    return Ok(None);
                }
                Ok(0) => return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            self.is_over = true;
            return Ok(None);
        }
        Header::parse(&block).map(Some)
    }

    /// `size` bytes of the current member, which the caller has checked against a limit.
    fn read_piece(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        let mut content = Content {
            reader: self,
            left: size,
        };
        content.read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
        Ok(bytes)
    }
}

/// Part of the current member's content; if the archive ends in the middle of it, that is an error.
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut Reader<R>,
    left: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left.min(self.reader.left)).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let count = self.reader.from.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.reader.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
