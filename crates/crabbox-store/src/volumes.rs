//! Volumes on disk: images that leases mount one after the other, and a record of which lease holds each.
//!
//! ```text
//! <state>/firecracker/volumes/
//!     <digest of the key>.lock   held while the volume changes its holder
//!     <digest of the key>/       about.json, image.ext4; and set-aside.ext4, a damaged image
//! volumes.lock                   held while space is promised to a volume; like the allocation lock it is never removed
//! ```
//! The holder in a record repeats what the lease's journal says: it is written after the journal's entry, and
//! removed before it. An image is removed only at its user's request; nothing here may read its contents,
//! shorten it, or replace it by anything but a copy of it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::clock;
use crabbox_host::digest;
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::places::Places;

/// The image in a volume's directory.
pub const IMAGE: &str = "image.ext4";
/// An image that is not finished.
pub const MAKING: &str = "making.ext4";
/// A damaged image that was set aside.
pub const SET_ASIDE: &str = "set-aside.ext4";

const ABOUT: &str = "about.json";
const LOCK_SUFFIX: &str = "lock";
const VERSION: u32 = 1;
/// Digits of the digest in a name: 128 bits.
const NAME_DIGITS: usize = 32;
/// The longest record that is read, in bytes; a real one has a few hundred.
const ABOUT_LIMIT: u64 = 64 * 1024;
/// How long to wait for another process that checks or makes the volume.
const LOCK_LIMIT: Duration = Duration::from_mins(6);

/// How long to wait for other processes that promise space; each only reads some records.
const ROOM_LIMIT: Duration = Duration::from_mins(1);

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Format version, [`VERSION`].
    version: u32,
    /// Its name, as given by the last lease.
    pub name: String,
    /// Its key.
    pub key: String,
    /// Size of its file system in MiB. It is recorded before the file system is grown; a smaller file system
    /// means that growing was interrupted.
    pub size_mib: u64,
    /// When its current image was made, in seconds since 1970.
    pub created_at: i64,
    /// When a lease last took it or gave it back, in seconds since 1970.
    pub used_at: i64,
    /// The lease that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When and why an image was set aside, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<SetAside>,
}

/// A damaged image that could not be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Why.
    pub why: String,
}

impl About {
    /// The record of a new volume.
    pub fn new(name: &str, key: &str, size_mib: u64, now: i64) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            key: key.to_owned(),
            size_mib,
            created_at: now,
            used_at: now,
            holder: None,
            set_aside: None,
        }
    }
}

/// Why a volume's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process held the volume's lock for too long.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The waiting command gave up.
    #[error("the command that requested it gave up")]
    Cancelled,
    /// The record is damaged, or was written by a newer version.
    #[error("the record {} cannot be read: {why}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The image is not a regular file that only we own.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The image.
        path: PathBuf,
    },
}

impl Fault for VolumesError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lock(LockError::Busy { .. }) => Kind::Unavailable,
            Self::File(_) | Self::Lock(_) | Self::Cancelled | Self::Record { .. } | Self::NotAFile { .. } => {
                Kind::Usage
            }
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::File(error) if error.is_out_of_space() => {
                vec!["free some space on the state directory's file system".to_owned()]
            }
            Self::Record { path, .. } => {
                let name = path.parent().and_then(Path::file_name).unwrap_or_default();
                vec![format!(
                    "repair the record, or remove the volume and all data in it: `crabbox cache volumes --remove {} --force`",
                    name.to_string_lossy()
                )]
            }
            _ => Vec::new(),
        }
    }
}

/// The directory of the volume with `key`.
pub fn dir_of(places: &Places, key: &str) -> PathBuf {
    let mut name = digest::sha256(key.as_bytes());
    name.truncate(NAME_DIGITS);
    places.volumes().join(name)
}

/// Whether `dir` is the path of a volume of `places`.
pub fn is_dir_of_one(places: &Places, dir: &Path) -> bool {
    let is_name = |name: &str| {
        name.len() == NAME_DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    dir.parent() == Some(&places.volumes())
        && dir
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_name)
}

