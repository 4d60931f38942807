//! Sets up a bare temporary home from a bundle, twice, and removes the set-up.

use super::*;
use crabbox_image::bundle::{self, BundleError};
use crabbox_image::manifest::{self, Init, Manifest};
use crabbox_image::store::Store;
use crabbox_store::places::Places;
use crabbox_store::templates::{About, Templates};

struct World {
    dir: tempfile::TempDir,
    places: Places,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join("home").join(name);
    let places = Places {
        state: at("config/state"),
        config: at("config"),
        cache: at("cache"),
        registry: at("var/registry"),
    };
    World { dir, places }
}

impl World {
    fn bundle(&self) -> Source {
        let store = Store::open(&self.dir.path().join("from")).unwrap();
        let scratch = store.begin().unwrap();
        let staged = scratch.dir().join("image");
        std::fs::create_dir(&staged).unwrap();
        for name in manifest::FILES {
            std::fs::write(staged.join(name), name).unwrap();
        }
        let record = Manifest::of_staged(&staged, &manifest::FILES, Init::Ours, 1).unwrap();
        let image = store.put(&scratch, &staged, &record, "default").unwrap();
        let path = self.dir.path().join("bundle.tar");
        bundle::export(&image, None, &path, &|_: &str| {}).unwrap();
        Source::File { path, sha256: None }
    }

    fn engine(&self) -> Engine {
        Engine {
            places: self.places.clone(),
            exe: "/nonexistent".into(),
            path: "/nonexistent".into(),
            runtime: None,
            failpoint: String::new(),
        }
    }

    fn apply(&self, steps: Vec<Step>) {
        let plan = Plan {
            steps,
            ..Plan::default()
        };
        apply(&self.engine(), &plan, &|_: &str| {}, &mut |_| {}).unwrap();
    }

    /// Everything below the home, sorted.
    fn tree(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                into.push(path.clone());
                walk(&path, into);
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("home"), &mut found);
        found.sort();
        found
    }

    /// The plugins' address directory in this world.
    fn addresses(&self) -> PathBuf {
        self.dir.path().join("home/lib/cni/networks/ours")
    }

    fn steps(&self) -> Vec<Step> {
        vec![
            Step::Bundle {
                from: self.bundle(),
                image: true,
                programs: false,
            },
            Step::Network {
                path: self.dir.path().join("home/cni/net.d/10-crabbox.conflist"),
                text: "{}".to_owned(),
                addresses: self.addresses(),
            },
            Step::Configuration {
                path: self.places.config.join("config.yaml"),
            },
        ]
    }

    fn removals(&self, dry_run: bool) -> Vec<Removal> {
        let mut told = Vec::new();
        let (engine, part) = (self.engine(), Part::Everything);
        remove(&engine, &Ground::of(&engine), (part, dry_run), &mut |removal| {
            told.push(removal.clone());
        })
        .unwrap();
        told
    }
}

