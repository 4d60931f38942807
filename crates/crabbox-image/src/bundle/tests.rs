//! Bundles that are valid, truncated, damaged or malicious.

use super::*;
use crate::manifest::{self, Init};
use crate::small::{FillAt, Small};
use crate::store::{Image, Store};
use crabbox_core::fault::chain;
use std::cell::Cell;
use std::path::Path;

struct World {
    dir: tempfile::TempDir,
    store: Store,
    image: Image,
}

/// A store with one image whose base is half holes.
fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("from")).unwrap();
    let scratch = store.begin().unwrap();
    let staged = scratch.dir().join("image");
    std::fs::create_dir(&staged).unwrap();
    let mut base = vec![0; 1 << 20];
    base[70_000..80_000].fill(7);
    for (name, content) in [
        (manifest::KERNEL, &b"kernel"[..]),
        (manifest::INITRD, b"initrd"),
        (manifest::BASE, &base),
    ] {
        std::fs::write(staged.join(name), content).unwrap();
    }
    let record = Manifest {
        suite: "bookworm".to_owned(),
        kernel_release: "6.1".to_owned(),
        ..Manifest::of_staged(&staged, &manifest::FILES, Init::Ours, 1).unwrap()
    };
    let image = store.put(&scratch, &staged, &record, "default").unwrap();
    drop(scratch);
    World { dir, store, image }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn exported(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        export(&self.image, None, &to, &quiet).unwrap();
        to
    }

    fn record(&self) -> Record {
        Record {
            version: VERSION,
            image: self.image.manifest.clone(),
            programs: BTreeMap::new(),
        }
    }

    /// Imports into an empty store, in which nothing may be left after a failure.
    fn import(&self, bundle: &Path) -> Result<Imported, BundleError> {
        let root = self.path("to");
        let store = Store::open(&root).unwrap();
        let result = import(bundle, None, &store, "default", None, &quiet);
        if result.is_err() {
            let listing = store.list().unwrap();
            assert!(listing.images.is_empty() && listing.broken.is_empty());
            let mut left: Vec<_> = std::fs::read_dir(&root)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            left.sort();
            assert_eq!(left, ["images", "lock", "names"]);
        }
        result
    }
}

fn quiet(_: &str) {}

/// An archive of these members, written unchanged: path, content, kind.
fn archive(to: &Path, members: &[(&str, &[u8], tar::EntryType)]) {
    let mut archive = tar::Builder::new(std::fs::File::create(to).unwrap());
    for (path, content, kind) in members {
        let mut header = tar::Header::new_ustar();
        // The library refuses to write `..` in a path; an attacker does not.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn what_goes_out_comes_in_plain_and_compressed() {
    let world = world();
    for name in ["bundle.tar", "bundle.tar.gz"] {
        let imported = world.import(&world.exported(name)).unwrap();
        assert_eq!(imported.image.manifest, world.image.manifest);
        assert_eq!(
            std::fs::read(imported.image.base()).unwrap(),
            std::fs::read(world.image.base()).unwrap()
        );
        std::fs::remove_dir_all(world.path("to")).unwrap();
    }
    let small = std::fs::metadata(world.path("bundle.tar.gz")).unwrap().len();
    assert!(small < std::fs::metadata(world.path("bundle.tar")).unwrap().len() / 4);
}

#[test]
fn a_bundle_must_have_the_digest_that_was_asked_for() {
    let world = world();
    for name in ["bundle.tar", "bundle.tar.gz"] {
        let bundle = world.exported(name);
        let store = Store::open(&world.path("to")).unwrap();
        let wanted = |sha256: &str| import(&bundle, Some(sha256), &store, "default", None, &quiet);
        let error = wanted(&"0".repeat(64)).unwrap_err();
        assert!(matches!(error, BundleError::WrongDigest { .. }), "{error:?}");
        assert!(store.list().unwrap().images.is_empty());
        let digest = crabbox_host::digest::sha256_file(&bundle).unwrap();
        wanted(&digest.to_uppercase()).unwrap();
        std::fs::remove_dir_all(world.path("to")).unwrap();
    }
}

#[test]
fn zeros_become_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let world = world();
    let imported = world.import(&world.exported("bundle.tar")).unwrap();
    assert!(imported.image.base().metadata().unwrap().blocks() * 512 < 512 << 10);
}

#[test]
fn the_same_image_gives_the_same_bundle() {
    let world = world();
    let read = |name| std::fs::read(world.exported(name)).unwrap();
    assert_eq!(read("one.tar"), read("two.tar"));
}

#[test]
fn a_bundle_cut_anywhere_is_refused() {
    let world = world();
    let whole = std::fs::read(world.exported("bundle.tar")).unwrap();
    let cut = world.path("cut.tar");
    for length in [
        0,
        100,
        512,
        2000,
        4096,
        10_000,
        500_000,
        whole.len() - 1_200_000.min(whole.len() / 2),
    ] {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let error = world.import(&cut).unwrap_err();
        assert!(error.to_string().contains("cut.tar"), "{length}: {error}");
    }
    std::fs::write(&cut, &whole[..500_000]).unwrap();
    assert!(
        matches!(world.import(&cut), Err(BundleError::Truncated { member, .. }) if member == "image/base.ext4")
    );
}

#[test]
fn a_changed_byte_is_found_and_the_member_named() {
    let world = world();
    let bundle = world.exported("bundle.tar");
    let mut bytes = std::fs::read(&bundle).unwrap();
    let at = bytes.windows(6).position(|window| window == [7; 6]).unwrap();
    bytes[at] = 8;
    std::fs::write(&bundle, bytes).unwrap();
    assert!(
        matches!(world.import(&bundle), Err(BundleError::Damaged { member, .. }) if member == "image/base.ext4")
    );
}

