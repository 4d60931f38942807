//! Trees with links that lead outside, and reads and writes in them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A tree, and a directory beside it that must not be touched.
struct Beside {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Beside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::create(&dir.path().join("root")).unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "theirs").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o751)).unwrap();
        Self { dir, tree }
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn link(&self, name: &str) {
        symlink(self.outside(), self.tree.path().join(name)).unwrap();
    }

    fn untouched(&self) -> bool {
        let facts = self.outside().metadata().unwrap();
        let names = std::fs::read_dir(self.outside()).unwrap().count();
        let text = std::fs::read_to_string(self.outside().join("file")).unwrap();
        (facts.uid(), facts.mode() & 0o7777, names, text.as_str()) == (0, 0o751, 1, "theirs")
    }
}

fn is_link(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::LOOP | Errno::NOTDIR))
}

#[test]
fn what_is_added_goes_through_no_link_and_hands_nothing_outside_to_anybody() {
    let beside = Beside::new();
    let tree = &beside.tree;
    beside.link("pnpm");
    for path in ["pnpm", "pnpm/below"] {
        let error = tree.make_directory(Path::new(path), Some(1000)).unwrap_err();
        assert!(is_link(&error), "{path}: {error}");
    }
    let error = tree.write(Path::new("pnpm/file"), b"ours", 0o644).unwrap_err();
    assert!(is_link(&error), "{error}");
    tree.remove_plain(Path::new("pnpm/file")).unwrap();
    tree.remove_files(Path::new("pnpm")).unwrap();
    assert!(beside.untouched());
    // A file with the name of a link replaces the link.
    tree.write(Path::new("pnpm"), b"ours", 0o640).unwrap();
    let made = tree.look(Path::new("pnpm")).unwrap();
    assert_eq!(made.st_mode, 0o100_640);
    assert!(beside.untouched());
}

#[test]
fn a_link_at_the_end_of_another_name_is_removed_itself() {
    let beside = Beside::new();
    let tree = &beside.tree;
    tree.make_directory(Path::new("var/log"), None).unwrap();
    beside.link("var/log/all");
    tree.remove_files(Path::new("var")).unwrap();
    assert!(tree.names(Path::new("var/log")).unwrap().is_empty());
    beside.link("gone");
    tree.remove_plain(Path::new("gone")).unwrap();
    assert!(tree.look(Path::new("gone")).is_err() && beside.untouched());
}

#[test]
fn what_is_put_behind_a_link_stays_inside() {
    let beside = Beside::new();
    let tree = &beside.tree;
    beside.link("link");
    let facts = Facts {
        mode: 0o644,
        ..Facts::default()
    };
    let mut content = |file: &mut File| io::Write::write_all(file, b"theirs");
    // The link's target does not exist in the tree.
    tree.put(Path::new("link/file"), Kind::File(&mut content), &facts)
        .unwrap_err();
    assert!(beside.untouched());
}

#[test]
fn the_owner_that_means_no_change_is_root() {
    let beside = Beside::new();
    let facts = Facts {
        uid: u32::MAX,
        gid: u32::MAX,
        mode: 0o755,
        ..Facts::default()
    };
    beside
        .tree
        .put(Path::new("dir"), Kind::Directory, &facts)
        .unwrap();
    let made = beside.tree.look(Path::new("dir")).unwrap();
    assert_eq!((made.st_uid, made.st_gid), (0, 0));
    beside
        .tree
        .make_directory(Path::new("dir"), Some(u32::MAX))
        .unwrap();
    assert_eq!(beside.tree.look(Path::new("dir")).unwrap().st_uid, 0);
}

#[test]
fn only_regular_files_are_read_and_only_short_ones() {
    let beside = Beside::new();
    let tree = &beside.tree;
    let place = |name: &str| tree.path().join(name);
    std::fs::write(place("text"), "0123456789").unwrap();
    symlink("/dev/zero", place("zero")).unwrap();
    symlink(beside.outside().join("file"), place("theirs")).unwrap();
    symlink("loop", place("loop")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place("device"),
        FileType::CharacterDevice,
        Mode::RUSR,
        device,
    )
    .unwrap();
    for name in [
        "zero",
        "theirs",
        "loop",
        "pipe",
        "device",
        "nothing",
        "text/below",
        ".",
    ] {
        assert_eq!(tree.read(Path::new(name), 100).unwrap(), None, "{name}");
        assert!(tree.plain_file(Path::new(name)).unwrap().is_none(), "{name}");
    }
    assert_eq!(tree.read(Path::new("text"), 10).unwrap().unwrap(), b"0123456789");
    let error = tree.read(Path::new("text"), 9).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn a_tree_below_is_the_root_of_its_own_links() {
    let beside = Beside::new();
    let tree = &beside.tree;
    tree.make_directory(Path::new("usr/lib"), None).unwrap();
    tree.write(Path::new("usr/lib/file"), b"inside", 0o644).unwrap();
    tree.write(Path::new("secret"), b"above", 0o644).unwrap();
    symlink("usr/lib", tree.path().join("lib")).unwrap();
    symlink("../../secret", tree.path().join("usr/lib/up")).unwrap();
    let lib = tree.below(Path::new("lib")).unwrap().unwrap();
    assert_eq!(lib.read(Path::new("file"), 100).unwrap().unwrap(), b"inside");
    assert_eq!(lib.read(Path::new("up"), 100).unwrap(), None);
    assert!(tree.below(Path::new("secret")).unwrap().is_none());
}

#[test]
fn a_way_through_dots_is_found_while_things_are_renamed() {
    let beside = Beside::new();
    let (dir, tree) = (beside.dir.path(), &beside.tree);
    let root = tree.path();
    std::fs::create_dir_all(root.join("usr/lib")).unwrap();
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("usr/lib/os-release"), "ID=x").unwrap();
    symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let (one, other) = (dir.join("one"), dir.join("other"));
            std::fs::create_dir(&one).unwrap();
            while !done.load(Ordering::Relaxed) {
                std::fs::rename(&one, &other).unwrap();
                std::fs::rename(&other, &one).unwrap();
            }
        });
        let looks: Vec<_> = (0..20_000)
            .map(|_| Ok::<_, io::Error>(tree.file(Path::new("etc/os-release"))?.is_some()))
            .collect();
        done.store(true, Ordering::Relaxed);
        for look in looks {
            assert!(look.unwrap());
        }
    });
}
