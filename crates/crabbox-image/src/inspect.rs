//! Detects the type of an image file from its first bytes.
//!
//! It decides "is this a root file system that we can boot" without mounting anything; if not, it names the
//! type. It must never trust a length or offset in the image: it reads only fixed fields at fixed positions.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::digest;
use crabbox_host::files::{self, FileError};

/// Offset of the ext superblock, in bytes; the format is in the kernel's `Documentation/filesystems/ext4`.
const SUPERBLOCK_OFFSET: usize = 1024;

/// Number of bytes read: they contain the superblock and every signature below, the farthest being Btrfs at
/// 64 KiB + 0x40.
const HEAD_BYTES: usize = 65 * 1024;

/// The type of a file that is not a bare ext4 file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// A whole disk with a GUID partition table.
    GptDisk,
    /// A whole disk with a DOS partition table.
    MbrDisk,
    /// A QEMU copy-on-write image.
    Qcow2,
    /// A compressed file: gzip, xz or zstd.
    Compressed,
    /// Another file system; the name is the kernel's.
    OtherFileSystem(&'static str),
    /// An unknown type.
    Unknown,
}

impl FileFormat {
    /// The type and how to make a bare file system from it, as the end of a sentence.
    fn advice(self) -> &'static str {
        match self {
            Self::GptDisk => {
                "it is a whole disk with partitions (GPT); extract the root partition into a file of its own"
            }
            Self::MbrDisk => {
                "it is a whole disk with partitions (MBR); extract the root partition into a file of its own"
            }
            Self::Qcow2 => {
                "it is a qcow2 image; convert it with `qemu-img convert -O raw` and extract its root partition"
            }
            Self::Compressed => "it is compressed; unpack it first",
            Self::OtherFileSystem(_) => "it holds another file system; make an ext4 one with `mke2fs -d`",
            Self::Unknown => "it has no ext4 superblock; make an image with `mke2fs -t ext4 -d DIRECTORY`",
        }
    }
}

/// Why an image cannot be used as a root file system.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is of another type.
    #[error("{} is no ext4 file system: {}", path.display(), found.advice())]
    NotExt4 {
        /// The image.
        path: PathBuf,
        /// Its type.
        found: FileFormat,
    },
    /// The superblock has the right magic number but impossible values.
    #[error("the ext4 superblock of {} is damaged: it claims blocks of 2^{log_block_size} KiB", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// The field as read.
        log_block_size: u32,
    },
    /// It could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The needed fields of an ext4 superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Volume label, without its padding.
    pub label: String,
    /// Volume id, as 8-4-4-4-12 hexadecimal digits.
    pub uuid: String,
    /// Bytes per block: 1024 to 65536.
    pub block_size: u32,
    /// Length of the file system in blocks.
    pub blocks: u64,
    /// Free blocks, as of the last clean unmount.
    pub free_blocks: u64,
    /// Total number of inodes.
    pub inodes: u32,
    /// Whether it has a journal.
    pub journal: bool,
    /// Whether metadata have checksums; then the inode tables cannot be patched from outside.
    pub checksums: bool,
}

impl Superblock {
    /// Length of the file system in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }
}

/// Reads the superblock of the ext4 (or ext2, ext3: the same format) file system in the file at `path`.
pub fn superblock(path: &Path) -> Result<Superblock, InspectError> {
    let head = read_head(path)?;
    let field =
        |offset: usize, length: usize| &head[SUPERBLOCK_OFFSET + offset..SUPERBLOCK_OFFSET + offset + length];
    let half = |offset| u16::from_le_bytes([field(offset, 2)[0], field(offset, 2)[1]]);
    let word = |offset: usize| (u32::from(half(offset + 2)) << 16) | u32::from(half(offset));
    if half(0x38) != 0xEF53 {
        return Err(InspectError::NotExt4 {
            path: path.to_owned(),
            found: recognise(&head),
        });
    }
    let log_block_size = word(0x18);
    if log_block_size > 6 {
        return Err(InspectError::Damaged {
            path: path.to_owned(),
            log_block_size,
        });
    }
    // The high halves are valid only with INCOMPAT_64BIT.
    let high = |offset| {
        if word(0x60) & 0x80 == 0 {
            0
        } else {
            u64::from(word(offset)) << 32
        }
    };
    let label = field(0x78, 16);
    let label = &label[..label.iter().position(|byte| *byte == 0).unwrap_or(label.len())];
    Ok(Superblock {
        label: String::from_utf8_lossy(label).into_owned(),
        uuid: uuid(field(0x68, 16)),
        block_size: 1024 << log_block_size,
        blocks: high(0x150) | u64::from(word(0x04)),
        free_blocks: high(0x158) | u64::from(word(0x0C)),
        inodes: word(0x00),
        journal: word(0x5C) & 0x4 != 0,
        // RO_COMPAT_GDT_CSUM and RO_COMPAT_METADATA_CSUM.
        checksums: word(0x64) & (0x10 | 0x400) != 0,
    })
}

