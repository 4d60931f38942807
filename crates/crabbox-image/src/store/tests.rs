//! Stores on a real file system, with images of three short files.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn stage(scratch: &Scratch, content: &str, created_unix: i64) -> (PathBuf, Manifest) {
    let staged = scratch.dir().join("image");
    std::fs::create_dir(&staged).unwrap();
    for name in manifest::FILES {
        std::fs::write(staged.join(name), format!("{name} {content}")).unwrap();
    }
    let record = Manifest {
        suite: "bookworm".to_owned(),
        kernel_release: "6.1".to_owned(),
        packages: [("git".to_owned(), "1:2.39".to_owned())].into(),
        ..Manifest::of_staged(&staged, &manifest::FILES, manifest::Init::Ours, created_unix).unwrap()
    };
    (staged, record)
}

fn put(store: &Store, content: &str, name: &str, created_unix: i64) -> Image {
    let scratch = store.begin().unwrap();
    let (staged, record) = stage(&scratch, content, created_unix);
    store.put(&scratch, &staged, &record, name).unwrap()
}

#[test]
fn an_image_is_found_by_name_digest_and_first_digits() {
    let (_dir, store) = store();
    let image = put(&store, "one", "default", 1);
    assert_eq!(image.names, ["default"]);
    for reference in ["default", &image.manifest.digest, &image.manifest.digest[..8]] {
        assert_eq!(store.get(reference).unwrap(), image);
    }
    store.verify(&image).unwrap();
    assert_eq!(std::fs::read_to_string(image.kernel()).unwrap(), "vmlinux one");
    assert_eq!(
        image.base().metadata().unwrap().permissions().mode() & 0o7777,
        0o444
    );
    assert_eq!(
        entries(store.root()).unwrap(),
        ["images", "lock", "names"],
        "no scratch may stay"
    );
}

#[test]
fn what_is_not_there_says_what_to_do() {
    let (_dir, store) = store();
    let image = put(&store, "one", "default", 1);
    for reference in ["other", "", "..", &image.manifest.digest[..7], "../names"] {
        let error = store.get(reference).unwrap_err();
        assert!(
            matches!(error, StoreError::NotFound { .. }),
            "{reference}: {error:?}"
        );
        assert!(error.to_string().contains("crabbox image build"), "{error}");
    }
}

#[test]
fn a_name_moves_to_the_newer_image_and_the_older_stays() {
    let (_dir, store) = store();
    let old = put(&store, "one", "default", 1);
    let new = put(&store, "two", "default", 2);
    assert_eq!(store.get("default").unwrap(), new);
    assert_eq!(
        store.get(&old.manifest.digest).unwrap().names,
        Vec::<String>::new()
    );
    let digests: Vec<_> = store
        .list()
        .unwrap()
        .images
        .into_iter()
        .map(|image| image.manifest.digest)
        .collect();
    assert_eq!(
        digests,
        [new.manifest.digest, old.manifest.digest],
        "newest first"
    );
}

#[test]
fn the_same_image_again_is_kept_and_a_damaged_one_is_replaced() {
    let (_dir, store) = store();
    let image = put(&store, "one", "default", 1);
    assert_eq!(put(&store, "one", "default", 2).manifest.created_unix, 1, "kept");
    files::write_atomic(&image.base(), b"damage", 0o444).unwrap();
    let error = store.verify(&image).unwrap_err();
    assert!(
        matches!(&error, StoreError::Damaged { path, .. } if *path == image.base()),
        "{error:?}"
    );
    let replaced = put(&store, "one", "default", 3);
    assert_eq!(replaced.manifest.created_unix, 3, "replaced");
    store.verify(&replaced).unwrap();
}

#[test]
fn files_that_do_not_match_the_record_never_get_in() {
    let (_dir, store) = store();
    let scratch = store.begin().unwrap();
    let (staged, record) = stage(&scratch, "one", 1);
    std::fs::write(staged.join(manifest::BASE), "changed").unwrap();
    let error = store.put(&scratch, &staged, &record, "default").unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(store.list().unwrap().images.is_empty());
}

#[test]
fn a_broken_image_is_told_and_hides_no_other() {
    let (_dir, store) = store();
    let good = put(&store, "one", "default", 1);
    let bad = put(&store, "two", "other", 2);
    let newer = put(&store, "three", "newer", 3);
    files::write_atomic(&bad.dir.join(manifest::FILE), b"{", 0o644).unwrap();
    files::write_atomic(&newer.dir.join(manifest::FILE), b"{\"version\": 2}", 0o644).unwrap();
    let listing = store.list().unwrap();
    assert_eq!(listing.images, [good]);
    assert_eq!(listing.broken.len(), 2);
    assert!(matches!(store.get("other"), Err(StoreError::Record { .. })));
    assert!(matches!(
        store.get("newer"),
        Err(StoreError::Version { found: 2, .. })
    ));
}

#[test]
fn an_image_in_the_place_of_another_is_refused() {
    let (_dir, store) = store();
    let (one, two) = (put(&store, "one", "one", 1), put(&store, "two", "two", 2));
    let record = std::fs::read(one.dir.join(manifest::FILE)).unwrap();
    files::write_atomic(&two.dir.join(manifest::FILE), &record, 0o644).unwrap();
    assert!(matches!(store.get("two"), Err(StoreError::Misplaced { .. })));
}

#[test]
fn removing_takes_the_names_too_and_leaves_other_links_alone() {
    let (dir, store) = store();
    let image = put(&store, "one", "default", 1);
    put(&store, "one", "second", 1);
    let lease = dir.path().join("base.ext4");
    std::fs::hard_link(image.base(), &lease).unwrap();
    store.remove("second").unwrap();
    assert!(store.list().unwrap().images.is_empty() && entries(&store.names()).unwrap().is_empty());
    assert!(!image.dir.exists() && entries(store.root()).unwrap().len() == 3);
    assert_eq!(std::fs::read_to_string(lease).unwrap(), "base.ext4 one");
    assert!(matches!(store.remove("second"), Err(StoreError::NotFound { .. })));
}

#[test]
fn one_change_at_a_time_and_the_next_sweeps_what_a_killed_one_left() {
    let (_dir, store) = store();
    let left = store.root().join("scratch-1/deep");
    std::fs::create_dir_all(&left).unwrap();
    let scratch = store.begin().unwrap();
    assert!(!left.exists());
    assert!(matches!(store.begin(), Err(StoreError::Busy { .. })));
    drop(scratch);
    store.begin().unwrap();
}

#[test]
fn only_plain_names_are_taken() {
    let (_dir, store) = store();
    let scratch = store.begin().unwrap();
    let (staged, record) = stage(&scratch, "one", 1);
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "Default",
        "0123abcd",
        ".hidden",
        &"x".repeat(65),
    ] {
        let error = store.put(&scratch, &staged, &record, name).unwrap_err();
        assert!(matches!(error, StoreError::BadName { .. }), "{name}: {error:?}");
    }
    store.put(&scratch, &staged, &record, "debian-12.slim_1").unwrap();
}