#[test]
fn members_that_reach_out_or_are_no_files_are_refused() {
    let world = world();
    let record = serde_json::to_vec(&world.record()).unwrap();
    let bundle = world.path("evil.tar");
    for (path, kind, problem) in [
        (
            "../../etc/passwd",
            tar::EntryType::Regular,
            "is not in its record",
        ),
        ("/etc/passwd", tar::EntryType::Regular, "is not in its record"),
        ("image/vmlinux", tar::EntryType::Symlink, "is no plain file"),
        ("image/vmlinux", tar::EntryType::Char, "is no plain file"),
        ("image/vmlinux", tar::EntryType::Block, "is no plain file"),
        ("image/vmlinux", tar::EntryType::Link, "is no plain file"),
    ] {
        archive(
            &bundle,
            &[
                ("bundle.json", &record, tar::EntryType::Regular),
                (path, b"", kind),
            ],
        );
        let error = world.import(&bundle).unwrap_err();
        assert!(error.to_string().contains(problem), "{path} {kind:?}: {error}");
    }
}

#[test]
fn a_member_twice_or_longer_than_told_is_refused() {
    let world = world();
    let record = serde_json::to_vec(&world.record()).unwrap();
    let bundle = world.path("evil.tar");
    let first = ("bundle.json", &record[..], tar::EntryType::Regular);
    let kernel = ("image/vmlinux", &b"kernel"[..], tar::EntryType::Regular);
    archive(&bundle, &[first, kernel, kernel]);
    assert!(
        world
            .import(&bundle)
            .unwrap_err()
            .to_string()
            .contains("there twice")
    );
    archive(
        &bundle,
        &[
            first,
            ("image/vmlinux", b"kernel and more", tar::EntryType::Regular),
        ],
    );
    assert!(
        world
            .import(&bundle)
            .unwrap_err()
            .to_string()
            .contains("is longer than")
    );
}

#[test]
fn the_record_must_be_of_this_machine_and_agree_with_itself() {
    let world = world();
    let bundle = world.path("evil.tar");
    let refused = |change: &dyn Fn(&mut Record)| {
        let mut record = world.record();
        change(&mut record);
        let text = serde_json::to_vec(&record).unwrap();
        archive(&bundle, &[("bundle.json", &text, tar::EntryType::Regular)]);
        world.import(&bundle).unwrap_err()
    };
    let error = refused(&|record| record.version = 2);
    assert!(
        matches!(error, BundleError::Version { found: 2, .. }),
        "{error:?}"
    );
    let error = refused(&|record| record.image.arch = "aarch64".to_owned());
    assert!(matches!(error, BundleError::Architecture { .. }), "{error:?}");
    let error = refused(&|record| record.image.digest = "0".repeat(64));
    assert!(matches!(error, BundleError::Inconsistent { .. }), "{error:?}");
    let error = refused(&|record| {
        let facts = record.image.files[manifest::BASE].clone();
        record.image.files.insert("../../escape".to_owned(), facts);
        record.image.digest = manifest::image_digest(&record.image.files);
    });
    assert!(matches!(error, BundleError::Inconsistent { .. }), "{error:?}");
    let facts = || FileFacts {
        sha256: "0".repeat(64),
        bytes: 3,
    };
    let error = refused(&|record| drop(record.programs.insert("firecracker".to_owned(), facts())));
    assert!(matches!(error, BundleError::Unpinned { .. }), "{error:?}");
    let error = refused(&|record| drop(record.programs.insert("sh".to_owned(), facts())));
    assert!(matches!(error, BundleError::Member { .. }), "{error:?}");
}

#[test]
fn something_else_is_no_bundle() {
    let world = world();
    let other = world.path("other");
    std::fs::write(&other, "text").unwrap();
    assert!(matches!(
        world.import(&other),
        Err(BundleError::NotABundle { .. })
    ));
    archive(&other, &[("readme", b"x", tar::EntryType::Regular)]);
    assert!(matches!(
        world.import(&other),
        Err(BundleError::NotABundle { .. })
    ));
}

#[test]
fn a_damaged_image_is_not_exported() {
    let world = world();
    let base = world.image.base();
    std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&base, vec![1; 1 << 20]).unwrap();
    let to = world.path("bundle.tar");
    assert!(matches!(
        export(&world.image, None, &to, &quiet),
        Err(BundleError::Store(StoreError::Damaged { .. }))
    ));
    assert!(!to.exists());
    drop(world.store);
}

#[test]
fn a_disk_that_fills_at_any_moment_of_an_import_leaves_nothing_and_the_next_one_succeeds() {
    let world = world();
    let bundle = world.exported("bundle.tar");
    let small = Small::new(16);
    let root = small.path().join("store");
    let mut refused = 0;
    for moment in 1.. {
        let store = Store::open(&root).unwrap();
        let progress = FillAt {
            small: &small,
            left: Cell::new(moment),
        };
        let result = import(&bundle, None, &store, "default", None, &progress);
        if progress.was_spared() {
            result.unwrap();
            break;
        }
        small.empty();
        // After the last moment there may be nothing left to write.
        if let Err(error) = result {
            refused += 1;
            let told = chain(&error);
            assert!(told.contains("No space left on device"), "{moment}: {told}");
            let listing = store.list().unwrap();
            assert!(
                listing.images.is_empty() && listing.broken.is_empty(),
                "{moment}: {told}"
            );
            assert_eq!(
                Small::names(&root),
                ["images", "lock", "names"],
                "{moment}: {told}"
            );
        }
        import(&bundle, None, &store, "default", None, &quiet).unwrap();
        store.verify(&store.get("default").unwrap()).unwrap();
        store.remove("default").unwrap();
    }
    assert!(refused > 3, "it was full at {refused} moments only");
}
