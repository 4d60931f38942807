//! Volumes in the hands of a lease: taken from their store before its machine starts, and given back after the machine's end.
//!
//! ```text
//! free ──> held: the record names the lease ──> made, or mended and grown ──> the VMM's uid has it ──> linked into the VMM's directory
//!   ^                                                                                                      │ the VMM has ended
//!   └───────────── the record names nobody <── owner and mode are ours again <─────────────────────────────┘
//! ```
//! One machine has a volume at a time: a volume must never be attached while any process may write to its image. Its contents are a guest's:
//! nothing here mounts them, and nothing removes or shortens them. What is to become of an image is recorded before it happens.

use std::path::{Path, PathBuf};

use crabbox_core::admission::{self, Limits, Refusal};
use crabbox_core::fault::{self, Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::volume::Volume;
use crabbox_guest_protocol::seed;
use crabbox_host::clock;
use crabbox_host::command::CommandError;
use crabbox_host::files::{self, FileError};
use crabbox_host::process::{self, ProcessError};
use crabbox_image::disk::DiskError;
use crabbox_image::disk::volume::{self as image, Health};
use crabbox_store::journal;
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::volumes::{self, About, IMAGE, Listed, Locked, MAKING, SetAside, VolumesError};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use rustix::io::Errno;

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
    /// A process may write to its image that no lease accounts for.
    #[error("process {pid} has its image open for writing")]
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
    /// It is damaged, and so was one before it, which its user has not looked at yet.
    #[error("it is damaged ({why}), and {} is of one that was damaged before", path.display())]
    DamagedAgain {
        /// The image that was set aside before.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The guest does not know volumes.
    #[error("the guest's image is too old to mount volumes")]
    TooOld,
    /// The guest could not mount it.
    #[error("the guest could not mount it; its console says why")]
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
            Self::Disk(_)
            | Self::Foreign
            | Self::DamagedAgain { .. }
            | Self::TooOld
            | Self::NotMounted
            | Self::Process(_)
            | Self::Outside { .. } => Kind::Usage,
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
                "choose another path, or remove the volume if an image with a newer kernel has changed it".to_owned(),
                without(),
            ],
            Self::TooOld => vec![
                "build the image again with `crabbox image build`, or fetch a newer one".to_owned(),
                without(),
            ],
            Self::DamagedAgain { path, .. } => vec![
                format!("move {} away, and the damaged one is set aside in its place", path.display()),
                "`crabbox cache volumes --remove NAME --force` removes both".to_owned(),
            ],
            Self::Disk(_) | Self::Process(_) | Self::Outside { .. } => Vec::new(),
        }
    }
}

impl VolumeError {
    /// Whether it is one because whoever asked for the volume gave up.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Store(VolumesError::Cancelled)
                | Self::Disk(DiskError::Tool {
                    source: CommandError::Cancelled { .. },
                    ..
                })
        )
    }
}

/// What else can be done.
fn without() -> String {
    "a volume that is not required is left out with a warning instead".to_owned()
}

/// A lease that wants a volume.
pub(crate) struct Wish<'a> {
    /// The volume.
    pub(crate) volume: &'a Volume,
    /// The lease, whose journal has the intent.
    pub(crate) lease: &'a LeaseId,
    /// The VMM's uid, if it has its own.
    pub(crate) uid: Option<u32>,
    /// The administrator's limits.
    pub(crate) limits: Limits,
    /// Whether whoever asked for the lease gave up. It is polled by everything that takes long.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
}

/// A moment within the taking, for tests that kill the taker there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The record names the lease, and the size that the volume is to have.
    Held,
    /// There is a copy of the image whose file system has grown.
    Grown,
    /// The record says that there is an image which was set aside; it is not yet.
    Condemned,
    /// The image is set aside.
    Aside,
    /// There is a new image.
    Made,
    /// The file system is complete; the image is still ours.
    Whole,
}

