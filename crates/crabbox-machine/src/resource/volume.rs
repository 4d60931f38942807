//! Volumes of a lease: taken from their store before its machine starts, and given back after the machine has
//! ended.
//!
//! ```text
//! free ──> held: the record names the lease ──> made, or mended and grown ──> the VMM's uid has it ──> linked into the VMM's directory
//!   ^                                                                                                      │ the VMM has ended
//!   └───────────── the record names nobody <── owner and mode are ours again <─────────────────────────────┘
//! ```
//! A volume belongs to one machine at a time: it must never be attached while any process may write to its
//! image. Its contents come from a guest: nothing here mounts them, and nothing removes or shortens them.
//! Every change to an image is recorded before it is made.

use std::path::{Path, PathBuf};

use crabbox_core::admission::{self, Limits};
use crabbox_core::fault;
use crabbox_core::id::LeaseId;
use crabbox_core::volume::Volume;
use crabbox_guest_protocol::seed;
use crabbox_host::clock;
use crabbox_host::files;
use crabbox_host::process;
use crabbox_image::disk::volume::{self as image, Health};
use crabbox_store::journal;
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::volumes::{self, About, IMAGE, Listed, Locked, MAKING, SetAside, VolumesError};

mod error;

pub use error::VolumeError;

/// A request of a lease for a volume.
pub(crate) struct VolumeRequest<'a> {
    /// The volume.
    pub(crate) volume: &'a Volume,
    /// The lease, whose journal contains the intent.
    pub(crate) lease: &'a LeaseId,
    /// The VMM's uid, if it has its own.
    pub(crate) uid: Option<u32>,
    /// The administrator's limits.
    pub(crate) limits: Limits,
    /// Whether the requester gave up. Polled by everything that takes long.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
}

/// A moment while a volume is taken, at which tests kill the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The record names the lease, and the size that the volume will have.
    Held,
    /// There is a copy of the image with a grown file system.
    Grown,
    /// The record says that an image was set aside, but it has not been moved yet.
    Condemned,
    /// The damaged image has been set aside.
    Aside,
    /// There is a new image.
    Made,
    /// The file system is complete; the image still belongs to us.
    Whole,
}

