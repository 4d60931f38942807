//! The volumes of this host: listing them, who uses them, and removing them on request.
//!
//! Nothing here looks into a volume, and a volume in use is never removed.

use std::path::PathBuf;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::volume::Volume;
use crabbox_machine::context::Places;
use crabbox_machine::resource::volume::{self, VolumeError};
use crabbox_store::journal;
use crabbox_store::places::LeaseDir;
use crabbox_store::volumes::{self, Listed, VolumesError};

pub use crabbox_store::volumes::{SET_ASIDE, SetAside};

/// A volume in the store.
#[derive(Debug)]
pub struct Stored {
    /// Its directory.
    pub dir: PathBuf,
    /// The name that its user gave it.
    pub name: String,
    /// Its key.
    pub key: String,
    /// Size of its file system in MiB.
    pub size_mib: u64,
    /// The disk space of its image, in bytes.
    pub allocated: u64,
    /// When its current image was made, in seconds since 1970.
    pub created_at: i64,
    /// When a lease last got it or returned it, in seconds since 1970.
    pub used_at: i64,
    /// The lease that is using it.
    pub lease: Option<String>,
    /// Why an earlier image was set aside, and the disk space of that image in bytes; `None` if there is
    /// none.
    pub set_aside: Option<(SetAside, u64)>,
}

/// A volume whose record cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Its directory, whose name can be used to remove it.
    pub dir: PathBuf,
    /// The disk space of its image, in bytes.
    pub allocated: u64,
    /// Why.
    pub error: VolumesError,
}

/// Why a volume was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such volume.
    #[error("no cache volume has the name or key {name:?}")]
    NotFound {
        /// The requested name.
        name: String,
    },
    /// Several volumes have the name.
    #[error("{count} cache volumes have the name {name:?}")]
    Ambiguous {
        /// The requested name.
        name: String,
        /// How many volumes.
        count: usize,
        /// Their keys.
        keys: Vec<String>,
    },
    /// The store cannot be listed.
    #[error(transparent)]
    Store(#[from] VolumesError),
    /// It is in use, or its files cannot be removed.
    #[error("cache volume {name:?} stays")]
    Stays {
        /// The requested name.
        name: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
}

impl Fault for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. } => Kind::Usage,
            Self::Store(error) => error.kind(),
            Self::Stays { source, .. } => source.kind(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotFound { .. } => vec!["`crabbox cache volumes` shows the volumes".to_owned()],
            Self::Ambiguous { keys, .. } => vec![format!("name one by its key: {}", keys.join(", "))],
            Self::Store(error) => error.hints(),
            Self::Stays {
                source: VolumeError::Busy { lease },
                ..
            } => vec![format!("stop the lease first: `crabbox stop {lease}`")],
            Self::Stays { source, .. } => source.hints(),
        }
    }
}

/// Whether the lease `id` of this host has the volume mounted at the requested path.
pub(crate) fn has(places: &Places, id: &str, wanted: &Volume) -> bool {
    let Ok(id) = LeaseId::parse(id) else {
        return false;
    };
    let journal = journal::read(&LeaseDir::at(places.lease(&id)).journal());
    let dir = volumes::dir_of(places, &wanted.key);
    let dir = dir.to_string_lossy();
    matches!(journal, Ok(Some(journal)) if journal.has_volume(&dir) && journal.note(&dir) == Some(wanted.path.as_str()))
}

/// All volumes by name, and those with unreadable records.
pub fn list(places: &Places) -> Result<(Vec<Stored>, Vec<Unreadable>), VolumesError> {
    let (mut stored, mut unreadable) = (Vec::new(), Vec::new());
    for Listed {
        dir,
        about,
        allocated,
        aside,
        ..
    } in volumes::list(places)?
    {
        match about {
            Ok(about) => stored.push(Stored {
                lease: volume::holder(places, &about, &dir),
                dir,
                name: about.name,
                key: about.key,
                size_mib: about.size_mib,
                allocated,
                created_at: about.created_at,
                used_at: about.used_at,
                set_aside: about.set_aside.map(|why| (why, aside)),
            }),
            Err(error) => unreadable.push(Unreadable {
                dir,
                allocated,
                error,
            }),
        }
    }
    Ok((stored, unreadable))
}

/// Removes the volume with this key, name or directory name.
pub fn remove(places: &Places, name: &str) -> Result<(), RemoveError> {
    let (stored, unreadable) = list(places)?;
    let with = |is_it: &dyn Fn(&Stored) -> bool| -> Vec<&Stored> {
        stored.iter().filter(|stored| is_it(stored)).collect()
    };
    let mut found = with(&|stored| stored.key == name);
    if found.is_empty() {
        found = with(&|stored| stored.name == name);
    }
    let is_called = |dir: &PathBuf| dir.file_name().is_some_and(|called| called == name);
    let dir = match found.as_slice() {
        [one] => Some(&one.dir),
        [] => stored
            .iter()
            .map(|stored| &stored.dir)
            .chain(unreadable.iter().map(|unreadable| &unreadable.dir))
            .find(|dir| is_called(dir)),
        several => {
            return Err(RemoveError::Ambiguous {
                name: name.to_owned(),
                count: several.len(),
                keys: several.iter().map(|stored| stored.key.clone()).collect(),
            });
        }
    };
    let dir = dir.ok_or_else(|| RemoveError::NotFound {
        name: name.to_owned(),
    })?;
    volume::remove(places, dir).map_err(|source| RemoveError::Stays {
        name: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use crabbox_store::volumes::{About, Locked, MAKING};

    use super::*;

    fn made(places: &Places, name: &str, key: &str) -> PathBuf {
        let dir = volumes::dir_of(places, key);
        let locked = Locked::take(places, &dir).unwrap();
        locked.save(&About::new(name, key, 1, 7)).unwrap();
        std::fs::write(locked.join(MAKING), "image").unwrap();
        locked.publish().unwrap();
        dir
    }

    #[test]
    fn a_volume_goes_by_its_key_or_by_a_name_that_no_other_has() {
        let home = tempfile::tempdir().unwrap();
        let places = Places::below(home.path());
        for (name, key) in [
            ("deps", "k1"),
            ("deps", "k2"),
            ("other", "deps-of-none"),
            ("k1", "k4"),
        ] {
            made(&places, name, key);
        }
        let bad = made(&places, "bad", "k5");
        std::fs::write(bad.join("about.json"), "{").unwrap();
        let keys = || -> Vec<String> {
            let (stored, _) = list(&places).unwrap();
            stored.into_iter().map(|stored| stored.key).collect()
        };
        let error = remove(&places, "deps").unwrap_err();
        assert_eq!(
            (error.kind(), error.hints()),
            (Kind::Usage, vec!["name one by its key: k1, k2".to_owned()])
        );
        assert_eq!(remove(&places, "nothing").unwrap_err().kind(), Kind::NotFound);
        // A key takes precedence over a name.
        remove(&places, "k1").unwrap();
        assert_eq!(keys(), ["k2", "k4", "deps-of-none"]);
        remove(&places, "deps").unwrap();
        remove(&places, "other").unwrap();
        assert_eq!(keys(), ["k4"]);
        assert_eq!(list(&places).unwrap().1.len(), 1);
        remove(&places, &bad.file_name().unwrap().to_string_lossy()).unwrap();
        assert!(list(&places).unwrap().1.is_empty());
    }
}
