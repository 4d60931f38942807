//! Volumes taken and given back, with takers that die in between, on real ext4 images.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crabbox_core::fault::{Fault as _, Kind};
use crabbox_core::journal::{Entry, Step, VERSION};
use crabbox_host::command::Cmd;
use crabbox_store::journal::JournalFile;

use super::*;

const LIMITS: Limits = Limits {
    max_leases: 0,
    reserve_memory_mib: 0,
    reserve_disk_mib: 0,
};

struct World {
    _home: tempfile::TempDir,
    places: Places,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let places = Places::below(home.path());
        files::create_private_dir(&places.state).unwrap();
        Self { _home: home, places }
    }

    /// A lease whose journal has the intent to take the volume.
    fn lease(&self, id: &str, key: &str) -> LeaseId {
        let lease = LeaseId::parse(id).unwrap();
        let dir = LeaseDir::at(self.places.lease(&lease));
        files::create_private_dir(dir.path()).unwrap();
        let open = Entry::Open {
            version: VERSION,
            lease: id.to_owned(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        };
        let mut journal = JournalFile::create(&dir.journal(), &open).unwrap();
        let dir = volumes::dir_of(&self.places, key).to_string_lossy().into_owned();
        let link = link(0);
        drop(
            journal
                .begin(Step::Volume {
                    dir,
                    link,
                    size_mib: 1024,
                })
                .unwrap(),
        );
        lease
    }

    fn take(&self, lease: &LeaseId, volume: &Volume) -> Result<(PathBuf, Option<String>), VolumeError> {
        let request = VolumeRequest {
            volume,
            lease,
            uid: None,
            limits: LIMITS,
            cancelled: &|| false,
        };
        take(&self.places, &request, &|_| ())
    }

    fn give_back(&self, lease: &LeaseId, key: &str) {
        give_back(&self.places, &volumes::dir_of(&self.places, key), lease).unwrap();
    }

    fn about(&self, key: &str) -> About {
        let listed = volumes::list(&self.places).unwrap();
        let dir = volumes::dir_of(&self.places, key);
        let one = listed.into_iter().find(|listed| listed.dir == dir);
        one.unwrap().about.unwrap()
    }
}

fn volume(size_gib: i64) -> Volume {
    Volume::new(Some("n"), "k", "/data", Some(size_gib), true).unwrap()
}

fn write(image: &Path, word: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), word).unwrap();
    let order = format!("write {} kept", dir.path().join("f").display());
    Cmd::new("debugfs")
        .args(["-w", "-R", &order])
        .arg(image)
        .run()
        .unwrap();
}

fn kept(image: &Path) -> String {
    let read = Cmd::new("debugfs").args(["-R", "cat kept"]).arg(image).run();
    read.unwrap().stdout_text()
}

const A: &str = "cbx_00000000000a";
const B: &str = "cbx_00000000000b";

#[test]
fn what_one_lease_wrote_the_next_one_has_and_a_larger_wish_grows_it() {
    let world = World::new();
    let a = world.lease(A, "k");
    let (image, warning) = world.take(&a, &volume(1)).unwrap();
    assert_eq!(warning, None);
    write(&image, "precious");
    // A VMM with another uid may leave it like this.
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o666)).unwrap();
    world.give_back(&a, "k");
    assert_eq!(image.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(world.about("k").holder, None);
    let b = world.lease(B, "k");
    let (image, warning) = world.take(&b, &volume(2)).unwrap();
    assert_eq!((kept(&image).as_str(), warning), ("precious", None));
    assert_eq!(
        (image.metadata().unwrap().len(), world.about("k").size_mib),
        (2 << 30, 2048)
    );
    world.give_back(&b, "k");
    // A volume is never shrunk, and a growth that a dead process recorded but did not make is made by the
    // next one.
    let dir = volumes::dir_of(&world.places, "k");
    let mut about = world.about("k");
    about.size_mib = 3072;
    Locked::take(&world.places, &dir).unwrap().save(&about).unwrap();
    let (image, _) = world.take(&a, &volume(1)).unwrap();
    assert_eq!(
        (kept(&image).as_str(), world.about("k").size_mib),
        ("precious", 3072)
    );
    let facts = crabbox_image::inspect::superblock(&image).unwrap();
    assert_eq!(facts.bytes(), 3 << 30);
}

