//! Copies on ext4, tmpfs and a real XFS; the last two are mounted by the tests themselves, as root.

use super::*;
use crate::command::Cmd;
use std::os::unix::fs::PermissionsExt as _;

/// A mount in its own directory that is removed with the test.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn tmpfs(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).unwrap();
        Self { dir }
    }

    /// XFS shares blocks; 300 MiB is the minimum of mkfs.xfs. The image is a sparse file beside the mount.
    fn xfs(image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        File::create_new(image)
            .unwrap()
            .set_len(320 * 1024 * 1024)
            .unwrap();
        Cmd::new("mkfs.xfs").arg("-q").arg(image).run().unwrap();
        // mount(8) is used because it sets up the loop device and frees it with the mount; crabbox itself
        // never mounts images.
        Cmd::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(dir.path())
            .run()
            .unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// 64 MiB long with 1 MiB of data at 0, at 32 MiB and at the very end.
fn holey(path: &Path) -> u64 {
    let file = File::create_new(path).unwrap();
    let (size, piece) = (64 << 20, vec![7; 1 << 20]);
    file.set_len(size).unwrap();
    for start in [0, 32 << 20, size - (1 << 20)] {
        file.write_all_at(&piece, start).unwrap();
    }
    size
}

#[test]
fn holes_stay_holes_and_bytes_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let size = holey(&from);
    clone_file(&from, &to).unwrap();
    let facts = to.metadata().unwrap();
    assert_eq!((facts.len(), facts.permissions().mode() & 0o7777), (size, 0o600));
    assert!(
        facts.blocks() * 512 < 4 << 20,
        "{} bytes occupied",
        facts.blocks() * 512
    );
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
}

#[test]
fn a_file_of_one_hole_and_an_empty_file_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 5 << 20] {
        let (from, to) = (
            dir.path().join(format!("from{size}")),
            dir.path().join(format!("to{size}")),
        );
        File::create_new(&from).unwrap().set_len(size).unwrap();
        clone_file(&from, &to).unwrap();
        assert_eq!(
            (to.metadata().unwrap().len(), to.metadata().unwrap().blocks()),
            (size, 0)
        );
    }
}

#[test]
fn holes_stay_holes_between_file_systems() {
    let (dir, other) = (tempfile::tempdir().unwrap(), Mounted::tmpfs(8 << 20));
    let (from, to) = (dir.path().join("from"), other.path().join("to"));
    holey(&from);
    assert_eq!(clone_file(&from, &to).unwrap(), CloneMethod::SparseCopy);
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
}

#[test]
fn copying_by_hand_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    holey(&from);
    let target = File::create_new(&to).unwrap();
    copy_by_hand(&File::open(&from).unwrap(), &target, 0, 33 << 20).unwrap();
    assert!(std::fs::read(&from).unwrap()[..33 << 20] == std::fs::read(&to).unwrap()[..]);
}

#[test]
fn xfs_shares_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let xfs = Mounted::xfs(&dir.path().join("xfs.img"));
    let (from, to) = (xfs.path().join("from"), xfs.path().join("to"));
    holey(&from);
    assert_eq!(clone_file(&from, &to).unwrap(), CloneMethod::Reflink);
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
}

#[test]
fn without_room_the_partial_copy_goes_and_the_need_is_told() {
    let (dir, small) = (tempfile::tempdir().unwrap(), Mounted::tmpfs(2 << 20));
    let (from, to) = (dir.path().join("from"), small.path().join("to"));
    holey(&from);
    let error = clone_file(&from, &to).unwrap_err();
    let CloneError::NoSpace {
        needed_bytes,
        free_bytes,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(*needed_bytes, from.metadata().unwrap().blocks() * 512);
    assert!((3 << 20..4 << 20).contains(needed_bytes), "{needed_bytes}");
    assert_eq!(
        *free_bytes,
        2 << 20,
        "the partial copy must be gone before free space is counted"
    );
    assert!(!to.exists());
    let need = needed_bytes.div_ceil(1 << 20);
    assert!(
        error
            .to_string()
            .ends_with(&format!("it needs {need} MiB, and 2 MiB are free there")),
        "{error}"
    );
}

#[test]
fn a_discarded_copy_holds_no_room_while_somebody_still_has_it_open() {
    let small = Mounted::tmpfs(2 << 20);
    let path = small.path().join("to");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let partial = File::options().write(true).open(&path).unwrap();
    let elsewhere = partial.try_clone().unwrap();
    discard(partial, &path).unwrap();
    assert_eq!(files::free_bytes(small.path()).unwrap(), 2 << 20);
    drop(elsewhere);
}

#[test]
fn what_is_there_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, "new").unwrap();
    std::fs::write(&to, "old").unwrap();
    assert!(clone_file(&from, &to).is_err());
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "old");
}

#[test]
fn only_regular_files_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let error = clone_file(Path::new("/dev/null"), &dir.path().join("to")).unwrap_err();
    assert!(matches!(error, CloneError::NotAFile { .. }), "{error:?}");
    assert!(!dir.path().join("to").exists());
}

#[test]
fn growing_adds_a_hole_and_shrinking_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, "data").unwrap();
    grow_file(&path, 1 << 30).unwrap();
    assert!(path.metadata().unwrap().len() == 1 << 30 && path.metadata().unwrap().blocks() * 512 < 1 << 20);
    let error = grow_file(&path, 1 << 20).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("will not shrink {} from 1024 MiB to 1 MiB", path.display())
    );
    assert_eq!(path.metadata().unwrap().len(), 1 << 30);
}
