//! The checks of a build before it fetches anything. The build itself makes the images of
//! `e2e/tests/image.rs`.

use super::*;

fn recipe(dir: &Path) -> BuildRecipe {
    let guest = dir.join("crabbox-guest");
    std::fs::write(&guest, "guest").unwrap();
    BuildRecipe::debian(&guest)
}

#[test]
fn missing_programs_are_listed_with_the_line_that_installs_them() {
    let tools = [
        ("crabbox-no-such", "one"),
        ("sh", "dash"),
        ("crabbox-none", "two"),
        ("crabbox-nor", "two"),
    ];
    let error = check_tools(&tools).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot build an image without crabbox-no-such, crabbox-none, crabbox-nor; run `apt-get install -y one two`"
    );
}

#[test]
fn words_that_could_be_options_or_lists_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    for word in ["", "-o", "a,b", "a b", "a;b", "$(x)", "../x"] {
        let bad_suite = BuildRecipe {
            suite: word.to_owned(),
            ..recipe(dir.path())
        };
        assert!(
            matches!(
                check(&bad_suite, &store),
                Err(BuildError::BadWord { what: "suite", .. })
            ),
            "{word}"
        );
        let bad_package = BuildRecipe {
            extra_packages: vec![word.to_owned()],
            ..recipe(dir.path())
        };
        assert!(matches!(
            check(&bad_package, &store),
            Err(BuildError::BadWord { what: "package", .. })
        ));
    }
    check(
        &BuildRecipe {
            extra_packages: vec!["g++-12".to_owned()],
            ..recipe(dir.path())
        },
        &store,
    )
    .unwrap();
}

#[test]
fn a_full_file_system_is_told_before_anything_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    rustix::mount::mount(
        "tmpfs",
        &mount,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=8m",
    )
    .unwrap();
    let store = Store::open(&mount.join("store")).unwrap();
    let result = check(&recipe(dir.path()), &store);
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, BuildError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("needs 1280 MiB free"), "{error}");
}

#[test]
fn a_build_that_stops_leaves_no_image_and_no_scratch() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    // There is no such suite, so mmdebstrap stops at once.
    let recipe = BuildRecipe {
        suite: "no-such-suite".to_owned(),
        mirrors: vec!["deb file:///nonexistent no-such-suite main".to_owned()],
        ..recipe(dir.path())
    };
    let error = build_debian(&recipe, &store, &|_: &str| {}).unwrap_err();
    assert!(
        matches!(
            error,
            BuildError::Tool {
                stage: "installing packages",
                ..
            }
        ),
        "{error:?}"
    );
    let listing = store.list().unwrap();
    assert!(listing.images.is_empty() && listing.broken.is_empty());
    let mut left: Vec<_> = std::fs::read_dir(store.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["images", "lock", "names"]);
}
