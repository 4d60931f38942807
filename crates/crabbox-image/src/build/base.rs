//! Makes the read-only base file system from a tree, reproducibly.
//!
//! mke2fs copies the tree. It sets times that differ on every run (the ctime of each file on this machine);
//! these are then overwritten in the inode tables. That needs a file system without metadata checksums, which
//! a read-only base in the page cache does not need. The order of directory entries comes from the host: two
//! machines may differ there. The tree itself must never be changed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crabbox_host::command::Cmd;
use crabbox_host::confine::Confinement;
use crabbox_host::files::FileError;
use crabbox_host::tree::Tree;
use rustix::fs::FileType;

use super::{BASE_LABEL, BuildError};
use crate::inspect;

/// The volume id and the seed of the directory hash: an arbitrary constant, so that they never change.
const VOLUME_ID: &str = "63726162-626f-4d78-8000-000000000001";

/// All format options are set here, so that the result does not depend on the host's `mke2fs.conf`.
const FEATURES: &str =
    "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file,huge_file,extra_isize";

/// Bytes per block, and bytes per inode.
const BLOCK: u64 = 4096;
const INODE: usize = 256;

/// The number of inodes of a new file system that are not copied from the tree: the reserved ones, and
/// `lost+found`.
const FIRST_INODES: usize = 11;

/// Time limit for making the file system.
const MAKE_LIMIT: Duration = Duration::from_mins(10);

/// The space that a tree needs.
#[derive(Debug, Default, Clone)]
struct Need {
    blocks: u64,
    inodes: u64,
    /// Inodes of files with several names that have been counted already: additional names need no space.
    counted: BTreeSet<u64>,
}

/// Which modification times an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    /// Those of the tree, but none later than the stamp: the tree was made by this build, which took some
    /// time.
    NoLater,
    /// Those of the tree: it says of its files when they were made, and the caller has set the time of all
    /// others.
    OfTree,
}

/// Makes the ext4 file system `image` from everything in `tree`, just large enough, with no time of this
/// build, but `stamp`.
#[expect(
    clippy::disallowed_methods,
    reason = "the image lies beside the tree, in a directory of ours"
)]
pub(super) fn make(tree: &Tree, image: &Path, stamp: u32, times: Times) -> Result<(), BuildError> {
    let mut need = Need::default();
    measure(tree, Path::new(""), &mut need)?;
    let inodes = need.inodes + need.inodes / 20 + 64;
    // Inode tables, one part in 32 for directory and extent blocks beyond the tree's own, and room for the
    // fixed structures.
    let blocks = need.blocks + need.blocks / 32 + inodes * INODE as u64 / BLOCK + 1024;
    let file = File::create_new(image).map_err(|source| FileError::io("create", image, source))?;
    file.set_len(blocks * BLOCK)
        .map_err(|source| FileError::io("make room in", image, source))?;
    // Names, links and extended attributes of the tree are untrusted.
    let confinement = Arc::new(Confinement::to_fill(image, blocks * BLOCK, tree.path())?);
    Cmd::new("mke2fs")
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", FEATURES,
        ])
        .args(["-N", &inodes.to_string(), "-L", BASE_LABEL, "-U", VOLUME_ID])
        .arg("-E")
        .arg(format!(
            "hash_seed={VOLUME_ID},nodiscard,num_backup_sb=0,packed_meta_blocks=1,root_owner=0:0"
        ))
        .arg("-d")
        .args([confinement.tree_name(), confinement.name()])
        .confined(confinement)
        .env("EXT2FS_NO_MTAB_OK", "1")
        // The first variable is for e2fsprogs before 1.47.1, the second for later versions.
        .env("E2FSPROGS_FAKE_TIME", stamp.to_string())
        .env("SOURCE_DATE_EPOCH", stamp.to_string())
        .limit(MAKE_LIMIT)
        .run()
        .map_err(|source| BuildError::Tool {
            stage: "making the file system",
            source,
        })?;
    stamp_inodes(image, stamp, times)
}