/// Whether anything of the volume in `dir` exists, even if only its lock.
pub fn is_begun(dir: &Path) -> bool {
    dir.exists() || dir.with_extension(LOCK_SUFFIX).exists()
}

/// A volume whose lock is held.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    lock: FileLock,
}

impl Locked {
    /// Takes the lock of the volume in `dir`, and makes the directories above it.
    pub fn take(places: &Places, dir: &Path) -> Result<Self, VolumesError> {
        Self::take_unless(places, dir, &|| false)
    }

    /// The same, but gives up once `cancelled` returns true.
    pub fn take_unless(
        places: &Places,
        dir: &Path,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, VolumesError> {
        make_dir(&places.volumes())?;
        let path = dir.with_extension(LOCK_SUFFIX);
        let tried = clock::poll_until(LOCK_LIMIT, || {
            if cancelled() {
                return Some(Err(VolumesError::Cancelled));
            }
            FileLock::try_acquire(&path)
                .map_err(VolumesError::from)
                .transpose()
        });
        let lock = tried.unwrap_or_else(|| {
            let limit = LOCK_LIMIT;
            Err(LockError::Busy { path, limit }.into())
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            lock,
        })
    }

    /// The same, without waiting; `None` if another process holds the lock.
    pub fn try_take(places: &Places, dir: &Path) -> Result<Option<Self>, VolumesError> {
        make_dir(&places.volumes())?;
        let lock = FileLock::try_acquire(&dir.with_extension(LOCK_SUFFIX))?;
        Ok(lock.map(|lock| Self {
            dir: dir.to_owned(),
            lock,
        }))
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of its files.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its record; `None` if there is no such volume.
    pub fn about(&self) -> Result<Option<About>, VolumesError> {
        read(&self.dir)
    }

    /// Writes the record, and makes the directory if it is missing.
    pub fn save(&self, about: &About) -> Result<(), VolumesError> {
        make_dir(&self.dir)?;
        let text = serde_json::to_vec_pretty(about).map_err(|error| self.bad_record(&error))?;
        Ok(files::write_atomic(&self.join(ABOUT), &text, 0o600)?)
    }

    fn bad_record(&self, error: &serde_json::Error) -> VolumesError {
        VolumesError::Record {
            path: self.join(ABOUT),
            why: error.to_string(),
        }
    }

    /// Whether it has an image.
    pub fn has_image(&self) -> bool {
        exists(&self.join(IMAGE))
    }

    /// Whether it has an image that was set aside.
    pub fn has_set_aside(&self) -> bool {
        exists(&self.join(SET_ASIDE))
    }

    /// Disk space of the image, in bytes; 0 without one.
    pub fn allocated(&self) -> u64 {
        allocated(&self.join(IMAGE))
    }

    /// The length of the image in MiB, rounded up; 0 without one.
    pub fn length_mib(&self) -> u64 {
        length(&self.join(IMAGE)).div_ceil(1 << 20)
    }

    /// Removes what dead processes left in its directory.
    pub fn tidy(&self) -> Result<(), VolumesError> {
        let kept = [ABOUT, IMAGE, SET_ASIDE].map(|name| self.join(name));
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(FileError::io("list", &self.dir, error).into()),
        };
        for entry in entries {
            let path = entry
                .map_err(|error| FileError::io("list", &self.dir, error))?
                .path();
            if !kept.contains(&path) {
                files::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Renames the finished image [`MAKING`] to its final name.
    pub fn publish(&self) -> Result<(), VolumesError> {
        self.rename(MAKING, IMAGE)
    }

    /// Replaces the image by [`MAKING`], a complete copy of it.
    pub fn replace(&self) -> Result<(), VolumesError> {
        let (from, to) = (self.join(MAKING), self.join(IMAGE));
        std::fs::rename(&from, &to).map_err(|error| FileError::io("rename", &from, error))?;
        Ok(files::sync_dir(&self.dir)?)
    }

    /// Sets the image aside, unless an earlier one is still set aside.
    pub fn set_aside(&self) -> Result<(), VolumesError> {
        self.rename(IMAGE, SET_ASIDE)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), VolumesError> {
        let (from, to) = (self.join(from), self.join(to));
        // Never replace an existing file: either image may be the only copy of its user's work.
        rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(|error| FileError::io("rename", &from, error))?;
        Ok(files::sync_dir(&self.dir)?)
    }

    /// Makes us the only owner of the image again, whatever its VMM did to owner and mode.
    pub fn reclaim(&self) -> Result<(), VolumesError> {
        let us = rustix::process::geteuid();
        let file = self.open_image()?;
        let fail = |source: std::io::Error| FileError::io("take back", &self.join(IMAGE), source);
        std::os::unix::fs::fchown(
            &file,
            Some(us.as_raw()),
            Some(rustix::process::getegid().as_raw()),
        )
        .map_err(fail)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(fail)?;
        Ok(())
    }

    /// Restores the length of an image that its VMM has shortened, by a hole at the end, so that the checker
    /// sees what is missing. An image is never shortened: only its superblock tells whether data would be
    /// lost.
    pub fn lengthen(&self, size_mib: u64) -> Result<(), VolumesError> {
        let file = self.open_image()?;
        let path = self.join(IMAGE);
        let length = file
            .metadata()
            .map_err(|error| FileError::io("inspect", &path, error))?
            .len();
        let bytes = size_mib.saturating_mul(1 << 20);
        if length < bytes {
            file.set_len(bytes)
                .map_err(|error| FileError::io("set the length of", &path, error))?;
        }
        Ok(())
    }

    /// Gives the image to the VMM with `uid`.
    pub fn hand_over(&self, uid: u32) -> Result<(), VolumesError> {
        let file = self.open_image()?;
        std::os::unix::fs::fchown(&file, Some(uid), Some(uid))
            .map_err(|error| FileError::io("give away", &self.join(IMAGE), error).into())
    }

    fn open_image(&self) -> Result<std::fs::File, VolumesError> {
        let path = self.join(IMAGE);
        // NONBLOCK: opening a pipe must not block.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())
            .map(std::fs::File::from)
            .map_err(|error| FileError::io("open", &path, error))?;
        let facts = file
            .metadata()
            .map_err(|error| FileError::io("inspect", &path, error))?;
        if facts.is_file() {
            Ok(file)
        } else {
            Err(VolumesError::NotAFile { path })
        }
    }

    /// Removes the volume with all that is in it, and its lock.
    pub fn remove(self) -> Result<(), VolumesError> {
        // Remove the record last: until then the volume is listed, and its removal can be repeated.
        files::remove_tree(&self.join(IMAGE))?;
        files::remove_tree(&self.join(SET_ASIDE))?;
        self.tidy()?;
        files::remove_tree(&self.dir)?;
        Ok(self.lock.remove_while_held()?)
    }
}

/// Makes the directory `dir` and syncs its name, so that files recorded in it do not disappear in a power
/// cut.
fn make_dir(dir: &Path) -> Result<(), VolumesError> {
    let is_new = !dir.exists();
    files::create_private_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|_| is_new) {
        files::sync_dir(parent)?;
    }
    Ok(())
}

/// The record of the volume in `dir`, read without its lock; `None` if there is no such volume.
pub fn read(dir: &Path) -> Result<Option<About>, VolumesError> {
    let path = dir.join(ABOUT);
    let bytes = match files::read_regular(&path, ABOUT_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("read", &path, error).into()),
    };
    let bad = |why: String| VolumesError::Record {
        path: path.clone(),
        why,
    };
    let about: About = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if about.version != VERSION {
        return Err(bad(format!("it is of version {}", about.version)));
    }
    Ok(Some(about))
}

/// Disk space in bytes: `st_blocks` counts units of 512 bytes, without holes (stat(2)).
fn allocated(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |facts| facts.blocks() * 512)
}

/// Whether the file exists. If that cannot be checked, assume that it does, so that it is not taken for lost.
fn exists(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

fn length(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |facts| facts.len())
}

/// The lock under which disk space is promised to one volume at a time. Its holder waits for no other lock.
pub fn room(places: &Places) -> Result<FileLock, LockError> {
    FileLock::acquire_within(&places.volumes_lock(), ROOM_LIMIT)
}

/// A volume as it is listed.
#[derive(Debug)]
pub struct Listed {
    /// Its directory.
    pub dir: PathBuf,
    /// Its record, or why it cannot be read.
    pub about: Result<About, VolumesError>,
    /// Disk space of its image, in bytes.
    pub allocated: u64,
    /// The length of its image in bytes.
    pub length: u64,
    /// Disk space of an image that was set aside, in bytes.
    pub aside: u64,
}

/// All volumes, by name. A volume with an unreadable record does not hide the others.
pub fn list(places: &Places) -> Result<Vec<Listed>, VolumesError> {
    let root = places.volumes();
    let entries = match std::fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::io("list", &root, error).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let dir = entry.map_err(|error| FileError::io("list", &root, error))?.path();
        if !is_dir_of_one(places, &dir) || !dir.is_dir() {
            continue;
        }
        let about = match read(&dir) {
            Ok(Some(about)) => Ok(about),
            // The volume is just being made or removed.
            Ok(None) if !dir.join(IMAGE).exists() => continue,
            Ok(None) => Err(VolumesError::Record {
                path: dir.join(ABOUT),
                why: "it is missing".to_owned(),
            }),
            Err(error) => Err(error),
        };
        found.push(Listed {
            allocated: allocated(&dir.join(IMAGE)),
            length: length(&dir.join(IMAGE)),
            aside: allocated(&dir.join(SET_ASIDE)),
            about,
            dir,
        });
    }
    let name = |listed: &Listed| {
        let about = listed.about.as_ref();
        about.map_or_else(
            |_| (String::new(), String::new()),
            |about| (about.name.clone(), about.key.clone()),
        )
    };
    found.sort_by_key(|listed| (name(listed), listed.dir.clone()));
    Ok(found)
}

