//! Volumes in the hands of a lease: taken from their store before its machine starts, and given back after the machine's end.
//!
//! ```text
//! free ──> held: the record names the lease ──> made, or mended and grown ──> the VMM's uid has it ──> linked into the VMM's directory
//!   ^                                                                                                      │ the VMM has ended
//!   └───────────── the record names nobody <── owner, mode and length are ours again <─────────────────────┘
//! ```
//! One machine has a volume at a time: a volume must never be attached while any process has its image open. Its contents are a guest's,
//! and nothing here mounts them.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::admission::{self, Limits, Refusal};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::volume::Volume;
use crabbox_host::clock;
use crabbox_host::files::{self, FileError};
use crabbox_host::process::{self, ProcessError};
use crabbox_image::disk::DiskError;
use crabbox_image::disk::volume::{self as image, Health};
use crabbox_store::journal;
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::volumes::{self, About, IMAGE, Locked, MAKING, SetAside, VolumesError};

use crate::resource::disk;

/// Why a lease does not get a volume, or a volume is not given back or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Another lease has it.
    #[error("lease {lease} has it")]
    Busy {
        /// The lease.
        lease: String,
    },
    /// A process has its image open that no lease accounts for.
    #[error("process {pid} has its image open")]
    Open {
        /// The process.
        pid: u32,
    },
    /// Only an image of ours mounts volumes, and only when it boots.
    #[error("only an image of crabbox's own has volumes")]
    Foreign,
    /// The disk has no room for what it may grow to.
    #[error(transparent)]
    NoRoom(#[from] Refusal),
    /// Its files cannot be used.
    #[error(transparent)]
    Store(#[from] VolumesError),
    /// Its file system cannot be made, checked or grown.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest did not mount it.
    #[error("the guest's image is too old to mount volumes")]
    NotMounted,
    /// The processes of this host cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The journal names a directory that no volume can have: it is not touched.
    #[error("the journal names {}, where no volume can be", path.display())]
    Outside {
        /// The directory.
        path: PathBuf,
    },
}

impl From<FileError> for VolumeError {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

impl Fault for VolumeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } | Self::Open { .. } => Kind::Unavailable,
            Self::NoRoom(refusal) => refusal.kind(),
            Self::Store(error) => error.kind(),
            Self::Disk(_) | Self::Foreign | Self::NotMounted | Self::Process(_) | Self::Outside { .. } => {
                Kind::Usage
            }
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Busy { lease } => vec![format!("stop that lease: `crabbox stop {lease}`"), without()],
            Self::Open { .. } => vec!["`crabbox cleanup` ends machines that belong to no lease".to_owned()],
            Self::NoRoom(refusal) => refusal.hints(),
            Self::Store(error) => error.hints(),
            Self::Disk(_) if disk::is_out_of_space(self) => {
                vec!["free some space on the state directory's file system".to_owned()]
            }
            Self::Foreign => vec![
                "leave firecracker.kernel and firecracker.rootfs unset, and name an image of `crabbox image build`".to_owned(),
                without(),
            ],
            Self::NotMounted => vec![
                "build the image again with `crabbox image build`, or fetch a newer one".to_owned(),
                without(),
            ],
            Self::Disk(_) | Self::Process(_) | Self::Outside { .. } => Vec::new(),
        }
    }
}

/// What else can be done.
fn without() -> String {
    "a volume that is not required is left out with a warning instead".to_owned()
}

/// A lease that wants a volume.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// The lease, whose journal has the intent.
    pub lease: &'a LeaseId,
    /// The VMM's uid, if it has its own.
    pub uid: Option<u32>,
    /// The administrator's limits.
    pub limits: Limits,
}

/// A moment within the taking, for tests that kill the taker there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The record names the lease.
    Held,
    /// The file system is complete; the image is still ours.
    Whole,
}

/// The name of the volume with this number in the VMM's directory.
pub(crate) fn link(index: usize) -> String {
    format!("volume{index}.ext4")
}