fn measure(tree: &Tree, dir: &Path, need: &mut Need) -> Result<(), FileError> {
    need.inodes += 1;
    need.blocks += 1;
    let unread = |path: &Path, source| FileError::io("inspect", &tree.shown(path), source);
    for name in tree.names(dir).map_err(|source| unread(dir, source))? {
        let path = dir.join(name);
        let facts = tree.look(&path).map_err(|source| unread(&path, source))?;
        if FileType::from_raw_mode(facts.st_mode).is_dir() {
            measure(tree, &path, need)?;
        } else if facts.st_nlink < 2 || need.counted.insert(facts.st_ino) {
            need.inodes += 1;
            need.blocks += u64::try_from(facts.st_size).unwrap_or(0).div_ceil(BLOCK);
        }
    }
    Ok(())
}

/// Sets the access, change and creation times of every used inode to `stamp`, and the modification time as
/// `times` says.
#[expect(
    clippy::disallowed_methods,
    reason = "the image lies beside the tree, in a directory of ours"
)]
fn stamp_inodes(image: &Path, stamp: u32, times: Times) -> Result<(), BuildError> {
    let layout = |unexpected| BuildError::Layout {
        path: image.to_owned(),
        unexpected,
    };
    let facts = inspect::superblock(image).map_err(|_| layout("it has no superblock"))?;
    if facts.checksums || u64::from(facts.block_size) != BLOCK {
        return Err(layout("it has checksums or other blocks"));
    }
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .map_err(|source| FileError::io("open", image, source))?;
    let read = |buffer: &mut [u8], offset| {
        file.read_exact_at(buffer, offset)
            .map_err(|source| FileError::io("read", image, source))
    };
    let mut super_block = [0; 1024];
    read(&mut super_block, 1024)?;
    let (blocks_a_group, inodes_a_group) = (word(&super_block, 0x20), word(&super_block, 0x28));
    if blocks_a_group == 0 || inodes_a_group == 0 {
        return Err(layout("its groups are empty"));
    }
    let groups = facts.blocks.div_ceil(u64::from(blocks_a_group));
    for group in 0..groups {
        // The descriptors, 32 bytes each without the 64bit feature, start in the second block.
        let mut descriptor = [0; 32];
        read(&mut descriptor, BLOCK + 32 * group)?;
        let table = u64::from(word(&descriptor, 8)) * BLOCK;
        let mut inodes = vec![0; inodes_a_group as usize * INODE];
        read(&mut inodes, table)?;
        for (index, inode) in inodes.chunks_exact_mut(INODE).enumerate() {
            // mke2fs makes the root and lost+found itself, at the time of the build.
            let is_made_here = group == 0 && index < FIRST_INODES;
            stamp_inode(inode, stamp, times == Times::NoLater || is_made_here);
        }
        file.write_all_at(&inodes, table)
            .map_err(|source| FileError::io("write", image, source))?;
    }
    Ok(())
}