impl Moment {
    /// Its name as a point of failure.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Held => "volume-held",
            Self::Grown => "volume-grown",
            Self::Condemned => "volume-condemned",
            Self::Aside => "volume-aside",
            Self::Made => "volume-made",
            Self::Whole => "volume-whole",
        }
    }
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
    // Whoever has it may hold its lock for minutes: that is known without waiting.
    if let Ok(Some(about)) = volumes::read(&dir) {
        must_be_free(places, wish, &about, &dir)?;
    }
    let locked = Locked::take_unless(places, &dir, wish.cancelled)?;
    let known = locked.about()?;
    if let Some(about) = &known {
        must_be_free(places, wish, about, &dir)?;
    }
    if let Some(pid) = writer(&locked.join(IMAGE))? {
        return Err(VolumeError::Open { pid });
    }
    locked.tidy()?;
    let mut about = hold(places, wish, &locked, known)?;
    at(Moment::Held);
    let warning = if locked.has_image() {
        renew(places, wish, &locked, &mut about, at)?
    } else {
        None
    };
    if !locked.has_image() {
        image::make(&locked.join(MAKING), about.size_mib)?;
        locked.publish()?;
        at(Moment::Made);
    }
    at(Moment::Whole);
    if let Some(uid) = wish.uid {
        locked.hand_over(uid)?;
    }
    Ok((locked.join(IMAGE), warning))
}

/// Fails if another lease has the volume.
fn must_be_free(places: &Places, wish: &Wish<'_>, about: &About, dir: &Path) -> Result<(), VolumeError> {
    match holder(places, about, dir) {
        Some(lease) if lease != wish.lease.as_str() => Err(VolumeError::Busy { lease }),
        _ => Ok(()),
    }
}

/// Records that the lease has the volume and the size that it will have, if there is room for it.
fn hold(
    places: &Places,
    wish: &Wish<'_>,
    locked: &Locked,
    known: Option<About>,
) -> Result<About, VolumeError> {
    let now = clock::unix_seconds();
    let Volume { name, key, .. } = wish.volume;
    // Of one whose record is lost, the image alone knows the size.
    let mut about = known.unwrap_or_else(|| About::new(name, key, locked.length_mib(), now));
    about.size_mib = about.size_mib.max(wish.volume.size_mib());
    about.holder = Some(wish.lease.to_string());
    about.name.clone_from(name);
    about.used_at = now;
    if !locked.has_image() {
        about.created_at = now;
    }
    let most_mib = about.size_mib.max(locked.length_mib());
    let _room = volumes::room(places).map_err(VolumesError::from)?;
    admit(
        places,
        wish,
        locked,
        most_mib.saturating_sub(locked.allocated() >> 20),
    )?;
    locked.save(&about)?;
    Ok(about)
}

/// Admits the volume if it can grow by `growth_mib`, and so can the others that leases have, as much as they may. The lock of the room must be
/// held until the record says what was admitted.
fn admit(places: &Places, wish: &Wish<'_>, locked: &Locked, growth_mib: u64) -> Result<(), VolumeError> {
    let free_mib = files::free_bytes(&places.state)? >> 20;
    let promised_mib = promised_mib(places, locked.dir())?;
    Ok(admission::admit_volume(
        &wish.volume.name,
        growth_mib,
        free_mib.saturating_sub(promised_mib),
        &wish.limits,
    )?)
}

/// How much the volumes that leases have may still grow, in MiB, without the one in `except`.
fn promised_mib(places: &Places, except: &Path) -> Result<u64, VolumeError> {
    let promised = |listed: &Listed| -> Option<u64> {
        let about = listed.about.as_ref().ok()?;
        holder(places, about, &listed.dir)?;
        let most_mib = about.size_mib.max(listed.length.div_ceil(1 << 20));
        Some(most_mib.saturating_sub(listed.allocated >> 20))
    };
    let listed = volumes::list(places)?;
    let others = listed.iter().filter(|listed| listed.dir != except);
    Ok(others.filter_map(promised).fold(0, u64::saturating_add))
}

/// Makes the image ready for its next machine. One that is damaged is set aside; then there is none, and its user is told.
fn renew(
    places: &Places,
    wish: &Wish<'_>,
    locked: &Locked,
    about: &mut About,
    at: &dyn Fn(Moment),
) -> Result<Option<String>, VolumeError> {
    locked.reclaim()?;
    locked.lengthen(about.size_mib)?;
    let Health::Damaged { why } = refresh(places, wish, locked, about.size_mib, at)? else {
        return Ok(None);
    };
    let aside = locked.join(volumes::SET_ASIDE);
    if locked.has_set_aside() {
        return Err(VolumeError::DamagedAgain { path: aside, why });
    }
    let _room = volumes::room(places).map_err(VolumesError::from)?;
    // The new one lies beside the old one, and takes nothing over from it.
    admit(places, wish, locked, about.size_mib)?;
    let now = clock::unix_seconds();
    about.created_at = now;
    about.set_aside = Some(SetAside {
        at: now,
        why: why.clone(),
    });
    locked.save(about)?;
    at(Moment::Condemned);
    locked.set_aside()?;
    at(Moment::Aside);
    Ok(Some(format!(
        "cache volume {:?} was damaged and is set aside as {}; the lease gets an empty one ({why})",
        about.name,
        aside.display()
    )))
}