impl Moment {
    /// Its name as a failpoint.
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

/// Takes the volume for the lease: makes it if there is none, otherwise repairs and grows it. Returns its
/// image, and a warning for the user. After any failure [`give_back`] restores a consistent state.
pub(crate) fn take(
    places: &Places,
    request: &VolumeRequest<'_>,
    at: &dyn Fn(Moment),
) -> Result<(PathBuf, Option<String>), VolumeError> {
    let dir = volumes::dir_of(places, &request.volume.key);
    // The holder may keep the lock for minutes, so check without waiting first.
    if let Ok(Some(about)) = volumes::read(&dir) {
        must_be_free(places, request, &about, &dir)?;
    }
    let locked = Locked::take_unless(places, &dir, request.cancelled)?;
    let known = locked.about()?;
    if let Some(about) = &known {
        must_be_free(places, request, about, &dir)?;
    }
    if let Some(pid) = process::writer_of(&locked.join(IMAGE))? {
        return Err(VolumeError::Open { pid });
    }
    locked.tidy()?;
    let mut about = hold(places, request, &locked, known)?;
    at(Moment::Held);
    let warning = if locked.has_image() {
        renew(places, request, &locked, &mut about, at)?
    } else {
        None
    };
    if !locked.has_image() {
        image::make(&locked.join(MAKING), about.size_mib)?;
        locked.publish()?;
        at(Moment::Made);
    }
    at(Moment::Whole);
    if let Some(uid) = request.uid {
        locked.hand_over(uid)?;
    }
    Ok((locked.join(IMAGE), warning))
}

/// Fails if another lease has the volume.
fn must_be_free(
    places: &Places,
    request: &VolumeRequest<'_>,
    about: &About,
    dir: &Path,
) -> Result<(), VolumeError> {
    match holder(places, about, dir) {
        Some(lease) if lease != request.lease.as_str() => Err(VolumeError::Busy { lease }),
        _ => Ok(()),
    }
}

/// Records that the lease has the volume and the size that it will have, if there is room for it.
fn hold(
    places: &Places,
    request: &VolumeRequest<'_>,
    locked: &Locked,
    known: Option<About>,
) -> Result<About, VolumeError> {
    let now = clock::unix_seconds();
    let Volume { name, key, .. } = request.volume;
    // If the record is lost, only the image tells the size.
    let mut about = known.unwrap_or_else(|| About::new(name, key, locked.length_mib(), now));
    about.size_mib = about.size_mib.max(request.volume.size_mib());
    about.holder = Some(request.lease.to_string());
    about.name.clone_from(name);
    about.used_at = now;
    if !locked.has_image() {
        about.created_at = now;
    }
    let allocated_mib = locked.allocated() >> 20;
    // A volume is grown by copying it. Do not record a size for which there is no room, because a volume is
    // never shrunk.
    let copy_mib = if locked.has_image() && locked.length_mib() < about.size_mib {
        allocated_mib
    } else {
        0
    };
    let _room = volumes::room(places).map_err(VolumesError::from)?;
    // The limit applies to the file system that guests write to; a compromised VMM could have changed the
    // length of the file.
    admit(
        places,
        request,
        locked,
        about.size_mib.saturating_sub(allocated_mib).max(copy_mib),
    )?;
    locked.save(&about)?;
    Ok(about)
}

/// Admits the volume if there is room for it to grow by `growth_mib`, and for all other held volumes to grow
/// to their full size. The lock of the room must be held until the record says what was admitted.
fn admit(
    places: &Places,
    request: &VolumeRequest<'_>,
    locked: &Locked,
    growth_mib: u64,
) -> Result<(), VolumeError> {
    let free_mib = files::free_bytes(&places.state)? >> 20;
    let promised_mib = promised_mib(places, locked.dir())?;
    Ok(admission::admit_volume(
        &request.volume.name,
        growth_mib,
        free_mib.saturating_sub(promised_mib),
        &request.limits,
    )?)
}

/// How much the volumes held by leases may still grow, in MiB, without the one in `except`.
fn promised_mib(places: &Places, except: &Path) -> Result<u64, VolumeError> {
    let promised = |listed: &Listed| -> Option<u64> {
        let about = listed.about.as_ref().ok()?;
        holder(places, about, &listed.dir)?;
        Some(about.size_mib.saturating_sub(listed.allocated >> 20))
    };
    let listed = volumes::list(places)?;
    let others = listed.iter().filter(|listed| listed.dir != except);
    Ok(others.filter_map(promised).fold(0, u64::saturating_add))
}

/// Prepares the image for its next machine. A damaged image is set aside and replaced by a new one, and the
/// user is warned.
fn renew(
    places: &Places,
    request: &VolumeRequest<'_>,
    locked: &Locked,
    about: &mut About,
    at: &dyn Fn(Moment),
) -> Result<Option<String>, VolumeError> {
    locked.reclaim()?;
    locked.lengthen(about.size_mib)?;
    let Health::Damaged { why } = refresh(places, request, locked, about.size_mib, at)? else {
        return Ok(None);
    };
    let aside = locked.join(volumes::SET_ASIDE);
    if locked.has_set_aside() {
        return Err(VolumeError::DamagedAgain { path: aside, why });
    }
    let _room = volumes::room(places).map_err(VolumesError::from)?;
    // The new image exists beside the old one, and shares nothing with it.
    admit(places, request, locked, about.size_mib)?;
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

/// Repairs the image, and replaces it by one with a larger file system if it is smaller than `size_mib`.
fn refresh(
    places: &Places,
    request: &VolumeRequest<'_>,
    locked: &Locked,
    size_mib: u64,
    at: &dyn Fn(Moment),
) -> Result<Health, VolumeError> {
    let path = locked.join(IMAGE);
    let health = image::mend(&path, request.cancelled)?;
    if health != Health::Whole || !image::is_smaller(&path, size_mib)? {
        return Ok(health);
    }
    // For a moment there are two images, which share no blocks if the host's file system cannot share them.
    admit(places, request, locked, locked.allocated() >> 20)?;
    let health = image::grow(&path, &locked.join(MAKING), size_mib, request.cancelled)?;
    at(Moment::Grown);
    if health == Health::Whole {
        locked.replace()?;
    }
    Ok(health)
}

/// Gives the volume in `dir` back if `lease` has it. Its machine must have ended.
pub(crate) fn give_back(places: &Places, dir: &Path, lease: &LeaseId) -> Result<(), VolumeError> {
    if !volumes::is_dir_of_one(places, dir) {
        return Err(VolumeError::Outside { path: dir.to_owned() });
    }
    let has_it = |about: &About| about.holder.as_deref() == Some(lease.as_str());
    // A lease that does not have the volume must not wait for the one that does.
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
        // The image was never made.
        return Ok(locked.remove()?);
    }
    locked.tidy()?;
    if locked.has_image() {
        if let Some(pid) = process::writer_of(&locked.join(IMAGE))? {
            return Err(VolumeError::Open { pid });
        }
        locked.reclaim()?;
    }
    let mut about = match known {
        Ok(Some(about)) => about,
        Ok(None) => return Ok(()),
        Err(error) => {
            // The record that it is free cannot be written. It need not be: once the lease is gone, it no
            // longer counts as holder.
            tracing::warn!(
                dir = %dir.display(),
                "a volume is released without its record: {}",
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

/// Which of a guest's `drives` volumes it did not mount, according to the `stages` of its report, and why.
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
    // If the record is unreadable, no holder is known; whether its image is open for writing shows if a
    // machine uses it.
    let must_be_free = |about: Result<Option<About>, VolumesError>| match about {
        Ok(Some(about)) => match holder(places, &about, dir) {
            Some(lease) => Err(VolumeError::Busy { lease }),
            None => Ok(()),
        },
        Ok(None) | Err(_) => Ok(()),
    };
    // The holder may keep the lock for minutes, so check without waiting first.
    must_be_free(volumes::read(dir))?;
    let locked = Locked::take(places, dir)?;
    must_be_free(locked.about())?;
    if let Some(pid) = process::writer_of(&locked.join(IMAGE))? {
        return Err(VolumeError::Open { pid });
    }
    Ok(locked.remove()?)
}

/// The lease that has the volume in `dir`: the one that the record names, provided that its journal agrees. A
/// lease whose journal is unreadable keeps it.
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

#[cfg(test)]
mod tests;