/// The recorded size in MiB of the volume in `dir`; 0 if there is none.
pub fn size_mib(dir: &Path) -> u64 {
    read(dir).ok().flatten().map_or(0, |about| about.size_mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (tempfile::TempDir, Places) {
        let home = tempfile::tempdir().unwrap();
        let places = Places::below(home.path());
        (home, places)
    }

    fn locked(places: &Places, key: &str) -> Locked {
        Locked::take(places, &dir_of(places, key)).unwrap()
    }

    /// A volume with an image of one MiB.
    fn made(places: &Places, name: &str, key: &str) -> Locked {
        let volume = locked(places, key);
        volume.save(&About::new(name, key, 1, 7)).unwrap();
        std::fs::write(volume.join(MAKING), vec![1; 1 << 20]).unwrap();
        volume.publish().unwrap();
        volume
    }

    #[test]
    fn a_volume_is_found_by_its_key_and_no_key_leads_out_of_the_store() {
        let (_home, places) = world();
        for key in ["a", "../../etc", "/etc/passwd", "x/y"] {
            let dir = dir_of(&places, key);
            assert!(is_dir_of_one(&places, &dir), "{}", dir.display());
        }
        assert_ne!(dir_of(&places, "a"), dir_of(&places, "b"));
        let root = places.volumes();
        for other in [
            root.clone(),
            root.join("x"),
            root.join("..").join("0".repeat(32)),
            "/etc".into(),
        ] {
            assert!(!is_dir_of_one(&places, &other), "{}", other.display());
        }
    }

    #[test]
    fn what_is_recorded_is_listed_by_name_and_a_damaged_record_hides_no_other() {
        let (_home, places) = world();
        assert!(list(&places).unwrap().is_empty());
        drop(made(&places, "zebra", "k1"));
        let ape = made(&places, "ape", "k2");
        let mut about = ape.about().unwrap().unwrap();
        about.holder = Some("cbx_0123456789ab".into());
        ape.save(&about).unwrap();
        assert_eq!(ape.about().unwrap(), Some(about));
        let bad = made(&places, "bad", "k3");
        std::fs::write(bad.join(ABOUT), "{").unwrap();
        let listed = list(&places).unwrap();
        let names: Vec<_> = listed
            .iter()
            .map(|listed| {
                listed
                    .about
                    .as_ref()
                    .map(|about| about.name.clone())
                    .unwrap_or_default()
            })
            .collect();
        assert_eq!(names, ["", "ape", "zebra"]);
        assert!(listed[1].allocated >= 1 << 20);
        assert_eq!(listed[1].dir, dir_of(&places, "k2"));
        std::fs::write(
            bad.join(ABOUT),
            r#"{"version":2,"name":"n","key":"k","size_mib":1,"created_at":1,"used_at":1}"#,
        )
        .unwrap();
        assert!(bad.about().unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn an_image_is_taken_back_whatever_its_vmm_made_of_it() {
        let (_home, places) = world();
        let volume = made(&places, "n", "k");
        let image = volume.join(IMAGE);
        for (length, then) in [(0, 1 << 20), (5 << 20, 5 << 20)] {
            let file = std::fs::File::options().write(true).open(&image).unwrap();
            file.set_len(length).unwrap();
            file.set_permissions(std::fs::Permissions::from_mode(0o4777))
                .unwrap();
            volume.reclaim().unwrap();
            let facts = image.metadata().unwrap();
            assert_eq!((facts.len(), facts.mode() & 0o7777), (length, 0o600));
            assert_eq!(facts.uid(), rustix::process::geteuid().as_raw());
            volume.lengthen(1).unwrap();
            assert_eq!(image.metadata().unwrap().len(), then, "it is never cut");
        }
        // A link in place of the image is not followed.
        let elsewhere = volume.join("elsewhere");
        std::fs::write(&elsewhere, "mine").unwrap();
        std::fs::remove_file(&image).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &image).unwrap();
        assert!(volume.reclaim().is_err() && volume.lengthen(1).is_err());
        assert!(volume.hand_over(1).is_err());
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "mine");
    }

    #[test]
    fn no_image_takes_the_place_of_another() {
        let (_home, places) = world();
        let volume = made(&places, "n", "k");
        std::fs::write(volume.join(SET_ASIDE), "the first").unwrap();
        assert!(volume.set_aside().is_err());
        std::fs::write(volume.join(MAKING), "new").unwrap();
        assert!(volume.publish().is_err());
        assert_eq!(volume.length_mib(), 1);
        assert_eq!(
            std::fs::read_to_string(volume.join(SET_ASIDE)).unwrap(),
            "the first"
        );
    }

    #[test]
    fn who_waits_for_a_lock_can_give_up_and_a_busy_one_is_not_the_user_s_mistake() {
        let (_home, places) = world();
        let dir = dir_of(&places, "k");
        let held = locked(&places, "k");
        assert!(Locked::try_take(&places, &dir).unwrap().is_none());
        let gave_up = Locked::take_unless(&places, &dir, &|| true);
        assert!(matches!(gave_up, Err(VolumesError::Cancelled)));
        let busy = LockError::Busy {
            path: dir.clone(),
            limit: LOCK_LIMIT,
        };
        assert_eq!(VolumesError::from(busy).kind(), Kind::Unavailable);
        drop(held);
        assert!(Locked::try_take(&places, &dir).unwrap().is_some());
    }

    #[test]
    fn what_the_dead_left_goes_and_images_stay() {
        let (_home, places) = world();
        let volume = made(&places, "n", "k");
        volume.set_aside().unwrap();
        std::fs::write(volume.join(MAKING), "half").unwrap();
        std::fs::create_dir(volume.join("crabbox-root-x")).unwrap();
        volume.tidy().unwrap();
        assert!(volume.join(SET_ASIDE).exists() && volume.join(ABOUT).exists());
        assert!(!volume.join(MAKING).exists() && !volume.join("crabbox-root-x").exists());
        assert!(!volume.has_image());
        volume.remove().unwrap();
        assert_eq!(
            std::fs::read_dir(places.volumes()).unwrap().count(),
            0,
            "its lock went, too"
        );
    }
}