/// Takes the volume for the lease: makes it if there is none, and mends and grows it otherwise. Returns its image, and what its user should
/// know. Whatever fails, [`give_back`] makes it right.
pub(crate) fn take(
    places: &Places,
    wish: &Wish<'_>,
    at: &dyn Fn(Moment),
) -> Result<(PathBuf, Option<String>), VolumeError> {
    let dir = volumes::dir_of(places, &wish.volume.key);
    let locked = Locked::take(places, &dir)?;
    let now = clock::unix_seconds();
    let size_mib = wish.volume.size_mib();
    let known = locked.about()?;
    if let Some(lease) = known.as_ref().and_then(|about| holder(places, about, &dir))
        && lease != wish.lease.as_str()
    {
        return Err(VolumeError::Busy { lease });
    }
    if let Some(pid) = opener(&locked.join(IMAGE))? {
        return Err(VolumeError::Open { pid });
    }
    locked.tidy()?;
    let mut about = known.unwrap_or_else(|| About::new(&wish.volume.name, &wish.volume.key, size_mib, now));
    let most_mib = about.size_mib.max(size_mib);
    let growth_mib = most_mib.saturating_sub(locked.allocated() >> 20);
    let free_mib = files::free_bytes(&places.state)? >> 20;
    admission::admit_volume(&wish.volume.name, growth_mib, free_mib, &wish.limits)?;
    about.holder = Some(wish.lease.to_string());
    about.name.clone_from(&wish.volume.name);
    about.used_at = now;
    // The larger size is recorded before the image has it: one that is cut to a size that it has outgrown loses what is beyond.
    about.size_mib = most_mib;
    locked.save(&about)?;
    at(Moment::Held);
    let damage = if locked.has_image() {
        locked.reclaim(about.size_mib)?;
        refresh(&locked.join(IMAGE), about.size_mib)?
    } else {
        None
    };
    let warning = match damage {
        Some(why) => Some(put_aside(&locked, &mut about, why)?),
        None => None,
    };
    if !locked.has_image() {
        image::make(&locked.join(MAKING), most_mib)?;
        about.created_at = now;
        locked.publish()?;
        locked.save(&about)?;
    }
    at(Moment::Whole);
    if let Some(uid) = wish.uid {
        locked.hand_over(uid)?;
    }
    Ok((locked.join(IMAGE), warning))
}

/// Mends the image, and grows it where it is smaller than `size_mib`; returns why that cannot be done.
fn refresh(path: &Path, size_mib: u64) -> Result<Option<String>, VolumeError> {
    if let Health::Damaged { why } = image::mend(path)? {
        return Ok(Some(why));
    }
    Ok(match image::grow(path, size_mib)? {
        Health::Whole => None,
        Health::Damaged { why } => Some(why),
    })
}

/// Puts a damaged image aside, and says so.
fn put_aside(locked: &Locked, about: &mut About, why: String) -> Result<String, VolumeError> {
    let warning = format!(
        "cache volume {:?} was damaged and is set aside as {}; the lease gets an empty one ({why})",
        about.name,
        locked.join(volumes::SET_ASIDE).display()
    );
    let at = clock::unix_seconds();
    about.set_aside = Some(SetAside { at, why });
    locked.set_aside()?;
    locked.save(about)?;
    Ok(warning)
}

/// Gives the volume in `dir` back, if lease `lease` has it. Its machine must have ended.
pub(crate) fn give_back(places: &Places, dir: &Path, lease: &LeaseId) -> Result<(), VolumeError> {
    if !volumes::is_dir_of_one(places, dir) {
        return Err(VolumeError::Outside { path: dir.to_owned() });
    }
    if !volumes::is_begun(dir) {
        return Ok(());
    }
    let locked = Locked::take(places, dir)?;
    let Some(mut about) = locked.about()? else {
        if dir.exists() {
            return Ok(());
        }
        // All that there is of it is its lock.
        return Ok(locked.remove()?);
    };
    if about.holder.as_deref() != Some(lease.as_str()) {
        return Ok(());
    }
    if !locked.has_image() && about.set_aside.is_none() {
        // It was never made.
        return Ok(locked.remove()?);
    }
    locked.tidy()?;
    if locked.has_image() {
        if let Some(pid) = opener(&locked.join(IMAGE))? {
            return Err(VolumeError::Open { pid });
        }
        locked.reclaim(about.size_mib)?;
    }
    about.holder = None;
    about.used_at = clock::unix_seconds();
    Ok(locked.save(&about)?)
}