#[test]
fn one_lease_at_a_time_has_it_and_a_dead_one_s_word_does_not_count() {
    let world = World::new();
    let (a, b) = (world.lease(A, "k"), world.lease(B, "k"));
    world.take(&a, &volume(1)).unwrap();
    let busy = world.take(&b, &volume(1)).unwrap_err();
    assert!(
        matches!(&busy, VolumeError::Busy { lease } if lease == A),
        "{busy}"
    );
    assert_eq!(busy.kind(), Kind::Unavailable);
    let dir = volumes::dir_of(&world.places, "k");
    assert!(matches!(
        remove(&world.places, &dir),
        Err(VolumeError::Busy { .. })
    ));
    // A lease that does not have the volume cannot give it back.
    world.give_back(&b, "k");
    assert_eq!(world.about("k").holder.as_deref(), Some(A));
    // A lease's directory is removed last, so without it the lease is gone.
    std::fs::remove_dir_all(world.places.lease(&a)).unwrap();
    world.take(&b, &volume(1)).unwrap();
    world.give_back(&b, "k");
    remove(&world.places, &dir).unwrap();
    assert!(volumes::list(&world.places).unwrap().is_empty());
}

#[test]
fn an_image_that_somebody_may_write_to_is_neither_attached_nor_given_back_nor_removed() {
    let world = World::new();
    let a = world.lease(A, "k");
    let (image, _) = world.take(&a, &volume(1)).unwrap();
    let dir = volumes::dir_of(&world.places, "k");
    let open = std::fs::File::options().write(true).open(&image).unwrap();
    let own = std::process::id();
    let is_told =
        |outcome: Result<(), VolumeError>| matches!(outcome, Err(VolumeError::Open { pid }) if pid == own);
    assert!(is_told(give_back(&world.places, &dir, &a)));
    assert!(is_told(world.take(&a, &volume(1)).map(drop)));
    std::fs::remove_dir_all(world.places.lease(&a)).unwrap();
    assert!(is_told(remove(&world.places, &dir)));
    drop(open);
    // A process that only reads the image does not block its removal.
    let _backup = std::fs::File::open(&image).unwrap();
    remove(&world.places, &dir).unwrap();
}

#[test]
fn a_damaged_one_is_set_aside_with_its_reason_and_told_once() {
    let world = World::new();
    let a = world.lease(A, "k");
    let (image, _) = world.take(&a, &volume(1)).unwrap();
    world.give_back(&a, "k");
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xff; 1 << 20], 0).unwrap();
    drop(file);
    let (image, warning) = world.take(&a, &volume(1)).unwrap();
    let warning = warning.unwrap();
    assert!(
        warning.contains("\"n\" was damaged") && warning.contains("e2fsck exited with 8"),
        "{warning}"
    );
    assert_eq!(image::mend(&image, &|| false).unwrap(), Health::Whole);
    let aside = world.about("k").set_aside.unwrap();
    assert!(aside.why.contains("e2fsck exited with 8"), "{aside:?}");
    assert!(image.with_file_name(volumes::SET_ASIDE).exists());
    world.give_back(&a, "k");
    assert_eq!(world.take(&a, &volume(1)).unwrap().1, None);
}

#[test]
fn one_that_was_never_made_leaves_nothing_and_one_for_which_there_is_no_room_is_not_begun() {
    let world = World::new();
    let a = world.lease(A, "k");
    let request = |limits| VolumeRequest {
        volume: Box::leak(Box::new(volume(1))),
        lease: &a,
        uid: None,
        limits,
        cancelled: &|| false,
    };
    let full = Limits {
        reserve_disk_mib: u64::MAX / 2,
        ..LIMITS
    };
    let refused = take(&world.places, &request(full), &|_| ()).unwrap_err();
    assert!(matches!(refused, VolumeError::NoRoom(_)), "{refused}");
    world.give_back(&a, "k");
    assert_eq!(std::fs::read_dir(world.places.volumes()).unwrap().count(), 0);
    // The process that takes it dies between the record and the image.
    let dir = volumes::dir_of(&world.places, "k");
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        take(&world.places, &request(LIMITS), &|moment| {
            assert_ne!(moment, Moment::Held);
        })
        .map(drop)
    }));
    assert!(died.is_err());
    assert!(dir.exists());
    world.give_back(&a, "k");
    assert_eq!(std::fs::read_dir(world.places.volumes()).unwrap().count(), 0);
}

#[test]
fn a_journal_leads_to_no_other_directory() {
    let world = World::new();
    let a = world.lease(A, "k");
    for dir in ["/etc", "/", "relative"] {
        let outcome = give_back(&world.places, Path::new(dir), &a);
        assert!(matches!(outcome, Err(VolumeError::Outside { .. })), "{dir}");
    }
}