#[test]
fn a_host_that_lacks_what_the_steps_run_is_told_so_before_anything_is_done() {
    let world = world();
    let engine = world.engine();
    let packages = missing_packages(&engine, true, false);
    assert_eq!(packages, ["mmdebstrap", "util-linux", "apt", "dpkg", "e2fsprogs"]);
    assert!(missing_packages(&engine, false, false).is_empty());
    let path = world.places.config.join("config.yaml");
    let plan = Plan {
        steps: vec![Step::Configuration { path }],
        missing: packages,
        ..Plan::default()
    };
    let refused = apply(&engine, &plan, &|_: &str| {}, &mut |_| panic!("a step was begun"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("apt-get install -y mmdebstrap "), "{refused}");
    assert!(world.tree().is_empty());
}

#[test]
fn what_setup_made_goes_without_a_trace() {
    let world = world();
    world.apply(world.steps());
    assert!(prepare::our_image(&world.places.images()).is_ok());
    let before = world.tree();
    let planned = world.removals(true);
    assert_eq!(world.tree(), before, "a dry run touches nothing");
    assert_eq!(world.removals(false), planned);
    assert_eq!(world.tree(), Vec::<PathBuf>::new());
    assert_eq!(
        world.removals(false),
        Vec::new(),
        "a second time there is nothing to do"
    );
}

#[test]
fn what_was_there_before_stays() {
    let world = world();
    std::fs::create_dir_all(world.places.cache.join("other")).unwrap();
    std::fs::create_dir_all(&world.places.config).unwrap();
    std::fs::write(world.places.config.join("mine"), "mine").unwrap();
    let before = world.tree();
    world.apply(world.steps());
    world.removals(false);
    assert_eq!(world.tree(), before);
}

#[test]
fn a_file_that_was_changed_since_stays() {
    let world = world();
    world.apply(world.steps());
    let path = world.places.config.join("config.yaml");
    std::fs::write(&path, "provider: ssh\n").unwrap();
    assert!(
        world
            .removals(false)
            .contains(&Removal::Changed { path: path.clone() })
    );
    assert_eq!(std::fs::read_to_string(path).unwrap(), "provider: ssh\n");
}

#[test]
fn a_setup_that_failed_half_way_is_taken_away_too() {
    let world = world();
    let missing = Source::File {
        path: world.dir.path().join("nothing"),
        sha256: None,
    };
    let plan = Plan {
        steps: vec![Step::Bundle {
            from: missing,
            image: true,
            programs: true,
        }],
        ..Plan::default()
    };
    apply(&world.engine(), &plan, &|_: &str| {}, &mut |_| {}).unwrap_err();
    world.removals(false);
    assert_eq!(world.tree(), Vec::<PathBuf>::new());
}

#[test]
fn what_plugins_keep_of_our_network_goes_unless_an_address_is_given_out() {
    let world = world();
    for (file, stays) in [("192.168.127.2", true), ("last_reserved_ip.0", false)] {
        world.apply(world.steps());
        let addresses = world.addresses();
        std::fs::create_dir_all(&addresses).unwrap();
        for name in ["lock", "last_reserved_ip.0", file] {
            std::fs::write(addresses.join(name), "").unwrap();
        }
        world.removals(false);
        assert_eq!(addresses.join("lock").exists(), stays);
        std::fs::remove_dir_all(world.dir.path().join("home")).ok();
    }
}

#[test]
fn what_is_remembered_of_trees_goes_with_the_set_up() {
    let world = world();
    world.apply(world.steps());
    std::fs::create_dir_all(world.places.trees()).unwrap();
    std::fs::write(world.places.trees().join("tree"), "").unwrap();
    world.removals(false);
    assert!(!world.places.trees().exists());
    assert_eq!(world.tree(), Vec::<PathBuf>::new());
}

/// Puts a template of the image with this digest into the store, and returns its key.
fn template(world: &World, image: &str) -> String {
    let templates = Templates::of(&world.places);
    let key = templates.key(image).unwrap();
    let lock = templates.try_make().unwrap().unwrap();
    let dir = templates.workplace(&lock).unwrap();
    for name in ["memory", "vmstate", "layer"] {
        std::fs::write(dir.join(name), name).unwrap();
    }
    let about = About {
        token: "0".repeat(32),
        image: image.to_owned(),
        host: warm::facts::host(),
        made_at: 0,
    };
    let sealed = templates.seal(&dir, &key, about, &|| false).unwrap();
    templates.publish(sealed, &lock).unwrap().key
}

#[test]
fn templates_of_an_image_go_with_it_and_one_of_setups_own_always() {
    let world = world();
    world.apply(world.steps());
    let image = prepare::our_image(&world.places.images())
        .unwrap()
        .manifest
        .digest;
    let key = template(&world, &image);
    let (mut record, lock) = record::Record::open(&world.places, &lock::now).unwrap();
    record.template(&world.places, &key).unwrap();
    drop(lock);
    let removal = Removal::Template { key };
    let planned = world.removals(true);
    let count = planned.iter().filter(|one| **one == removal).count();
    assert_eq!(count, 1, "{planned:?}");
    assert_eq!(world.removals(false), planned);
    assert_eq!(world.tree(), Vec::<PathBuf>::new());
    // A template that somebody else made from that image is removed, too, because it is useless without it.
    world.apply(world.steps());
    let key = template(&world, &image);
    assert!(world.removals(false).contains(&Removal::Template { key }));
    assert_eq!(world.tree(), Vec::<PathBuf>::new());
}

#[test]
fn a_template_of_an_image_that_stays_stays() {
    let world = world();
    world.apply(world.steps());
    let image = prepare::our_image(&world.places.images())
        .unwrap()
        .manifest
        .digest;
    std::fs::remove_file(world.places.state.join("setup.json")).unwrap();
    world.apply(vec![Step::Configuration {
        path: world.places.config.join("other.yaml"),
    }]);
    let key = template(&world, &image);
    world.removals(false);
    assert_eq!(Templates::of(&world.places).keys(), [key]);
}

#[test]
fn a_lease_keeps_the_set_up() {
    let world = world();
    world.apply(world.steps());
    let lease = world.places.leases().join("cbx_0123456789ab");
    std::fs::create_dir_all(&lease).unwrap();
    let engine = world.engine();
    let (ground, part) = (Ground::of(&engine), Part::Everything);
    let error = remove(&engine, &ground, (part, false), &mut |_| {}).unwrap_err();
    assert!(matches!(error, SetupError::InUse { .. }), "{error:?}");
    assert!(prepare::our_image(&world.places.images()).is_ok());
}

#[test]
fn a_bundle_with_another_digest_than_asked_for_is_not_read() {
    let world = world();
    let Source::File { path, .. } = world.bundle() else {
        panic!()
    };
    let from = Source::File {
        path,
        sha256: Some("0".repeat(64)),
    };
    let error = images::import_bundle(&world.places, &from, "default", false, &|_: &str| {}).unwrap_err();
    assert!(
        matches!(error, ImagesError::Bundle(BundleError::WrongDigest { .. })),
        "{error:?}"
    );
}
