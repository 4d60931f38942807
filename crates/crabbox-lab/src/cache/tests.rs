use std::sync::atomic::{AtomicUsize, Ordering};

use crabbox_host::clock;

use super::*;

fn cache() -> (tempfile::TempDir, Cache) {
    let home = tempfile::tempdir().unwrap();
    let cache = Cache::at(home.path().join("crabbox/lab"));
    (home, cache)
}

/// Makes an entry of two files and a symlink, one file in a subdirectory and sparse, and counts the calls.
fn make(count: &AtomicUsize) -> impl FnOnce(&Path) -> Result<()> + '_ {
    |dir| {
        count.fetch_add(1, Ordering::SeqCst);
        fs::create_dir(dir.join("deep"))?;
        fs::write(dir.join("small"), "small")?;
        let disk = File::create(dir.join("deep/disk"))?;
        std::os::unix::fs::FileExt::write_all_at(&disk, b"data", 1 << 20)?;
        disk.set_len(1 << 30)?;
        std::os::unix::fs::symlink("small", dir.join("link"))?;
        Ok(())
    }
}

#[test]
fn what_another_clone_made_is_found_and_another_recipe_is_another_entry() {
    let (_home, cache) = cache();
    let count = AtomicUsize::new(0);
    let first = cache.entry("image", "aa", make(&count)).unwrap();
    let other_clone = Cache::at(cache.dir().to_owned());
    assert_eq!(other_clone.entry("image", "aa", make(&count)).unwrap(), first);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert_ne!(other_clone.entry("image", "bb", make(&count)).unwrap(), first);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn an_entry_that_was_damaged_in_any_way_is_made_anew() {
    let (_home, cache) = cache();
    let count = AtomicUsize::new(0);
    let entry = cache.entry("image", "aa", make(&count)).unwrap();
    let damages: [&dyn Fn(); 8] = [
        &|| fs::write(entry.join("small"), "smalL").unwrap(),
        &|| fs::remove_file(entry.join("small")).unwrap(),
        &|| fs::set_permissions(entry.join("small"), fs::Permissions::from_mode(0o777)).unwrap(),
        &|| {
            File::options()
                .write(true)
                .open(entry.join("deep/disk"))
                .unwrap()
                .set_len(1 << 29)
                .unwrap();
        },
        &|| {
            let disk = File::options().write(true).open(entry.join("deep/disk")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&disk, b"x", 1 << 25).unwrap();
        },
        &|| {
            fs::remove_file(entry.join("link")).unwrap();
            std::os::unix::fs::symlink("other", entry.join("link")).unwrap();
        },
        &|| fs::write(entry.join(DIGESTS), "{").unwrap(),
        &|| fs::remove_file(entry.join(DIGESTS)).unwrap(),
    ];
    for (made, damage) in damages.iter().enumerate() {
        damage();
        assert_eq!(cache.entry("image", "aa", make(&count)).unwrap(), entry);
        assert_eq!(count.load(Ordering::SeqCst), made + 2);
    }
    // A file added later does not belong to the entry.
    fs::write(entry.join("lock"), "").unwrap();
    cache.entry("image", "aa", make(&count)).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), damages.len() + 1);
}