impl World {
    /// Kills the taking of the volume at `moment`, and its lease with it.
    #[track_caller]
    fn dies(&self, lease: &LeaseId, volume: &Volume, moment: Moment, gives_back: bool) {
        let request = VolumeRequest {
            volume,
            lease,
            uid: None,
            limits: LIMITS,
            cancelled: &|| false,
        };
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            take(&self.places, &request, &|now| assert_ne!(now, moment)).map(drop)
        }));
        assert!(died.is_err(), "{moment:?} never came");
        if gives_back {
            self.give_back(lease, &volume.key);
        } else {
            std::fs::remove_dir_all(self.places.lease(lease)).unwrap();
        }
    }
}

/// Destroys the superblock of `image`, and writes a mark into it by which it can be recognised.
fn damage(image: &Path, mark: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
    file.write_all_at(mark, 512 << 20).unwrap();
}

fn has_mark(image: &Path, mark: &[u8]) -> bool {
    use std::os::unix::fs::FileExt as _;
    let mut read = vec![0; mark.len()];
    let file = std::fs::File::open(image);
    file.is_ok_and(|file| file.read_exact_at(&mut read, 512 << 20).is_ok() && read == mark)
}

#[test]
fn growth_that_is_cut_off_at_any_moment_costs_nothing() {
    for moment in [Moment::Held, Moment::Grown, Moment::Whole] {
        for gives_back in [false, true] {
            let world = World::new();
            let a = world.lease(A, "k");
            let (image, _) = world.take(&a, &volume(1)).unwrap();
            write(&image, "precious");
            world.give_back(&a, "k");
            let b = world.lease(B, "k");
            world.dies(&b, &volume(2), moment, gives_back);
            let (image, warning) = world.take(&a, &volume(1)).unwrap();
            assert_eq!((kept(&image).as_str(), warning), ("precious", None), "{moment:?}");
            assert!(!image::is_smaller(&image, 2048).unwrap(), "{moment:?}");
            assert_eq!(world.about("k").size_mib, 2048, "{moment:?}");
        }
    }
}

#[test]
fn setting_aside_that_is_cut_off_at_any_moment_loses_no_image() {
    for moment in [Moment::Condemned, Moment::Aside, Moment::Made, Moment::Whole] {
        for gives_back in [false, true] {
            let world = World::new();
            let a = world.lease(A, "k");
            let (image, _) = world.take(&a, &volume(1)).unwrap();
            world.give_back(&a, "k");
            damage(&image, b"first");
            let b = world.lease(B, "k");
            world.dies(&b, &volume(2), moment, gives_back);
            let aside = image.with_file_name(volumes::SET_ASIDE);
            assert!(
                has_mark(&image, b"first") || has_mark(&aside, b"first"),
                "{moment:?}"
            );
            let (image, warning) = world.take(&a, &volume(1)).unwrap();
            assert_eq!(warning.is_some(), moment == Moment::Condemned);
            assert!(has_mark(&aside, b"first"), "{moment:?}");
            write(&image, "precious");
            assert!(!image::is_smaller(&image, 2048).unwrap(), "{moment:?}");
            world.give_back(&a, "k");
            world.take(&a, &volume(1)).unwrap();
            assert_eq!(kept(&image), "precious", "{moment:?}");
            let told = world.about("k").set_aside.map(|aside| aside.why);
            assert!(told.is_some_and(|why| why.contains("e2fsck exited with 8")));
        }
    }
}

#[test]
fn a_second_damaged_image_does_not_take_the_place_of_the_first() {
    let world = World::new();
    let a = world.lease(A, "k");
    let (image, _) = world.take(&a, &volume(1)).unwrap();
    world.give_back(&a, "k");
    damage(&image, b"first");
    drop(world.take(&a, &volume(1)).unwrap());
    world.give_back(&a, "k");
    damage(&image, b"second");
    let refused = world.take(&a, &volume(1)).unwrap_err();
    assert!(
        matches!(refused, VolumeError::DamagedAgain { .. }) && !refused.hints().is_empty(),
        "{refused}"
    );
    world.give_back(&a, "k");
    let aside = image.with_file_name(volumes::SET_ASIDE);
    assert!(has_mark(&aside, b"first") && has_mark(&image, b"second"));
    // The user has dealt with the first one.
    std::fs::remove_file(&aside).unwrap();
    assert!(world.take(&a, &volume(1)).unwrap().1.is_some());
    assert!(has_mark(&aside, b"second"));
}

