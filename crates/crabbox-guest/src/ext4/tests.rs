//! Real file systems made by mke2fs, filled and emptied by debugfs; dumpe2fs and e2fsck check the reported
//! free space.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// The private layer's format, as made by `crabbox-image`.
const LAYER: &str = "-b 4096 -I 256 -i 16384 -m 0 -O none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,\
     huge_file,dir_nlink,extra_isize,metadata_csum \
     -E lazy_itable_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0,root_owner=0:0";

/// Formats, each with a size in MiB.
const FORMATS: [(&str, u64); 9] = [
    (LAYER, 300),
    ("-b 4096 -O 64bit,metadata_csum,^has_journal", 150),
    ("-b 4096 -O ^64bit,metadata_csum", 150),
    ("-b 4096 -O ^64bit,^metadata_csum,uninit_bg", 150),
    ("-b 4096 -O ^64bit,^metadata_csum,^uninit_bg,^flex_bg", 150),
    ("-b 1024 -O metadata_csum,64bit", 64),
    ("-b 1024 -O ^metadata_csum,^64bit", 41),
    ("-b 2048 -O metadata_csum,metadata_csum_seed", 70),
    ("-b 4096 -g 8192 -N 4096", 100),
];

#[expect(
    clippy::disallowed_methods,
    reason = "the guest has no crabbox_host, and these are tests"
)]
fn run(program: &str, words: &str, path: &Path, input: &str) -> (Option<i32>, String) {
    let mut child = Command::new(program)
        .args(words.split_ascii_whitespace())
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code(), text)
}

/// An image of `format`, with some files kept and others written and deleted.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    kept: BTreeMap<String, Vec<u8>>,
}

fn content(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length).map(step).collect()
}

impl Image {
    fn new(format: &str, mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.ext4");
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        let (code, said) = run("mke2fs", &format!("-q -F -t ext4 {format}"), &path, "");
        assert_eq!(code, Some(0), "{format}: {said}");
        let mut image = Self {
            _dir: dir,
            path,
            kept: BTreeMap::new(),
        };
        image.fill_and_delete();
        image
    }

    /// Writes forty files of different lengths and deletes two in three, so that there are holes between the
    /// rest.
    fn fill_and_delete(&mut self) {
        let mut script = "mkdir d\ncd d\n".to_owned();
        let mut removals = String::new();
        let sources = self.path.parent().unwrap().to_owned();
        for number in 0..40 {
            let name = format!("f{number}");
            let bytes = content(number, 1 + number * number * 777 % 900_001);
            std::fs::write(sources.join(&name), &bytes).unwrap();
            writeln!(script, "write {} {name}", sources.join(&name).display()).unwrap();
            if number % 3 == 0 {
                self.kept.insert(name, bytes);
            } else {
                writeln!(removals, "rm {name}").unwrap();
            }
        }
        let (code, said) = run("debugfs", "-w -f -", &self.path, &(script + &removals));
        assert!(code == Some(0) && !said.contains("rror"), "{said}");
        self.assert_whole();
    }

    fn assert_whole(&self) {
        let (code, said) = run("e2fsck", "-f -n", &self.path, "");
        assert_eq!(code, Some(0), "{said}");
        let out = self.path.with_extension("out");
        for (name, bytes) in &self.kept {
            let script = format!("dump /d/{name} {}\n", out.display());
            run("debugfs", "-f -", &self.path, &script);
            assert!(
                std::fs::read(&out).unwrap() == *bytes,
                "{name} has another content"
            );
        }
    }

    /// The free blocks of every group that was ever used, from dumpe2fs.
    fn told(&self) -> (u64, Vec<(u64, u64)>) {
        let (_, text) = run("dumpe2fs", "", &self.path, "");
        let size = text
            .lines()
            .find_map(|line| line.strip_prefix("Block size:"))
            .unwrap();
        let mut runs = Vec::new();
        let mut used = false;
        for line in text.lines() {
            if line.starts_with("Group ") {
                used = !line.contains("BLOCK_UNINIT");
            } else if let Some(list) = line.strip_prefix("  Free blocks:").filter(|_| used) {
                for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    let number = |text: &str| text.parse::<u64>().unwrap();
                    runs.push((number(first), number(last) + 1));
                }
            }
        }
        (size.trim().parse().unwrap(), runs)
    }

    fn ours(&self, least: u64) -> Vec<Extent> {
        let disk = File::open(&self.path).unwrap();
        let layout = Layout::read(&disk).unwrap();
        let mut free = Vec::new();
        for group in 0..layout.groups() {
            let found = layout.free(&disk, group, least, &mut free).unwrap();
            assert_ne!(found, Group::Contradictory, "group {group}");
        }
        free
    }
}