/// The layout is that of `struct ext4_inode`; an inode with mode 0 is not in use.
fn stamp_inode(inode: &mut [u8], stamp: u32, no_later: bool) {
    if inode[..2] == [0, 0] {
        return;
    }
    let modified_later = no_later && modified(inode) > i64::from(stamp);
    let mut set = |offset: usize, value: u32| inode[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    for (seconds, fraction) in [(0x08, 0x8C), (0x0C, 0x84), (0x90, 0x94)] {
        set(seconds, stamp);
        set(fraction, 0);
    }
    if modified_later {
        set(0x10, stamp);
        set(0x88, 0);
    }
}

/// The modification time of an inode: 32 bits, signed, and two higher ones beside the fraction of the second.
fn modified(inode: &[u8]) -> i64 {
    i64::from(word(inode, 0x10).cast_signed()) + (i64::from(word(inode, 0x88) & 3) << 32)
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([
        bytes[offset],
        bytes[offset + 1],
        bytes[offset + 2],
        bytes[offset + 3],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const STAMP: u32 = 1_000_000_000;

    /// A tree with files, a link, a deep directory and a device, made now.
    fn tree(dir: &Path) -> PathBuf {
        let tree = dir.join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/large"), vec![7; 3_000_000]).unwrap();
        std::os::unix::fs::symlink("large", tree.join("a/b/link")).unwrap();
        Cmd::new("mknod")
            .arg(tree.join("null"))
            .args(["c", "1", "3"])
            .run()
            .unwrap();
        for number in 0..500 {
            std::fs::write(tree.join(format!("a/{number}")), format!("{number}")).unwrap();
        }
        let old = std::time::UNIX_EPOCH + Duration::from_secs(5000);
        File::options()
            .write(true)
            .open(tree.join("a/7"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        tree
    }

    /// The image of that tree.
    fn made(dir: &Path) -> PathBuf {
        let image = dir.join("base.ext4");
        let tree = Tree::open(&tree(dir)).unwrap();
        make(&tree, &image, STAMP, Times::NoLater).unwrap();
        image
    }

    fn debugfs(image: &Path, request: &str) -> String {
        let out = Cmd::new("debugfs")
            .args(["-R", request])
            .arg(image)
            .env("TZ", "UTC")
            .run()
            .unwrap();
        out.stdout_text()
    }

    #[test]
    fn the_base_holds_the_tree_and_the_checker_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let image = made(dir.path());
        Cmd::new("e2fsck").args(["-f", "-n"]).arg(&image).run().unwrap();
        assert_eq!(debugfs(&image, "cat /a/77"), "77");
        let facts = inspect::superblock(&image).unwrap();
        assert_eq!((facts.label.as_str(), facts.journal), (BASE_LABEL, false));
        assert!(facts.bytes() < 16 << 20, "{} bytes", facts.bytes());
    }

    #[test]
    fn a_file_of_many_names_takes_its_room_once() {
        let dir = tempfile::tempdir().unwrap();
        let (root, image) = (tree(dir.path()), dir.path().join("base.ext4"));
        for number in 0..100 {
            std::fs::hard_link(root.join("a/b/large"), root.join(format!("a/again{number}"))).unwrap();
        }
        make(&Tree::open(&root).unwrap(), &image, STAMP, Times::NoLater).unwrap();
        Cmd::new("e2fsck").args(["-f", "-n"]).arg(&image).run().unwrap();
        assert!(image.metadata().unwrap().len() < 16 << 20);
    }

    #[test]
    fn no_time_of_the_build_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let image = made(dir.path());
        let new = debugfs(&image, "stat /a/77");
        assert_eq!(new.matches("Sep  9 01:46:40 2001").count(), 4, "{new}");
        let old = debugfs(&image, "stat /a/7");
        assert_eq!(old.matches("Jan  1 01:23:20 1970").count(), 1, "{old}");
    }

    #[test]
    fn a_file_before_1970_is_older_than_the_stamp_and_one_of_the_tree_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (root, image) = (tree(dir.path()), dir.path().join("base.ext4"));
        let old = std::time::UNIX_EPOCH - Duration::from_hours(24);
        let new = std::time::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        for (name, time) in [("a/8", old), ("a/9", new)] {
            let file = File::options().write(true).open(root.join(name)).unwrap();
            file.set_modified(time).unwrap();
        }
        for (times, then) in [
            (Times::NoLater, "Sun Sep  9 01:46:40 2001"),
            (Times::OfTree, "Sun Mar 17 17:46:40 2030"),
        ] {
            std::fs::remove_file(&image).ok();
            make(&Tree::open(&root).unwrap(), &image, STAMP, times).unwrap();
            Cmd::new("e2fsck").args(["-f", "-n"]).arg(&image).run().unwrap();
            let old = debugfs(&image, "stat /a/8");
            assert_eq!(old.matches("Wed Dec 31 00:00:00 1969").count(), 1, "{old}");
            let new = debugfs(&image, "stat /a/9");
            assert!(new.contains(then), "{new}");
            for made_by_mke2fs in ["/", "/lost+found"] {
                let stat = debugfs(&image, &format!("stat {made_by_mke2fs}"));
                assert_eq!(stat.matches("Sep  9 01:46:40 2001").count(), 4, "{stat}");
            }
        }
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_at_another_time() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let tree = tree(dir.path());
        let opened = Tree::open(&tree).unwrap();
        make(&opened, &one, STAMP, Times::NoLater).unwrap();
        // Touching every file changes its ctime, as building again would.
        Cmd::new("touch").arg("-c").arg(tree.join("a/77")).run().unwrap();
        Cmd::new("chmod").args(["-R", "u+w"]).arg(&tree).run().unwrap();
        make(&opened, &two, STAMP, Times::NoLater).unwrap();
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    }

    #[test]
    fn a_file_system_with_checksums_is_not_patched() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.ext4");
        crate::disk::make_layer(&image, 16).unwrap();
        let before = std::fs::read(&image).unwrap();
        assert!(matches!(
            stamp_inodes(&image, STAMP, Times::NoLater),
            Err(BuildError::Layout { .. })
        ));
        assert!(std::fs::read(&image).unwrap() == before);
    }
}
