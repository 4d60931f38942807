//! A store in a temporary home; leases are hard links, as the engine makes them.

use super::*;

#[test]
fn a_look_at_a_bare_host_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    assert!(list(&places, "").unwrap().0.is_empty());
    assert!(matches!(
        get(&places, "", "default"),
        Err(ImagesError::Store(StoreError::NotFound { .. }))
    ));
    assert!(gc(&places, "", Policy::default(), false).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_url_is_told_from_a_file() {
    let cwd = Path::new("/here");
    assert!(matches!(
        Source::named("https://host/x", cwd, None),
        Source::Url { .. }
    ));
    let file = Source::named("http/x", cwd, None);
    assert_eq!(
        file,
        Source::File {
            path: "/here/http/x".into(),
            sha256: None
        }
    );
}

/// An image with one short file per part, under the name `name`.
fn put(places: &Places, content: &str, name: &str) -> Image {
    use crabbox_image::manifest;
    let store = Store::open(&places.images()).unwrap();
    let scratch = store.begin().unwrap();
    let staged = scratch.dir().join("image");
    std::fs::create_dir(&staged).unwrap();
    for file in manifest::FILES {
        std::fs::write(staged.join(file), content).unwrap();
    }
    let record = Manifest::of_staged(&staged, &manifest::FILES, Init::Ours, 1).unwrap();
    store.put(&scratch, &staged, &record, name).unwrap()
}

/// A lease that uses `image`: a record, and a link to the base.
fn lease(places: &Places, id: &str, image: &Image) -> PathBuf {
    let dir = places.leases().join(id);
    std::fs::create_dir_all(dir.join("vm")).unwrap();
    std::fs::hard_link(image.base(), dir.join("vm").join(BASE)).unwrap();
    let disk = dir.join("vm/disk.ext4");
    let record = format!("{{\"leaseID\":\"{id}\",\"rootfsPath\":{disk:?}}}");
    std::fs::write(dir.join("metadata.json"), record).unwrap();
    dir
}

#[test]
fn an_image_that_a_lease_runs_from_is_kept_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    let old = put(&places, "old", "default");
    let lease = lease(&places, "cbx_0123456789ab", &old);
    // The name now points elsewhere, so that only the lease holds the old image.
    put(&places, "new", "default");
    let decided = gc(&places, "", Policy::default(), false).unwrap();
    let reason = decided
        .iter()
        .find(|one| one.image.dir == old.dir)
        .map(|one| &one.reason);
    assert_eq!(
        reason,
        Some(&Reason::InUse {
            leases: vec!["cbx_0123456789ab".to_owned()]
        })
    );
    assert!(matches!(
        remove(&places, &old.manifest.digest, false),
        Err(ImagesError::InUse { .. })
    ));

    // A link that no record explains also holds the image.
    std::fs::remove_file(lease.join("metadata.json")).unwrap();
    assert!(
        !gc(&places, "", Policy::default(), false)
            .unwrap()
            .iter()
            .any(|one| one.reason.goes())
    );

    std::fs::remove_dir_all(lease).unwrap();
    let decided = gc(&places, "", Policy::default(), true).unwrap();
    assert!(decided.iter().any(|one| one.reason == Reason::Unnamed) && old.dir.is_dir());
    gc(&places, "", Policy::default(), false).unwrap();
    assert!(!old.dir.exists());
    assert_eq!(list(&places, "").unwrap().0.len(), 1);
}

#[test]
fn verify_finds_a_changed_byte() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    let image = put(&places, "good", "default");
    verify(&places, "default").unwrap();
    std::fs::remove_file(image.base()).unwrap();
    std::fs::write(image.base(), "evil").unwrap();
    assert!(matches!(
        verify(&places, "default"),
        Err(ImagesError::Store(StoreError::Damaged { .. }))
    ));
}

#[test]
fn the_image_that_is_configured_is_the_one_that_is_marked_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    put(&places, "usual", "default");
    let mine = put(&places, "mine", "mine");
    let marked = |configured: &str| {
        let (listed, _) = list(&places, configured).unwrap();
        let marked = listed.into_iter().filter(|one| one.default);
        marked.flat_map(|one| one.image.names).collect::<Vec<_>>()
    };
    for (configured, names) in [
        ("", vec!["default"]),
        ("mine", vec!["mine"]),
        (&mine.manifest.digest[..12], vec!["mine"]),
        ("gone", vec![]),
    ] {
        assert_eq!(marked(configured), names, "{configured}");
        assert_eq!(
            get(&places, configured, "mine").unwrap().default,
            names == ["mine"]
        );
    }
    let all = Policy {
        max_bytes: Some(0),
        ..Policy::default()
    };
    let kept = |configured: &str| {
        let decided = gc(&places, configured, all, true).unwrap();
        let kept = decided.into_iter().filter(|one| !one.reason.goes());
        kept.flat_map(|one| one.image.names).collect::<Vec<_>>()
    };
    assert_eq!(
        (kept(""), kept("mine")),
        (vec!["default".to_owned()], vec!["mine".to_owned()])
    );
    assert_eq!(kept("gone"), ["default"], "nothing that may be needed is removed");
}

#[test]
fn the_kernel_is_that_of_the_chosen_image_or_of_the_configured_one() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    let wanted = |chosen: Option<&str>, configured: &str| Build {
        kernel_of: chosen.map(str::to_owned),
        configured: configured.to_owned(),
        ..Build::usual()
    };
    let nobody = kernel_of(&places, &wanted(None, "")).unwrap();
    assert!(matches!(nobody, KernelOf::Nobody));
    put(&places, "usual", "default");
    put(&places, "mine", "mine");
    let otherwise = |configured: &str| match kernel_of(&places, &wanted(None, configured)) {
        Ok(KernelOf::Otherwise(image)) => image.names,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (otherwise(""), otherwise("mine")),
        (vec!["default".to_owned()], vec!["mine".to_owned()])
    );
    let chosen = kernel_of(&places, &wanted(Some("default"), "mine")).unwrap();
    assert!(matches!(chosen, KernelOf::Chosen(image) if image.names == ["default"]));
    let gone = kernel_of(&places, &wanted(Some("gone"), "")).unwrap_err();
    assert!(
        matches!(gone, ImagesError::Store(StoreError::NotFound { .. })),
        "{gone:?}"
    );
}
