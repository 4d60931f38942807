//! Finds the free space of an ext4 file system from its block bitmaps.
//!
//! The format is that of the kernel's `Documentation/filesystems/ext4`. Blocks reported as free lose their
//! contents, so a single source is never enough: a group counts only if its descriptor, its bitmap and its
//! count of free blocks agree, including checksums if present. The caller must ensure that nothing changes
//! meanwhile (a frozen file system).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::crc32c;

/// Where the superblock starts, and how long it is, in bytes.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

const MAGIC: u16 = 0xEF53;

/// Incompatible features that do not change where data is: file types in directories, extents, 64-bit block
/// numbers, `flex_bg`, a separate checksum seed. Any other one (`meta_bg`, an external journal, a journal to
/// be replayed, ...) is refused.
const KNOWN_INCOMPAT: u32 = 0x2 | 0x40 | INCOMPAT_64BIT | 0x200 | INCOMPAT_CSUM_SEED;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;

/// Read-only-compatible features that do not matter here: `sparse_super`, `large_file`, `huge_file`,
/// `gdt_csum`, `dir_nlink`, `extra_isize`, `metadata_csum`. Block clusters (`bigalloc`) are refused.
const KNOWN_RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | RO_COMPAT_METADATA_CSUM;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// Flag of a group whose bitmap was never initialised: none of its blocks was ever used.
const BLOCK_UNINIT: u16 = 0x2;

/// Where a descriptor's own checksum is.
const DESCRIPTOR_CSUM: std::ops::Range<usize> = 0x1E..0x20;

/// The host's page size: it punches holes in this unit, so extents are cut to it at both ends.
pub(crate) const GRAIN: u64 = 4096;

/// The maximum number of groups; at 128 MiB each, more than any lease's disk has.
const GROUP_LIMIT: u64 = 1 << 20;

/// A free range of the device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Why a file system is not examined.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The device could not be read.
    Read(io::Error),
    /// It is not ext4, or has unknown features or values.
    Format(&'static str),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => write!(out, "cannot read the private layer: {error}"),
            Self::Format(why) => write!(out, "the private layer's file system {why}"),
        }
    }
}

/// The result of examining a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Its free extents were added.
    Read,
    /// It was never used.
    Unused,
    /// Its metadata is inconsistent: nothing was added.
    Contradictory,
}

/// Little-endian numbers at fixed offsets. An offset outside of the bytes reads as zero, which every check
/// rejects.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn half(&self, at: usize) -> u16 {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// A number in two words; the high one only counts if `is_wide`.
    fn wide(&self, low: usize, high: usize, is_wide: bool) -> u64 {
        let high = if is_wide { self.word(high) } else { 0 };
        u64::from(high) << 32 | u64::from(self.word(low))
    }
}

/// The values of a superblock that locate the bitmaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    block_size: u64,
    blocks: u64,
    first_block: u64,
    group_blocks: u64,
    descriptor_size: usize,
    /// The initial value of metadata checksums, if the file system has them.
    seed: Option<u32>,
}

impl Layout {
    /// Reads the superblock of the file system on `disk`.
    pub(crate) fn read(disk: &File) -> Result<Self, Refusal> {
        let mut bytes = [0; SUPERBLOCK.1];
        disk.read_exact_at(&mut bytes, SUPERBLOCK.0)
            .map_err(Refusal::Read)?;
        Self::parse(&bytes).map_err(Refusal::Format)
    }

