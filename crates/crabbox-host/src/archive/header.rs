//! One header block of 512 bytes, with which a member of an archive begins (tar(5)).
//!
//! Parsing checks the checksum and every number; it must never interpret a field in the wrong format.

use super::{ArchiveError, BLOCK, MemberKind, garbled};

/// The kind of data that follows a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// A member of this type byte.
    Plain(u8),
    /// A sparse file in the old GNU form.
    OldSparse,
    /// The name of the next member, GNU.
    LongName,
    /// The link of the next member, GNU.
    LongLink,
    /// PAX records for the next member.
    Pax,
    /// PAX records for all that follow.
    GlobalPax,
    /// The name of the whole archive, GNU (`tar --label`); nothing follows it.
    Label,
}

impl Type {
    /// Whether it only describes the following member.
    pub(super) fn is_metadata(self) -> bool {
        !matches!(self, Self::Plain(_) | Self::OldSparse)
    }

    /// Whether it has no content, whatever its size says: links, directories, devices and pipes.
    pub(super) fn is_bare(self) -> bool {
        matches!(self, Self::Plain(b'1'..=b'6'))
    }

    /// The type of the member. Before POSIX, a directory was a file with a slash at its end.
    pub(super) fn member(self, path: &[u8]) -> MemberKind {
        match self {
            Self::Plain(0) if path.ends_with(b"/") => MemberKind::Directory,
            Self::OldSparse | Self::Plain(0 | b'0' | b'7') => MemberKind::File,
            Self::Plain(b'1') => MemberKind::HardLink,
            Self::Plain(b'2') => MemberKind::Symlink,
            Self::Plain(b'3') => MemberKind::CharDevice,
            Self::Plain(b'4') => MemberKind::BlockDevice,
            Self::Plain(b'5') => MemberKind::Directory,
            Self::Plain(b'6') => MemberKind::Fifo,
            Self::Plain(other) => MemberKind::Other(other),
            Self::LongName => MemberKind::Other(b'L'),
            Self::LongLink => MemberKind::Other(b'K'),
            Self::Pax => MemberKind::Other(b'x'),
            Self::GlobalPax => MemberKind::Other(b'g'),
            Self::Label => MemberKind::Other(b'V'),
        }
    }
}

/// The fields of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: Type,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
    /// The block itself, for the map of the old sparse form.
    pub(super) block: [u8; BLOCK],
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, ArchiveError> {
        let sum: u64 = block[..148]
            .iter()
            .chain(&[b' '; 8])
            .chain(&block[156..])
            .map(|byte| u64::from(*byte))
            .sum();
        if number(&block[148..156])? != sum {
            return Err(garbled("a header whose sum is wrong"));
        }
        let kind = match block[156] {
            b'S' => Type::OldSparse,
            b'L' => Type::LongName,
            b'K' => Type::LongLink,
            b'x' | b'X' => Type::Pax,
            b'g' => Type::GlobalPax,
            b'V' => Type::Label,
            other => Type::Plain(other),
        };
        let is_posix = &block[257..263] == b"ustar\0";
        let is_gnu = &block[257..263] == b"ustar ";
        let mut path = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if is_posix && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let device = |field: &[u8]| {
            if is_posix || is_gnu {
                number(field).map(|found| u32::try_from(found).unwrap_or(u32::MAX))
            } else {
                Ok(0)
            }
        };
        Ok(Self {
            kind,
            path,
            link: text(&block[157..257]).to_vec(),
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            size: number(&block[124..136])?,
            mtime: signed(&block[136..148])?,
            device: (device(&block[329..337])?, device(&block[337..345])?),
            block: *block,
        })
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number of a header: octal text, or GNU's base 256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<u64, ArchiveError> {
    u64::try_from(signed(field)?).map_err(|_| garbled("a negative number"))
}

fn signed(field: &[u8]) -> Result<i64, ArchiveError> {
    let impossible = || garbled("an invalid number");
    let first = *field.first().ok_or_else(impossible)?;
    if first & 0x80 != 0 {
        // Two's complement; the highest bit only marks this format.
        let mut value: i128 = if first & 0x40 == 0 {
            i128::from(first & 0x3f)
        } else {
            i128::from(first) - 256
        };
        for byte in &field[1..] {
            value = value.checked_mul(256).ok_or_else(impossible)? + i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| impossible());
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| matches!(byte, 0 | b' '))
        .unwrap_or(digits.len());
    if end == 0 {
        return Ok(0);
    }
    let digits = std::str::from_utf8(&digits[..end]).map_err(|_| impossible())?;
    i64::from_str_radix(digits, 8).map_err(|_| impossible())
}
