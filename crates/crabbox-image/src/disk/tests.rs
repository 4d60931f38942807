//! Layers and copies made by the real tools and read back by the real checker.

use super::*;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Instant;

fn check(disk: &Path) {
    Cmd::new("e2fsck").args(["-f", "-n"]).arg(disk).run().unwrap();
}

fn occupied(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// An ext4 image of `size_mib` with one file in it.
fn image(dir: &Path, size_mib: u64) -> PathBuf {
    let (tree, path) = (dir.join("tree"), dir.join("image"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("hello"), "world").unwrap();
    File::create_new(&path).unwrap().set_len(size_mib << 20).unwrap();
    Cmd::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &path])
        .run()
        .unwrap();
    path
}

#[test]
fn a_layer_is_a_clean_private_file_system_of_the_size_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.ext4");
    make_layer(&path, 512).unwrap();
    let facts = inspect::superblock(&path).unwrap();
    assert_eq!(
        (facts.label.as_str(), facts.bytes(), facts.journal),
        (LAYER_LABEL, 512 << 20, false)
    );
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    check(&path);
}

#[test]
fn a_large_layer_costs_no_more_than_a_small_one() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    let started = Instant::now();
    make_layer(&large, 64 * 1024).unwrap();
    // About 40 KiB for 1 GiB and 104 KiB for 64 GiB: the descriptors of the block groups.
    assert!(
        occupied(&large) < 256 << 10,
        "{} bytes for 64 GiB",
        occupied(&large)
    );
    // It takes about 10 ms; the limit only distinguishes it from writing the tables (tens of seconds).
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_layer_never_replaces_a_file_and_has_a_least_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.ext4");
    assert!(matches!(
        make_layer(&path, 1),
        Err(DiskError::LayerTooSmall { want_mib: 1 })
    ));
    assert!(!path.exists());
    make_layer(&path, LAYER_MIN_MIB).unwrap();
    check(&path);
    let before = inspect::superblock(&path).unwrap();
    let error = make_layer(&path, 64).unwrap_err();
    assert!(
        matches!(error, DiskError::Clone(CloneError::File(_))),
        "{error:?}"
    );
    assert_eq!(inspect::superblock(&path).unwrap(), before);
}

#[test]
fn a_foreign_image_is_copied_and_grown_and_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 32);
    let before = std::fs::read(&image).unwrap();
    let disk = dir.path().join("disk.ext4");
    let report = clone_rootfs(&image, &disk, 4096).unwrap();
    assert_eq!((report.bytes, report.grown), (4096 << 20, true));
    assert_eq!(inspect::superblock(&disk).unwrap().bytes(), 4096 << 20);
    assert!(occupied(&disk) < 64 << 20, "{} bytes occupied", occupied(&disk));
    check(&disk);
    let text = Cmd::new("debugfs")
        .args(["-R", "cat /hello"])
        .arg(&disk)
        .run()
        .unwrap()
        .stdout_text();
    assert_eq!(text, "world");
    assert!(
        std::fs::read(&image).unwrap() == before,
        "the image must only be read"
    );
}

#[test]
fn size_zero_keeps_the_size_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 32);
    let report = clone_rootfs(&image, &dir.path().join("disk.ext4"), 0).unwrap();
    assert_eq!((report.bytes, report.grown), (32 << 20, false));
}

#[test]
fn a_disk_smaller_than_its_image_is_refused_before_anything_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (image(dir.path(), 32), dir.path().join("disk.ext4"));
    let error = clone_rootfs(&image, &disk, 31).unwrap_err();
    assert!(
        matches!(
            error,
            DiskError::Shrink {
                image_mib: 32,
                want_mib: 31,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("firecracker.diskMiB") && !disk.exists());
}

#[test]
fn an_image_with_small_errors_is_repaired_and_grown() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (image(dir.path(), 32), dir.path().join("disk.ext4"));
    // A wrong link count: e2fsck repairs it and exits with 1, which is a success.
    Cmd::new("debugfs")
        .args(["-w", "-R", "set_inode_field /hello links_count 7"])
        .arg(&image)
        .run()
        .unwrap();
    assert!(clone_rootfs(&image, &disk, 64).unwrap().grown);
    check(&disk);
}

#[test]
fn an_image_beyond_repair_is_an_error_and_leaves_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk.ext4"));
    // An unknown incompatible feature; a layer has no second superblock from which it could be repaired.
    make_layer(&image, 32).unwrap();
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .write_all_at(&[0xff; 4], 1024 + 0x60)
        .unwrap();
    let error = clone_rootfs(&image, &disk, 64).unwrap_err();
    assert!(matches!(error, DiskError::Unrepairable { .. }), "{error:?}");
    assert!(!disk.exists());
}

#[test]
fn what_is_no_file_system_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk.ext4"));
    std::fs::write(&image, b"QFI\xfb and more").unwrap();
    let error = clone_rootfs(&image, &disk, 64).unwrap_err();
    assert!(error.to_string().contains("qemu-img convert -O raw"), "{error}");
    assert!(!disk.exists());
}

/// Every e2fsprogs program that reads untrusted data must be confined, in every crate.
#[test]
fn no_program_parses_a_foreign_file_system_unconfined() {
    const PROGRAMS: [&str; 6] = ["debugfs", "dumpe2fs", "e2fsck", "mke2fs", "resize2fs", "tune2fs"];
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut confined, mut bare) = (0, Vec::new());
    let mut dirs = vec![crates.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let of_tests = ["tests", "tests.rs", "small.rs", "crabbox-testkit"];
            if of_tests.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let shipped = text.split("#[cfg(test)]").next().unwrap();
            for call in shipped.split("Cmd::new(").skip(1) {
                // The builder chain of a command ends where it is run or passed on.
                let chain = &call[..call.find(';').unwrap_or(call.len())];
                let program = call.split(')').next().unwrap().trim_matches('"');
                if chain.contains(".confined(") {
                    confined += 1;
                } else if PROGRAMS.contains(&program) {
                    bare.push(format!("{}: {program}", path.file_name().unwrap().display()));
                }
            }
        }
    }
    // The layer is formatted in empty memory, so it is not confined.
    assert_eq!((confined, bare), (3, vec!["disk.rs: mke2fs".to_owned()]));
}

#[test]
fn a_disk_is_grown_by_programs_that_see_nothing_but_it() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (image(dir.path(), 32), dir.path().join("disk.ext4"));
    // Like a lease's disk: only root may even read it.
    Cmd::new("chmod").arg("600").arg(&image).run().unwrap();
    assert!(clone_rootfs(&image, &disk, 64).unwrap().grown);
    let facts = disk.metadata().unwrap();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(
        (facts.mode() & 0o7777, facts.uid(), facts.len()),
        (0o600, own, 64 << 20)
    );
    check(&disk);
}

/// e2fsck reads the bitmaps of such a file system with a thread for each processor, and gives up when it gets
/// none.
#[test]
fn a_disk_of_several_groups_is_grown() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk.ext4"));
    Cmd::new("truncate")
        .args(["-s", "16M"])
        .arg(&image)
        .run()
        .unwrap();
    Cmd::new("mke2fs")
        .args(["-q", "-F", "-b", "1024", "-g", "1024", "-O", "^flex_bg"])
        .arg(&image)
        .run()
        .unwrap();
    assert!(clone_rootfs(&image, &disk, 64).unwrap().grown);
    check(&disk);
}