    fn parse(bytes: &[u8; SUPERBLOCK.1]) -> Result<Self, &'static str> {
        let fields = Fields(bytes);
        let (incompat, ro_compat) = (fields.word(0x60), fields.word(0x64));
        if fields.half(0x38) != MAGIC {
            return Err("is not ext4");
        }
        if incompat & !KNOWN_INCOMPAT != 0 || ro_compat & !KNOWN_RO_COMPAT != 0 {
            return Err("has features that crabbox does not know");
        }
        let seed = if ro_compat & RO_COMPAT_METADATA_CSUM == 0 {
            None
        } else if crc32c::update(!0, &bytes[..0x3FC]) != fields.word(0x3FC) {
            return Err("has a superblock whose checksum is wrong");
        } else if incompat & INCOMPAT_CSUM_SEED != 0 {
            Some(fields.word(0x270))
        } else {
            Some(crc32c::update(!0, &bytes[0x68..0x78]))
        };
        let is_wide = incompat & INCOMPAT_64BIT != 0;
        let (log_block_size, log_cluster_size) = (fields.word(0x18), fields.word(0x1C));
        let layout = Self {
            block_size: 1024_u64 << log_block_size.min(6),
            blocks: fields.wide(0x04, 0x150, is_wide),
            first_block: fields.word(0x14).into(),
            group_blocks: fields.word(0x20).into(),
            descriptor_size: if is_wide { fields.half(0xFE).into() } else { 32 },
            seed,
        };
        let possible = log_block_size <= 6
            && log_cluster_size == log_block_size
            && layout.first_block == u64::from(log_block_size == 0)
            && layout.first_block < layout.blocks
            && layout.blocks <= u64::MAX / layout.block_size
            && (1..=8 * layout.block_size).contains(&layout.group_blocks)
            && layout.group_blocks.is_multiple_of(8)
            && layout.groups() <= GROUP_LIMIT
            && (if is_wide { 64..=1024 } else { 32..=32 }).contains(&layout.descriptor_size);
        if possible {
            Ok(layout)
        } else {
            Err("has a superblock with impossible numbers")
        }
    }

    /// How many groups there are.
    pub(crate) fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.group_blocks)
    }

    /// Length of the file system in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks * self.block_size
    }

    /// Adds the free extents of group number `group` to `free`: those with at least `least` bytes after being
    /// cut to [`GRAIN`].
    pub(crate) fn free(
        &self,
        disk: &File,
        group: u64,
        least: u64,
        free: &mut Vec<Extent>,
    ) -> io::Result<Group> {
        let Some(number) = u32::try_from(group).ok().filter(|_| group < self.groups()) else {
            return Ok(Group::Contradictory);
        };
        let mut descriptor = vec![0; self.descriptor_size];
        // The table follows the superblock's block; all entries have the same size.
        let table = (self.first_block + 1) * self.block_size;
        disk.read_exact_at(&mut descriptor, table + group * self.descriptor_size as u64)?;
        if !self.is_signed(number, &descriptor) {
            return Ok(Group::Contradictory);
        }
        let fields = Fields(&descriptor);
        if fields.half(0x12) & BLOCK_UNINIT != 0 {
            return Ok(Group::Unused);
        }
        let is_wide = self.descriptor_size >= 64;
        let place = fields.wide(0x00, 0x20, is_wide);
        if place <= self.first_block || place >= self.blocks {
            return Ok(Group::Contradictory);
        }
        let mut bitmap = vec![0; usize::try_from(self.block_size).unwrap_or(0)];
        disk.read_exact_at(&mut bitmap, place * self.block_size)?;
        // The bits after the group's last block are all ones; they do not belong to the group.
        let bits = usize::try_from(self.group_blocks).unwrap_or(0);
        bitmap.truncate(bits / 8);
        if self
            .seed
            .is_some_and(|seed| !fields.signs_bitmap(crc32c::update(seed, &bitmap), is_wide))
        {
            return Ok(Group::Contradictory);
        }
        let first = self.first_block + group * self.group_blocks;
        let blocks = self.group_blocks.min(self.blocks - first);
        let runs = free_runs(&bitmap, usize::try_from(blocks).unwrap_or(0));
        let counted: u64 = runs.iter().map(|(_, length)| *length as u64).sum();
        let high = if is_wide { fields.half(0x2C) } else { 0 };
        if counted != u64::from(high) << 16 | u64::from(fields.half(0x0C)) {
            return Ok(Group::Contradictory);
        }
        free.extend(runs.into_iter().filter_map(|(start, length)| {
            let start = first + start as u64;
            self.cut(start, start + length as u64, least)
        }));
        Ok(Group::Read)
    }

    /// Blocks `start` to `end` as bytes, cut to [`GRAIN`].
    fn cut(&self, start: u64, end: u64, least: u64) -> Option<Extent> {
        let offset = (start * self.block_size).checked_next_multiple_of(GRAIN)?;
        let end = end * self.block_size / GRAIN * GRAIN;
        let length = end.checked_sub(offset)?;
        (length > 0 && length >= least).then_some(Extent { offset, length })
    }

    /// Whether a descriptor's checksum is right; always true without metadata checksums.
    fn is_signed(&self, group: u32, descriptor: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let (before, after) = (
            descriptor.get(..DESCRIPTOR_CSUM.start).unwrap_or_default(),
            descriptor.get(DESCRIPTOR_CSUM.end..).unwrap_or_default(),
        );
        let sum = [&group.to_le_bytes(), before, &[0; 2], after]
            .into_iter()
            .fold(seed, crc32c::update);
        sum & 0xFFFF == u32::from(Fields(descriptor).half(DESCRIPTOR_CSUM.start))
    }
}

impl Fields<'_> {
    /// Whether this descriptor has `sum` as the checksum of its block bitmap.
    fn signs_bitmap(&self, sum: u32, is_wide: bool) -> bool {
        let mask = if is_wide { u32::MAX } else { 0xFFFF };
        let high = if is_wide { self.half(0x38) } else { 0 };
        sum & mask == u32::from(high) << 16 | u32::from(self.half(0x18))
    }
}

/// The runs of zeros among the first `bits` of a bitmap: start and length of each.
fn free_runs(bitmap: &[u8], bits: usize) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let mut start = None;
    let mut end_run = |start: &mut Option<usize>, at: usize| {
        if let Some(start) = start.take() {
            runs.push((start, at - start));
        }
    };
    for (index, byte) in bitmap.iter().enumerate() {
        let at = index * 8;
        match byte {
            _ if at >= bits => break,
            0xFF => end_run(&mut start, at),
            0 => start = start.or(Some(at)),
            byte => {
                for bit in at..(at + 8).min(bits) {
                    if byte >> (bit - at) & 1 == 1 {
                        end_run(&mut start, bit);
                    } else {
                        start = start.or(Some(bit));
                    }
                }
            }
        }
    }
    end_run(&mut start, bits.min(bitmap.len() * 8));
    runs
}

#[cfg(test)]
mod tests;