/// The result of `told` as extents of whole grains; groups are not joined.
fn cut(size: u64, runs: &[(u64, u64)], least: u64) -> Vec<Extent> {
    let cut = |(first, end): &(u64, u64)| {
        let (offset, end) = ((first * size).next_multiple_of(GRAIN), end * size / GRAIN * GRAIN);
        (offset < end && end - offset >= least).then(|| Extent {
            offset,
            length: end - offset,
        })
    };
    runs.iter().filter_map(cut).collect()
}

#[test]
fn what_is_free_is_what_dumpe2fs_says_and_no_file_misses_it() {
    for (format, mib) in FORMATS {
        let image = Image::new(format, mib);
        let (size, runs) = image.told();
        for least in [1, 64 * 1024] {
            let ours = image.ours(least);
            assert!(ours == cut(size, &runs, least), "{format}, {least}");
        }
        // Fill the free space with garbage, which is worse than a hole, then punch it out.
        let ours = image.ours(1);
        let total: u64 = ours.iter().map(|extent| extent.length).sum();
        assert!(!ours.is_empty() && total < mib << 20, "{format}");
        let disk = File::options().write(true).open(&image.path).unwrap();
        for extent in &ours {
            let rubbish = vec![0xA5; usize::try_from(extent.length).unwrap()];
            disk.write_all_at(&rubbish, extent.offset).unwrap();
        }
        image.assert_whole();
        let before = disk.metadata().unwrap().blocks();
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        for extent in &ours {
            rustix::fs::fallocate(&disk, flags, extent.offset, extent.length).unwrap();
        }
        let back = (before - disk.metadata().unwrap().blocks()) * 512;
        assert!(back >= total, "{format}: {back} of {total}");
        image.assert_whole();
    }
}

#[test]
fn a_group_that_was_never_used_is_left_alone() {
    let image = Image::new(LAYER, 300);
    let (_, text) = run("dumpe2fs", "", &image.path, "");
    let disk = File::open(&image.path).unwrap();
    let layout = Layout::read(&disk).unwrap();
    let unused: Vec<_> = (0..layout.groups())
        .filter(|group| layout.free(&disk, *group, 1, &mut Vec::new()).unwrap() == Group::Unused)
        .collect();
    assert_eq!(unused.len(), text.matches("BLOCK_UNINIT").count());
    assert!(!unused.is_empty());
}

#[test]
fn what_this_program_does_not_know_is_refused() {
    for (format, part) in [
        ("-O bigalloc,extent", "features"),
        ("-O meta_bg,^resize_inode", "features"),
        ("-O inline_data,metadata_csum", "features"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let (code, said) = run("mke2fs", &format!("-q -F -t ext4 {format}"), &path, "");
        assert_eq!(code, Some(0), "{format}: {said}");
        let refusal = Layout::read(&File::open(&path).unwrap()).unwrap_err().to_string();
        assert!(refusal.contains(part), "{format}: {refusal}");
    }
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(Layout::read(&empty), Err(Refusal::Read(_))));
    empty.set_len(1 << 20).unwrap();
    assert!(matches!(
        Layout::read(&empty),
        Err(Refusal::Format("is not ext4"))
    ));
}