#[test]
fn an_image_whose_record_is_lost_or_unreadable_stays_as_it_is() {
    let world = World::new();
    let a = world.lease(A, "k");
    let (image, _) = world.take(&a, &volume(2)).unwrap();
    write(&image, "precious");
    let record = image.with_file_name("about.json");
    std::fs::write(&record, "{").unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o666)).unwrap();
    world.give_back(&a, "k");
    assert_eq!(image.metadata().unwrap().mode() & 0o7777, 0o600);
    assert!(world.take(&a, &volume(1)).is_err(), "nobody knows whose it is");
    std::fs::remove_file(&record).unwrap();
    world.give_back(&a, "k");
    world.take(&a, &volume(1)).unwrap();
    assert_eq!(kept(&image), "precious");
    assert_eq!(world.about("k").size_mib, 2048);
}

#[test]
fn who_gets_no_volume_does_not_wait_for_it() {
    let world = World::new();
    let (a, b) = (world.lease(A, "k"), world.lease(B, "k"));
    world.take(&a, &volume(1)).unwrap();
    let dir = volumes::dir_of(&world.places, "k");
    // As if its holder were checking it just now. If this waited, it would fail only after minutes.
    let held = Locked::take(&world.places, &dir).unwrap();
    let busy = world.take(&b, &volume(1)).unwrap_err();
    assert!(matches!(busy, VolumeError::Busy { .. }), "{busy}");
    world.give_back(&b, "k");
    let asked = std::cell::Cell::new(0);
    let request = VolumeRequest {
        volume: &volume(1),
        lease: &a,
        uid: None,
        limits: LIMITS,
        cancelled: &|| {
            asked.set(asked.get() + 1);
            asked.get() > 2
        },
    };
    let gave_up = take(&world.places, &request, &|_| ()).unwrap_err();
    assert!(gave_up.is_cancelled(), "{gave_up}");
    drop(held);
    // The same while the file system is being checked.
    asked.set(1);
    let gave_up = take(&world.places, &request, &|_| ()).unwrap_err();
    assert!(gave_up.is_cancelled(), "{gave_up}");
    // Giving back a volume that was never begun leaves neither a lock nor an empty directory, as a full disk
    // may have left one.
    let c = world.lease("cbx_00000000000c", "none");
    let none = volumes::dir_of(&world.places, "none");
    std::fs::create_dir(&none).unwrap();
    drop(Locked::take(&world.places, &none).unwrap());
    world.give_back(&c, "none");
    assert!(!volumes::is_begun(&none));
}

#[test]
fn the_same_room_is_not_promised_twice() {
    let world = World::new();
    let (a, b) = (world.lease(A, "k"), world.lease(B, "k2"));
    let free_mib = files::free_bytes(&world.places.state).unwrap() >> 20;
    let size_gib = (free_mib >> 12).max(1);
    let limits = Limits {
        reserve_disk_mib: free_mib.saturating_sub((size_gib << 10) * 3 / 2),
        ..LIMITS
    };
    let size = Some(i64::try_from(size_gib).unwrap());
    let taken = |lease: &LeaseId, key: &str| {
        let request = VolumeRequest {
            volume: &Volume::new(None, key, "/data", size, true).unwrap(),
            lease,
            uid: None,
            limits,
            cancelled: &|| false,
        };
        take(&world.places, &request, &|_| ()).map(drop)
    };
    taken(&a, "k").unwrap();
    let refused = taken(&b, "k2").unwrap_err();
    assert!(matches!(refused, VolumeError::NoRoom(_)), "{refused}");
    world.give_back(&a, "k");
    taken(&b, "k2").unwrap();
}

#[test]
fn a_guest_says_which_volumes_it_could_not_mount() {
    let stages =
        |names: &[&str]| -> Vec<(String, u64)> { names.iter().map(|name| ((*name).to_owned(), 1)).collect() };
    let told = |names: &[&str]| -> Vec<(usize, bool)> {
        let told = not_mounted(2, &stages(names)).into_iter();
        told.map(|(number, why)| (number, matches!(why, VolumeError::TooOld)))
            .collect()
    };
    assert_eq!(told(&["init", "volumes", "ready"]), []);
    assert_eq!(told(&["volumes", "no-volume-1"]), [(1, false)]);
    assert_eq!(told(&["volumes", "no-volume-7", "no-volume-", "no-volume-x"]), []);
    assert_eq!(told(&["init", "ready"]), [(0, true), (1, true)]);
    assert_eq!(not_mounted(0, &stages(&[])).len(), 0);
}