#[test]
fn an_entry_made_of_another_is_not_held_against_the_digests_of_that_one() {
    let (_home, cache) = cache();
    let count = AtomicUsize::new(0);
    let first = cache.entry("image", "aa", make(&count)).unwrap();
    let copy = |dir: &Path| {
        count.fetch_add(1, Ordering::SeqCst);
        fs::write(dir.join("more"), "")?;
        fs::write(dir.join(DIGESTS), fs::read(first.join(DIGESTS))?)?;
        Ok(())
    };
    cache.entry("all", "aa", copy).unwrap();
    cache.entry("all", "aa", copy).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn what_fails_or_is_killed_half_way_is_no_entry() {
    let (_home, cache) = cache();
    let failed = cache.entry("image", "aa", |dir| {
        fs::write(dir.join("half"), "")?;
        bail!("no room")
    });
    assert_eq!(failed.unwrap_err().to_string(), "no room");
    assert!(cache.entries().unwrap().is_empty());
    let entry = cache.entry("image", "aa", make(&AtomicUsize::new(0))).unwrap();
    assert!(!entry.join("half").exists());
    // One of a killed process, with a recipe that no longer exists.
    let killed = cache.dir().join("building-image-dead");
    fs::create_dir(&killed).unwrap();
    cache.entry("image", "bb", make(&AtomicUsize::new(0))).unwrap();
    assert!(!killed.exists());
}

#[test]
fn two_at_once_make_it_once_and_both_have_it_whole() {
    let (_home, cache) = cache();
    let count = AtomicUsize::new(0);
    let arrived = AtomicUsize::new(0);
    // The first one works until all have arrived, and a bit longer, to catch one that does not wait.
    let slowly = |dir: &Path| {
        let made = make(&count)(dir);
        let all = || (arrived.load(Ordering::SeqCst) == 4).then_some(());
        clock::poll_until(Duration::from_mins(1), all).context("not all arrived")?;
        clock::poll_until(Duration::from_millis(300), || {
            (count.load(Ordering::SeqCst) > 1).then_some(())
        });
        made
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                arrived.fetch_add(1, Ordering::SeqCst);
                let entry = cache.entry("image", "aa", slowly).unwrap();
                assert_eq!(fs::read_to_string(entry.join("link")).unwrap(), "small");
            });
        }
    });
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[test]
fn entries_are_shown_removed_and_forgotten_when_nobody_uses_them() {
    let (_home, cache) = cache();
    assert!(cache.entries().unwrap().is_empty() && !cache.remove("image-aa").unwrap());
    for key in ["aa", "bb"] {
        cache.entry("image", key, make(&AtomicUsize::new(0))).unwrap();
    }
    let shown = cache.entries().unwrap();
    assert_eq!(
        shown.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(),
        ["image-aa", "image-bb"]
    );
    assert!(
        shown
            .iter()
            .all(|entry| entry.bytes > 0 && entry.bytes < 1 << 20 && !entry.held),
        "{shown:?}"
    );
    assert!(cache.remove("image-aa").unwrap() && !cache.remove("image-aa").unwrap());
    for bad in ["", "..", "../x", "image-bb.lock/.."] {
        assert!(cache.remove(bad).is_err(), "{bad}");
    }
    // The lock's modification time is that of the last use.
    let long_ago = SystemTime::now() - UNUSED - Duration::from_mins(1);
    let lock = File::options()
        .write(true)
        .open(cache.dir().join("image-bb.lock"))
        .unwrap();
    lock.set_modified(long_ago).unwrap();
    cache.entry("image", "cc", make(&AtomicUsize::new(0))).unwrap();
    assert_eq!(cache.entries().unwrap().len(), 1);
}

/// ext4 and XFS allocate late and turn zeros into holes or holes into zeros on writeback: the same bytes with
/// other extents.
#[test]
fn where_the_holes_of_a_file_are_is_no_change() {
    let home = tempfile::tempdir().unwrap();
    let digest = |name: &str, extents: &[(u64, &[u8])], len| {
        let file = File::create(home.path().join(name)).unwrap();
        for (at, bytes) in extents {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.set_len(len).unwrap();
        digest_of(&home.path().join(name)).unwrap()
    };
    let zeros = vec![0; 3 << 20];
    let holes = digest("holes", &[(1 << 20, b"data"), ((5 << 20) + 7, b"more")], 9 << 20);
    let full = [
        (0, &zeros[..]),
        (3 << 20, &zeros[..]),
        (6 << 20, &zeros[..]),
        (1 << 20, &b"data"[..]),
        ((5 << 20) + 7, &b"more"[..]),
    ];
    assert_eq!(digest("full", &full, 9 << 20), holes);
    // The length and the position of each byte still matter.
    assert_ne!(digest("longer", &full, (9 << 20) + 1), holes);
    let moved = digest("moved", &[(1 << 20, b"data"), ((5 << 20) + 8, b"more")], 9 << 20);
    assert_ne!(moved, holes);
    let far = digest("far", &[(1 << 20, b"data"), ((6 << 20) + 7, b"more")], 9 << 20);
    assert_ne!(far, holes);
}