/// Mends the image, and has one with a larger file system take its place where that is smaller than `size_mib`.
fn refresh(
    places: &Places,
    wish: &Wish<'_>,
    locked: &Locked,
    size_mib: u64,
    at: &dyn Fn(Moment),
) -> Result<Health, VolumeError> {
    let path = locked.join(IMAGE);
    let health = image::mend(&path, wish.cancelled)?;
    if health != Health::Whole || !image::is_smaller(&path, size_mib)? {
        return Ok(health);
    }
    // For a moment there are two, which share nothing where the host's file system cannot have them share.
    admit(places, wish, locked, locked.allocated() >> 20)?;
    let health = image::grow(&path, &locked.join(MAKING), size_mib, wish.cancelled)?;
    at(Moment::Grown);
    if health == Health::Whole {
        locked.replace()?;
    }
    Ok(health)
}

/// Gives the volume in `dir` back, if lease `lease` has it. Its machine must have ended.
pub(crate) fn give_back(places: &Places, dir: &Path, lease: &LeaseId) -> Result<(), VolumeError> {
    if !volumes::is_dir_of_one(places, dir) {
        return Err(VolumeError::Outside { path: dir.to_owned() });
    }
    let has_it = |about: &About| about.holder.as_deref() == Some(lease.as_str());
    // Who does not have it does not wait for who does.
    let locked = match volumes::read(dir) {
        _ if !volumes::is_begun(dir) => return Ok(()),
        Ok(Some(about)) if !has_it(&about) => return Ok(()),
        Ok(None) => match Locked::try_take(places, dir)? {
            Some(locked) => locked,
            None => return Ok(()),
        },
        Ok(Some(_)) | Err(_) => Locked::take(places, dir)?,
    };
    let known = locked.about();
    if matches!(&known, Ok(Some(about)) if !has_it(about)) {
        return Ok(());
    }
    if known.is_ok() && !locked.has_image() && !locked.has_set_aside() {
        // It was never made.
        return Ok(locked.remove()?);
    }
    locked.tidy()?;
    if locked.has_image() {
        if let Some(pid) = writer(&locked.join(IMAGE))? {
            return Err(VolumeError::Open { pid });
        }
        locked.reclaim()?;
    }
    let mut about = match known {
        Ok(Some(about)) => about,
        Ok(None) => return Ok(()),
        Err(error) => {
            // Nobody can write into it that it is free. Nor need anybody: a lease that is gone has nothing.
            tracing::warn!(
                dir = %dir.display(),
                "a volume is given back without its record: {}",
                fault::chain(&error)
            );
            return Ok(());
        }
    };
    if !locked.has_set_aside() {
        about.set_aside = None;
    }
    about.holder = None;
    about.used_at = clock::unix_seconds();
    Ok(locked.save(&about)?)
}

