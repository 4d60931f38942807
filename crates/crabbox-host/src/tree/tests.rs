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
    let error = tree.write(Path::new("pnpm/file"), b"ours", 0o644, 1).unwrap_err();
    assert!(is_link(&error), "{error}");
    tree.remove_plain(Path::new("pnpm/file")).unwrap();
    tree.remove_files(Path::new("pnpm")).unwrap();
    assert!(beside.untouched());
    // A file with the name of a link replaces the link.
    tree.write(Path::new("pnpm"), b"ours", 0o640, 1).unwrap();
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
    let mut content = |file: &mut File| io::Write::write_all(file, b"ours");
    // The link's target does not exist in the tree.
    tree.put(Path::new("link/new"), Kind::File(&mut content), &facts)
        .unwrap();
    let inside = beside.outside().join("new");
    let inside = inside.strip_prefix("/").unwrap();
    assert_eq!(tree.read(inside, 10).unwrap().unwrap(), b"ours");
    assert!(beside.untouched());
}

#[test]
fn links_with_long_missing_targets_are_refused_before_the_calls_are_nested_too_deep() {
    let beside = Beside::new();
    let tree = &beside.tree;
    for number in 0..39 {
        let target = format!("l{}{}", number + 1, "/a".repeat(2000));
        let kind = Kind::Symlink(Path::new(&target));
        tree.put(Path::new(&format!("l{number}")), kind, &Facts::default())
            .unwrap();
    }
    let refused = tree.put(Path::new("l0/x"), Kind::Directory, &Facts::default());
    assert_eq!(
        refused.unwrap_err().raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    // Nor is a tree made by one of them that is deeper than what is unpacked otherwise.
    assert!(
        tree.put(Path::new("l38/x"), Kind::Directory, &Facts::default())
            .is_err()
    );
}

#[test]
fn what_is_missing_behind_all_links_on_a_way_is_counted_together() {
    let names = |count: usize| "/a".repeat(count);
    // `first` leads to `second` and this many names below it, which leads to 300 names: with both links there
    // are two steps more.
    for (more, is_made) in [(210, true), (211, false), (300, false)] {
        let beside = Beside::new();
        let tree = &beside.tree;
        for (link, target) in [
            ("first", format!("second{}", names(more))),
            ("second", format!("end{}", names(299))),
        ] {
            tree.put(
                Path::new(link),
                Kind::Symlink(Path::new(&target)),
                &Facts::default(),
            )
            .unwrap();
        }
        let put = |path: &str| tree.put(Path::new(path), Kind::Directory, &Facts::default());
        let seen = put("first/x").map_err(|error| error.raw_os_error());
        let refused = Err(Some(Errno::NAMETOOLONG.raw_os_error()));
        assert_eq!(seen, if is_made { Ok(()) } else { refused }, "{more}");
        let made = tree.path().join(format!("end{}", names(299 + more))).join("x");
        assert_eq!(made.exists(), is_made, "{more}");
        // What is refused leaves nothing behind, and one link alone is not too much.
        assert_eq!(tree.path().join("end").exists(), is_made, "{more}");
        put("second/x").unwrap();
        assert!(tree.path().join(format!("end{}/x", names(299))).exists());
    }
}

#[test]
fn an_entry_may_come_before_the_target_of_a_link_on_its_way() {
    let beside = Beside::new();
    let tree = &beside.tree;
    let put = |path: &str| {
        let mut content = |file: &mut File| io::Write::write_all(file, path.as_bytes());
        tree.put(Path::new(path), Kind::File(&mut content), &Facts::default())
    };
    for (target, link, real) in [
        ("usr/lib", "lib", "usr/lib"),
        ("/usr/sbin", "sbin", "usr/sbin"),
        ("../var/./run", "var/now", "var/run"),
        ("missing/../other", "up", "other"),
        ("sbin/deeper", "twice", "usr/sbin/deeper"),
    ] {
        tree.put(
            Path::new(link),
            Kind::Symlink(Path::new(target)),
            &Facts::default(),
        )
        .unwrap();
        put(&format!("{link}/x/y")).unwrap();
        assert!(
            tree.plain_file(&Path::new(real).join("x/y")).unwrap().is_some(),
            "{link}"
        );
    }
    for (target, link) in [("itself", "itself"), ("b", "a"), ("a", "b")] {
        symlink(target, tree.path().join(link)).unwrap();
    }
    for path in ["itself/x", "a/x", "usr/lib/x/y/z"] {
        let error = put(path).unwrap_err();
        let errno = Errno::from_io_error(&error);
        assert!(
            matches!(errno, Some(Errno::LOOP | Errno::NOTDIR)),
            "{path}: {error}"
        );
    }
}

#[test]
fn directories_have_their_own_times_in_the_end_whatever_was_made_in_them() {
    let beside = Beside::new();
    let tree = &beside.tree;
    let dir = |path: &str, modified: i64| {
        let facts = Facts {
            mode: 0o755,
            modified,
            ..Facts::default()
        };
        tree.put(Path::new(path), Kind::Directory, &facts).unwrap();
    };
    dir("", -5);
    dir("a", 100);
    dir("a/b", 200);
    dir("a/b", 300);
    tree.write(Path::new("a/b/file"), b"x", 0o644, 400).unwrap();
    tree.make_directory(Path::new("a/c/d"), None).unwrap();
    tree.settle_times(7).unwrap();
    for (path, modified) in [
        ("", -5),
        ("a", 100),
        ("a/b", 300),
        ("a/b/file", 400),
        ("a/c", 7),
        ("a/c/d", 7),
    ] {
        assert_eq!(tree.look(Path::new(path)).unwrap().st_mtime, modified, "{path}");
    }
}

#[test]
fn only_what_is_in_the_directory_itself_is_emptied_and_only_what_is_none_makes_way_for_one() {
    let beside = Beside::new();
    let tree = &beside.tree;
    tree.make_directory(Path::new("real/below"), None).unwrap();
    symlink("real", tree.path().join("link")).unwrap();
    tree.empty(Path::new("link")).unwrap();
    assert!(tree.look(Path::new("real/below")).is_ok());
    tree.empty(Path::new("link/below")).unwrap();
    tree.empty(Path::new("nowhere/at/all")).unwrap();
    for path in ["real", "", "link/below", "nowhere/at/all"] {
        tree.make_way(Path::new(path)).unwrap();
    }
    assert!(tree.look(Path::new("real/below")).is_ok() && tree.look(Path::new("link")).is_ok());
    tree.make_way(Path::new("link")).unwrap();
    assert!(tree.look(Path::new("real/below")).is_ok() && tree.look(Path::new("link")).is_err());
    tree.empty(Path::new("real")).unwrap();
    assert!(tree.names(Path::new("real")).unwrap().is_empty());
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
    tree.write(Path::new("usr/lib/file"), b"inside", 0o644, 1)
        .unwrap();
    tree.write(Path::new("secret"), b"above", 0o644, 1).unwrap();
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