/// Removes the volume in `dir` with all that is in it, unless a lease has it.
pub fn remove(places: &Places, dir: &Path) -> Result<(), VolumeError> {
    let locked = Locked::take(places, dir)?;
    // One whose record cannot be read is nobody's who could be asked; its image tells whether a machine has it.
    if let Ok(Some(about)) = locked.about()
        && let Some(lease) = holder(places, &about, dir)
    {
        return Err(VolumeError::Busy { lease });
    }
    if let Some(pid) = opener(&locked.join(IMAGE))? {
        return Err(VolumeError::Open { pid });
    }
    Ok(locked.remove()?)
}

/// The lease that has the volume in `dir`: the one that the record names, as long as its journal says the same. One whose journal cannot be
/// read keeps it.
pub fn holder(places: &Places, about: &About, dir: &Path) -> Option<String> {
    let named = about.holder.as_ref()?;
    let Ok(id) = LeaseId::parse(named) else {
        return None;
    };
    let lease = LeaseDir::at(places.lease(&id));
    let holds = match journal::read(&lease.journal()) {
        Ok(Some(journal)) => journal.has_volume(&dir.to_string_lossy()),
        Ok(None) => false,
        Err(_) => true,
    };
    holds.then(|| named.clone())
}

/// A process that has the file at `path` open, whatever name it knows it by. Only root sees everybody's.
fn opener(path: &Path) -> Result<Option<u32>, VolumeError> {
    let facts = match path.symlink_metadata() {
        Ok(facts) => facts,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("look at", path, error).into()),
    };
    let is_it = |pid: u32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let mut opened = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| std::fs::metadata(entry.path()).ok());
        opened.any(|opened| (opened.dev(), opened.ino()) == (facts.dev(), facts.ino()))
    };
    let all = process::list()?;
    Ok(all
        .into_iter()
        .map(|process| process.id.pid)
        .find(|pid| is_it(*pid)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
            let wish = Wish {
                volume,
                lease,
                uid: None,
                limits: LIMITS,
            };
            take(&self.places, &wish, &|_| ())
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
        // As a VMM of another uid may leave it.
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
        // It is never made smaller, and what a dead process has recorded and not done is done by the next.
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
        // Who does not have it gives nothing back.
        world.give_back(&b, "k");
        assert_eq!(world.about("k").holder.as_deref(), Some(A));
        // The directory of a lease goes last, so without it the lease is gone.
        std::fs::remove_dir_all(world.places.lease(&a)).unwrap();
        world.take(&b, &volume(1)).unwrap();
        world.give_back(&b, "k");
        remove(&world.places, &dir).unwrap();
        assert!(volumes::list(&world.places).unwrap().is_empty());
    }

    #[test]
    fn an_image_that_somebody_has_open_is_neither_attached_nor_given_back_nor_removed() {
        let world = World::new();
        let a = world.lease(A, "k");
        let (image, _) = world.take(&a, &volume(1)).unwrap();
        let dir = volumes::dir_of(&world.places, "k");
        let open = std::fs::File::open(&image).unwrap();
        let own = std::process::id();
        let is_told = |outcome: Result<(), VolumeError>| matches!(outcome, Err(VolumeError::Open { pid }) if pid == own);
        assert!(is_told(give_back(&world.places, &dir, &a)));
        assert!(is_told(world.take(&a, &volume(1)).map(drop)));
        std::fs::remove_dir_all(world.places.lease(&a)).unwrap();
        assert!(is_told(remove(&world.places, &dir)));
        drop(open);
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
        assert_eq!(image::mend(&image).unwrap(), Health::Whole);
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
        let wish = |limits| Wish {
            volume: Box::leak(Box::new(volume(1))),
            lease: &a,
            uid: None,
            limits,
        };
        let full = Limits {
            reserve_disk_mib: u64::MAX / 2,
            ..LIMITS
        };
        let refused = take(&world.places, &wish(full), &|_| ()).unwrap_err();
        assert!(matches!(refused, VolumeError::NoRoom(_)), "{refused}");
        world.give_back(&a, "k");
        assert_eq!(std::fs::read_dir(world.places.volumes()).unwrap().count(), 0);
        // Its taker died between the record and the image.
        let dir = volumes::dir_of(&world.places, "k");
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            take(&world.places, &wish(LIMITS), &|moment| {
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
}
