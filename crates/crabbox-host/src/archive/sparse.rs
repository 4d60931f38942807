//! Maps of sparse files: the pieces of a file that an archive contains.
//!
//! A map must not be used before [`check`]: pieces in order, without overlap, inside the file, and together
//! exactly the content in the archive.

use std::io::Read;

use super::header::{Header, number};
use super::pax::decimal;
use super::{ArchiveError, BLOCK, MAP_LIMIT, Reader, garbled};

/// A piece of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Position of the map in the old GNU form: in the header, and in blocks after it.
const IN_HEADER: (usize, usize, usize) = (386, 4, 482);
const IN_BLOCK: (usize, usize, usize) = (0, 21, 504);

/// Length of a piece in the old form: two numbers of 12 bytes each.
const PAIR: usize = 24;

/// The map of the old GNU form and the length of the file. Blocks of the map come before the content and are
/// not part of it.
pub(super) fn old(header: &Header, from: &mut impl Read) -> Result<(Vec<Segment>, u64), ArchiveError> {
    let real = number(&header.block[483..495])?;
    let mut pieces = Vec::new();
    let mut is_more = add(&header.block, IN_HEADER, &mut pieces)?;
    let mut taken = 0;
    while is_more {
        taken += BLOCK as u64;
        if taken > MAP_LIMIT {
            return Err(garbled("a map of a sparse file that is too long"));
        }
        let mut block = [0; BLOCK];
        from.read_exact(&mut block).map_err(ArchiveError::Read)?;
        is_more = add(&block, IN_BLOCK, &mut pieces)?;
    }
    Ok((pieces, real))
}

/// Adds the pieces of a block; returns whether another block follows.
fn add(
    block: &[u8; BLOCK],
    (start, count, flag): (usize, usize, usize),
    pieces: &mut Vec<Segment>,
) -> Result<bool, ArchiveError> {
    for pair in block[start..start + count * PAIR].chunks(PAIR) {
        // An empty field ends the list.
        if pair[0] == 0 {
            break;
        }
        pieces.push(Segment {
            offset: number(&pair[..12])?,
            length: number(&pair[12..])?,
        });
    }
    Ok(block[flag] != 0)
}

/// The map of PAX form 1.0: lines of decimal numbers in front of the content, in whole blocks.
pub(super) fn in_content<R: Read>(reader: &mut Reader<R>) -> Result<Vec<Segment>, ArchiveError> {
    let (mut line, mut numbers, mut taken) = (Vec::new(), Vec::new(), 0);
    let mut wanted = 1;
    while numbers.len() < wanted {
        taken += BLOCK as u64;
        if taken > MAP_LIMIT {
            return Err(garbled("a map of a sparse file that is too long"));
        }
        let block = reader.read_piece(BLOCK as u64)?;
        if block.len() != BLOCK {
            return Err(garbled("a map of a sparse file that is cut short"));
        }
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            numbers.push(decimal(&line)?);
            line.clear();
            if numbers.len() == 1 {
                // Each number takes at least two bytes, so a larger count is invalid.
                let count = usize::try_from(numbers[0]).ok();
                let count = count.filter(|count| *count as u64 <= MAP_LIMIT / 4);
                wanted += 2 * count.ok_or_else(|| garbled("a map of a sparse file that is too long"))?;
            }
            if numbers.len() == wanted {
                break;
            }
        }
    }
    let pieces = numbers[1..].chunks(2).map(|pair| Segment {
        offset: pair[0],
        length: pair[1],
    });
    Ok(pieces.collect())
}

/// Whether a map describes a file of `real` bytes with `stored` bytes of content.
pub(super) fn check(pieces: &[Segment], stored: u64, real: u64) -> Result<(), ArchiveError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in pieces {
        let after = piece.offset.checked_add(piece.length);
        if piece.offset < end || after.is_none_or(|after| after > real) {
            return Err(garbled("a map of a sparse file that contradicts itself"));
        }
        end = after.unwrap_or(real);
        sum += piece.length;
    }
    if sum != stored {
        return Err(garbled("a map of a sparse file that contradicts its content"));
    }
    Ok(())
}