/// Which of a guest's `drives` volumes it has not mounted, by the `stages` of its report, and why.
pub(crate) fn not_mounted(drives: usize, stages: &[(String, u64)]) -> Vec<(usize, VolumeError)> {
    let has = |wanted: &str| stages.iter().any(|(name, _)| name == wanted);
    let why = |number| {
        if !has(seed::VOLUMES) {
            return Some(VolumeError::TooOld);
        }
        has(&format!("{}{number}", seed::NOT_MOUNTED)).then_some(VolumeError::NotMounted)
    };
    (0..drives)
        .filter_map(|number| why(number).map(|why| (number, why)))
        .collect()
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
    if let Some(pid) = writer(&locked.join(IMAGE))? {
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

/// A process that has the file at `path` open for writing, whatever name it knows it by. Only root sees everybody's. Whoever only reads it, as a
/// backup does, changes nothing.
fn writer(path: &Path) -> Result<Option<u32>, VolumeError> {
    let facts = match facts_of(path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => facts,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(FileError::io("look at", path, error).into()),
    };
    let identity = |facts: &Statx| (facts.stx_dev_major, facts.stx_dev_minor, facts.stx_ino);
    let is_it = |link: &Path, pid: u32| -> bool {
        // Sockets, pipes and the like have no path, and are most of them.
        let has_path = std::fs::read_link(link).is_ok_and(|target| target.is_absolute());
        has_path
            && may_write(pid, link)
            // What is known of the file: one on a dead server, or of a file system that some process serves, would hold us.
            && facts_of(link, AtFlags::STATX_DONT_SYNC).is_ok_and(|opened| identity(&opened) == identity(&facts))
    };
    let has_it = |pid: u32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let mut entries = entries.into_iter().flatten().flatten();
        entries.any(|entry| is_it(&entry.path(), pid))
    };
    let all = process::list()?;
    Ok(all
        .into_iter()
        .map(|process| process.id.pid)
        .find(|pid| has_it(*pid)))
}

fn facts_of(path: &Path, flags: AtFlags) -> Result<Statx, Errno> {
    statx(CWD, path, flags, StatxFlags::INO)
}

/// Whether the open file behind `link` of process `pid` can be written to (`proc_pid_fdinfo(5)`).
fn may_write(pid: u32, link: &Path) -> bool {
    let name = link.file_name().unwrap_or_default();
    let Ok(text) = std::fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(name)) else {
        // It is closed again.
        return false;
    };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // The two lowest bits are 0 for reading alone; flags that cannot be read tell nothing.
    flags.is_none_or(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

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
                cancelled: &|| false,
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
    fn an_image_that_somebody_may_write_to_is_neither_attached_nor_given_back_nor_removed() {
        let world = World::new();
        let a = world.lease(A, "k");
        let (image, _) = world.take(&a, &volume(1)).unwrap();
        let dir = volumes::dir_of(&world.places, "k");
        let open = std::fs::File::options().write(true).open(&image).unwrap();
        let own = std::process::id();
        let is_told = |outcome: Result<(), VolumeError>| matches!(outcome, Err(VolumeError::Open { pid }) if pid == own);
        assert!(is_told(give_back(&world.places, &dir, &a)));
        assert!(is_told(world.take(&a, &volume(1)).map(drop)));
        std::fs::remove_dir_all(world.places.lease(&a)).unwrap();
        assert!(is_told(remove(&world.places, &dir)));
        drop(open);
        // Whoever only reads it is in nobody's way.
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
        let wish = |limits| Wish {
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

    impl World {
        /// Has the taker of the volume die at `moment`, and its lease with it.
        #[track_caller]
        fn dies(&self, lease: &LeaseId, volume: &Volume, moment: Moment, gives_back: bool) {
            let wish = Wish {
                volume,
                lease,
                uid: None,
                limits: LIMITS,
                cancelled: &|| false,
            };
            let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                take(&self.places, &wish, &|now| assert_ne!(now, moment)).map(drop)
            }));
            assert!(died.is_err(), "{moment:?} never came");
            if gives_back {
                self.give_back(lease, &volume.key);
            } else {
                std::fs::remove_dir_all(self.places.lease(lease)).unwrap();
            }
        }
    }

    /// Destroys the superblock of `image`, and puts a mark where it can be found again.
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
        // Its user has looked at the first one.
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
        // As if its holder checked it at this moment: a wait would fail only after minutes.
        let held = Locked::take(&world.places, &dir).unwrap();
        let busy = world.take(&b, &volume(1)).unwrap_err();
        assert!(matches!(busy, VolumeError::Busy { .. }), "{busy}");
        world.give_back(&b, "k");
        let asked = std::cell::Cell::new(0);
        let wish = Wish {
            volume: &volume(1),
            lease: &a,
            uid: None,
            limits: LIMITS,
            cancelled: &|| {
                asked.set(asked.get() + 1);
                asked.get() > 2
            },
        };
        let gave_up = take(&world.places, &wish, &|_| ()).unwrap_err();
        assert!(gave_up.is_cancelled(), "{gave_up}");
        drop(held);
        // And within the check.
        asked.set(1);
        let gave_up = take(&world.places, &wish, &|_| ()).unwrap_err();
        assert!(gave_up.is_cancelled(), "{gave_up}");
        // One that was never begun leaves no lock behind, and no directory that a full disk left empty.
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
            let wish = Wish {
                volume: &Volume::new(None, key, "/data", size, true).unwrap(),
                lease,
                uid: None,
                limits,
                cancelled: &|| false,
            };
            take(&world.places, &wish, &|_| ()).map(drop)
        };
        taken(&a, "k").unwrap();
        let refused = taken(&b, "k2").unwrap_err();
        assert!(matches!(refused, VolumeError::NoRoom(_)), "{refused}");
        world.give_back(&a, "k");
        taken(&b, "k2").unwrap();
    }

    #[test]
    fn a_guest_says_which_volumes_it_could_not_mount() {
        let stages = |names: &[&str]| -> Vec<(String, u64)> {
            names.iter().map(|name| ((*name).to_owned(), 1)).collect()
        };
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
}