fn uuid(bytes: &[u8]) -> String {
    let hex = digest::hex(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The first [`HEAD_BYTES`] of the file, padded with zeros if it is shorter.
fn read_head(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = files::open_regular(path).map_err(|source| FileError::io("open", path, source))?;
    let mut head = vec![0; HEAD_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        let count = file
            .read_at(&mut head[filled..], filled as u64)
            .map_err(|source| FileError::io("read", path, source))?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(head)
}

fn recognise(head: &[u8]) -> FileFormat {
    let at = |offset: usize, mark: &[u8]| head[offset..].starts_with(mark);
    if at(512, b"EFI PART") || at(4096, b"EFI PART") {
        FileFormat::GptDisk
    } else if at(0, b"QFI\xfb") {
        FileFormat::Qcow2
    } else if at(0, b"\x1f\x8b") || at(0, b"\xfd7zXZ\0") || at(0, b"\x28\xb5\x2f\xfd") {
        FileFormat::Compressed
    } else if at(0, b"XFSB") {
        FileFormat::OtherFileSystem("xfs")
    } else if at(0x1_0040, b"_BHRfS_M") {
        FileFormat::OtherFileSystem("btrfs")
    } else if at(0, b"hsqs") {
        FileFormat::OtherFileSystem("squashfs")
    } else if at(1024, b"\xe2\xe1\xf5\xe0") {
        FileFormat::OtherFileSystem("erofs")
    } else if at(0x36, b"FAT") || at(0x52, b"FAT32") {
        // Check this before the partition table, because a FAT boot sector also ends in 55 AA.
        FileFormat::OtherFileSystem("vfat")
    } else if at(510, b"\x55\xaa") && (0..4).any(|slot| head[446 + 16 * slot + 4] != 0) {
        FileFormat::MbrDisk
    } else {
        FileFormat::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crabbox_host::command::Cmd;

    fn made(options: &[&str], size_mib: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create_new(&path).unwrap().set_len(size_mib << 20).unwrap();
        Cmd::new("mke2fs")
            .args(["-q", "-F"])
            .args(options)
            .arg(&path)
            .run()
            .unwrap();
        (dir, path)
    }

    fn with(patches: &[(usize, &[u8])]) -> FileFormat {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::create_new(&path).unwrap();
        file.set_len(100_000).unwrap();
        for (offset, bytes) in patches {
            file.write_all_at(bytes, *offset as u64).unwrap();
        }
        match superblock(&path) {
            Err(InspectError::NotExt4 { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_facts_are_those_that_mke2fs_was_told() {
        let uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let (_dir, path) = made(
            &["-t", "ext4", "-b", "1024", "-L", "root", "-U", uuid, "-N", "512"],
            20,
        );
        let found = superblock(&path).unwrap();
        assert_eq!((found.label.as_str(), found.uuid.as_str()), ("root", uuid));
        assert_eq!(
            (found.block_size, found.blocks, found.bytes()),
            (1024, 20 * 1024, 20 << 20)
        );
        assert!(found.journal && found.checksums && found.free_blocks < found.blocks);
        assert!((480..600).contains(&found.inodes), "{}", found.inodes);
    }

    #[test]
    fn an_old_and_bare_file_system_is_read_too() {
        let (_dir, path) = made(&["-t", "ext2", "-L", "sixteen-letters!"], 8);
        let found = superblock(&path).unwrap();
        assert_eq!(found.label, "sixteen-letters!");
        assert!(!found.journal && !found.checksums);
    }

    #[test]
    fn whole_disks_are_told_by_their_partition_table() {
        assert_eq!(
            with(&[(512, b"EFI PART"), (510, b"\x55\xaa"), (450, b"\xee")]),
            FileFormat::GptDisk
        );
        assert_eq!(with(&[(510, b"\x55\xaa"), (466, b"\x83")]), FileFormat::MbrDisk);
        // The mark without a partition may be any boot sector.
        assert_eq!(with(&[(510, b"\x55\xaa")]), FileFormat::Unknown);
    }

    #[test]
    fn other_formats_are_named() {
        assert_eq!(with(&[(0, b"QFI\xfb")]), FileFormat::Qcow2);
        assert_eq!(with(&[(0, b"\xfd7zXZ\0")]), FileFormat::Compressed);
        assert_eq!(
            with(&[(0x1_0040, b"_BHRfS_M")]),
            FileFormat::OtherFileSystem("btrfs")
        );
        assert_eq!(
            with(&[(0x52, b"FAT32"), (510, b"\x55\xaa"), (450, b"a")]),
            FileFormat::OtherFileSystem("vfat")
        );
        assert_eq!(with(&[]), FileFormat::Unknown);
    }

    #[test]
    fn a_short_or_damaged_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        std::fs::write(&path, "x").unwrap();
        assert!(
            superblock(&path)
                .unwrap_err()
                .to_string()
                .contains("short is no ext4 file system")
        );
        let file = File::create(&path).unwrap();
        file.write_all_at(&[0x53, 0xEF], 1080).unwrap();
        file.write_all_at(&[40], 1024 + 0x18).unwrap();
        assert!(matches!(
            superblock(&path),
            Err(InspectError::Damaged {
                log_block_size: 40,
                ..
            })
        ));
    }
}