#[test]
fn a_bitmap_or_descriptor_that_was_damaged_frees_nothing() {
    let image = Image::new(LAYER, 200);
    let disk = File::options().read(true).write(true).open(&image.path).unwrap();
    let layout = Layout::read(&disk).unwrap();
    let look = || {
        let mut free = Vec::new();
        let found = layout.free(&disk, 0, 1, &mut free).unwrap();
        assert_eq!(free.is_empty(), found != Group::Read);
        found
    };
    assert_eq!(look(), Group::Read);
    let descriptor = 4096;
    let mut place = [0; 4];
    disk.read_exact_at(&mut place, descriptor).unwrap();
    let bitmap = u64::from(u32::from_le_bytes(place)) * 4096;
    // Flip bits in the bitmap's first and last bytes and in every field of the descriptor: each flip must
    // disqualify the group.
    for at in [bitmap, bitmap + 1, bitmap + 4095]
        .into_iter()
        .chain(descriptor..descriptor + 64)
    {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        for bit in 0..8 {
            disk.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            assert_eq!(look(), Group::Contradictory, "bit {bit} of {at}");
        }
        disk.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(look(), Group::Read);
}

#[test]
fn a_bitmap_with_the_right_count_and_the_wrong_blocks_frees_nothing() {
    let image = Image::new(LAYER, 200);
    let disk = File::options().read(true).write(true).open(&image.path).unwrap();
    let layout = Layout::read(&disk).unwrap();
    let mut place = [0; 4];
    disk.read_exact_at(&mut place, 4096).unwrap();
    let at = u64::from(u32::from_le_bytes(place)) * 4096;
    let mut bitmap = vec![0; 4096];
    disk.read_exact_at(&mut bitmap, at).unwrap();
    // Mark one used block of the first as free, and a free one as used.
    let free = bitmap.iter().position(|byte| *byte == 0).unwrap();
    (bitmap[0], bitmap[free]) = (bitmap[0] ^ 1, 1);
    disk.write_all_at(&bitmap, at).unwrap();
    let found = layout.free(&disk, 0, 1, &mut Vec::new()).unwrap();
    assert_eq!(found, Group::Contradictory);
}

#[test]
fn impossible_numbers_are_refused() {
    let image = Image::new("-b 4096 -O ^64bit,^metadata_csum", 64);
    let mut bytes = [0; SUPERBLOCK.1];
    let disk = File::open(&image.path).unwrap();
    disk.read_exact_at(&mut bytes, SUPERBLOCK.0).unwrap();
    assert!(Layout::parse(&bytes).is_ok());
    for (what, at, value) in [
        ("no blocks", 0x04, 0),
        ("blocks begin at 1", 0x14, 1),
        ("blocks of 128 KiB", 0x18, 7),
        ("clusters of two blocks", 0x1C, 3),
        ("no blocks in a group", 0x20, 0),
        ("more than a bitmap holds", 0x20, 32776),
        ("half a byte of a bitmap", 0x20, 32764),
        ("a wide descriptor of no size", 0x60, 0x80 | 0x40),
    ] {
        let mut bytes = bytes;
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        assert_eq!(
            Layout::parse(&bytes),
            Err("has a superblock with impossible numbers"),
            "{what}"
        );
    }
}

#[test]
fn without_checksums_the_count_still_has_to_agree() {
    let image = Image::new("-b 4096 -O ^64bit,^metadata_csum,^uninit_bg", 100);
    let disk = File::options().read(true).write(true).open(&image.path).unwrap();
    let layout = Layout::read(&disk).unwrap();
    let mut place = [0; 4];
    disk.read_exact_at(&mut place, 4096).unwrap();
    let at = u64::from(u32::from_le_bytes(place)) * 4096;
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).unwrap();
    disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let found = layout.free(&disk, 0, 1, &mut Vec::new()).unwrap();
    assert_eq!(found, Group::Contradictory);
}

#[test]
fn runs_end_where_the_group_ends() {
    assert_eq!(free_runs(&[0, 0], 16), [(0, 16)]);
    assert_eq!(free_runs(&[0, 0], 11), [(0, 11)]);
    assert_eq!(free_runs(&[0xFF, 0], 8), []);
    assert_eq!(
        free_runs(&[0b1000_0001, 0xFF, 0b0111_1111], 24),
        [(1, 6), (23, 1)]
    );
    assert_eq!(
        free_runs(&[0b1111_0000, 0, 0b0000_0001], 24),
        [(0, 4), (8, 8), (17, 7)]
    );
    assert_eq!(free_runs(&[], 8), []);
}

proptest! {
    /// Root in the guest can write anything to the device: nothing may make process 1 panic, or yield an
    /// extent outside of the device.
    #[test]
    fn whatever_is_on_the_device_is_survived(
        edits in proptest::collection::vec((0_usize..8192, any::<u8>()), 0..6),
        words in proptest::collection::vec((0_usize..300, prop_oneof![Just(0_u32), Just(u32::MAX), any::<u32>()]), 0..3),
        signed in any::<bool>(),
    ) {
        use std::sync::LazyLock;
        static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let image = Image::new("-b 1024 -O metadata_csum,64bit,^has_journal -N 256", 16);
            std::fs::read(&image.path).unwrap()
        });
        let mut bytes = SOUND[..1 << 20].to_vec();
        for (at, value) in edits {
            bytes[1024 + at] = value;
        }
        for (at, value) in words {
            bytes[1024 + at * 4..1024 + at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        if signed {
            let sum = crc32c::update(!0, &bytes[1024..1024 + 0x3FC]);
            bytes[1024 + 0x3FC..2048].copy_from_slice(&sum.to_le_bytes());
        }
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(&bytes, 0).unwrap();
        disk.set_len(16 << 20).unwrap();
        if let Ok(layout) = Layout::read(&disk) {
            for group in 0..layout.groups().min(50) {
                let mut free = Vec::new();
                if layout.free(&disk, group, 1, &mut free).is_ok() {
                    for extent in free {
                        prop_assert!(extent.offset + extent.length <= layout.bytes());
                        prop_assert!(extent.offset % GRAIN == 0 && extent.length % GRAIN == 0);
                    }
                }
            }
        }
    }
}
