//! A directory that only this user can enter and change, verified when it is opened.
//!
//! A socket or a record is only as trustworthy as the weakest directory in its path, so owner and mode of
//! each are checked. It must never accept a directory that another user (except root) could fill, rename or
//! replace.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The permission bits of the directory itself.
const MODE: u32 = 0o700;

/// Write permission for the group or for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The sticky bit: only owners may remove or rename entries of such a directory (inode(7)).
const STICKY: u32 = 0o1000;

/// An absolute path without links whose directory has mode 0700, belongs to this user, and stands below
/// directories that nobody but root and this user can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateDir(PathBuf);

/// Why a directory is not private.
#[derive(Debug, thiserror::Error)]
pub enum PrivateDirError {
    /// The path is relative, and the working directory proves nothing.
    #[error("will not use {} as a private directory: its path is not absolute", path.display())]
    Relative {
        /// The path as given.
        path: PathBuf,
    },
    /// It could not be created or inspected.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// The attempted operation, as a verb phrase that the path completes.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The path is something else: a file, or a symbolic link.
    #[error("will not use {} as a private directory: it is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory, or one above it, belongs to another user.
    #[error("will not use {} as a private directory: {} belongs to user {owner}, not to us", path.display(), culprit.display())]
    ForeignOwner {
        /// The requested directory.
        path: PathBuf,
        /// The one with the wrong owner.
        culprit: PathBuf,
        /// The numeric id of its owner.
        owner: u32,
    },
    /// Others may write into the directory, or into one above it.
    #[error(
        "will not use {} as a private directory: others can change {} (mode {mode:04o})", path.display(), culprit.display()
    )]
    OpenToOthers {
        /// The requested directory.
        path: PathBuf,
        /// The one with the wrong mode.
        culprit: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl PrivateDir {
    /// The existing directory at `path`, which must be private already.
    pub fn open(path: &Path) -> Result<Self, PrivateDirError> {
        let path = below_trusted_parents(path)?;
        judge(&path, &look(&path)?)?;
        Ok(Self(path))
    }

    /// The directory at `path`, made with mode 0700 when it is missing. Its parent must exist.
    ///
    /// If it is ours and others may only read or enter it, its permissions are restricted: others could not
    /// have changed its contents. If others could write to it, it is refused, because its contents may be
    /// theirs.
    pub fn create(path: &Path) -> Result<Self, PrivateDirError> {
        let path = below_trusted_parents(path)?;
        let io = |attempt| {
            let path = path.clone();
            move |source| PrivateDirError::Io {
                attempt,
                path,
                source,
            }
        };
        match std::fs::DirBuilder::new().mode(MODE).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io("create directory")(error));
            }
            _ => {}
        }
        let found = look(&path)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        let mode = found.mode() & 0o7777;
        if ours && mode != MODE && mode & WRITABLE_BY_OTHERS == 0 {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE))
                .map_err(io("make private directory"))?;
        }
        judge(&path, &look(&path)?)?;
        Ok(Self(path))
    }

    /// The private directory `name` in this one, created if missing.
    pub fn create_below(&self, name: &str) -> Result<Self, PrivateDirError> {
        Self::create(&self.0.join(name))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Deref for PrivateDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// Whether a private directory can be created in `dir`: it is an existing directory of this user, and others
/// can change neither it nor one above it.
pub fn can_hold_one(dir: &Path) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    below_trusted_parents(&dir.join("x")).is_ok_and(|inside| {
        let dir = inside.parent().map(look);
        dir.is_some_and(|found| found.is_ok_and(|found| found.is_dir() && found.uid() == ours))
    })
}

/// `path` with the links of its parent resolved, after every directory above it was checked.
fn below_trusted_parents(path: &Path) -> Result<PathBuf, PrivateDirError> {
    let parts = path.parent().zip(path.file_name());
    let Some((parent, name)) = parts.filter(|_| path.is_absolute()) else {
        return Err(PrivateDirError::Relative {
            path: path.to_owned(),
        });
    };
    // Resolve links first: only the real directories can be replaced by others.
    let parent = std::fs::canonicalize(parent).map_err(|source| PrivateDirError::Io {
        attempt: "inspect directory",
        path: parent.to_owned(),
        source,
    })?;
    let us = rustix::process::geteuid().as_raw();
    for above in parent.ancestors() {
        let found = look(above)?;
        if found.uid() != 0 && found.uid() != us {
            return Err(PrivateDirError::ForeignOwner {
                path: path.to_owned(),
                culprit: above.to_owned(),
                owner: found.uid(),
            });
        }
        let mode = found.mode() & 0o7777;
        if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
            return Err(PrivateDirError::OpenToOthers {
                path: path.to_owned(),
                culprit: above.to_owned(),
                mode,
            });
        }
    }
    Ok(parent.join(name))
}

/// The directory itself, without following a link.
fn look(path: &Path) -> Result<Metadata, PrivateDirError> {
    std::fs::symlink_metadata(path).map_err(|source| PrivateDirError::Io {
        attempt: "inspect directory",
        path: path.to_owned(),
        source,
    })
}

fn judge(path: &Path, found: &Metadata) -> Result<(), PrivateDirError> {
    if !found.is_dir() {
        return Err(PrivateDirError::NotADirectory {
            path: path.to_owned(),
        });
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(PrivateDirError::ForeignOwner {
            path: path.to_owned(),
            culprit: path.to_owned(),
            owner: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    if mode != MODE {
        return Err(PrivateDirError::OpenToOthers {
            path: path.to_owned(),
            culprit: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    /// Another user; the tests that need one run as root.
    const NOBODY: u32 = 65_534;

    fn mode(path: &Path, bits: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).unwrap();
    }

    fn bits(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn it_is_made_private_and_one_that_others_can_only_read_is_tightened() {
        let dir = tempfile::tempdir().unwrap();
        let made = PrivateDir::create(&dir.path().join("d")).unwrap();
        assert_eq!(bits(&made), 0o700);
        mode(&made, 0o755);
        assert!(matches!(
            PrivateDir::open(&made),
            Err(PrivateDirError::OpenToOthers { mode: 0o755, .. })
        ));
        PrivateDir::create(&made).unwrap();
        assert_eq!(bits(&made), 0o700);
        assert_eq!(bits(&made.create_below("e").unwrap()), 0o700);
    }

    #[test]
    fn one_that_others_could_fill_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::create_dir(&path).unwrap();
        for open in [0o777, 0o1777, 0o770, 0o702] {
            mode(&path, open);
            let error = PrivateDir::create(&path).unwrap_err();
            assert!(matches!(error, PrivateDirError::OpenToOthers { .. }), "{error:?}");
            assert_eq!(bits(&path), open);
        }
    }

    #[test]
    fn a_parent_that_others_can_change_makes_it_worthless_unless_it_is_sticky() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("p");
        std::fs::create_dir_all(parent.join("deep")).unwrap();
        for (open, sticky) in [(0o777, 0o1777), (0o775, 0o1775)] {
            mode(&parent, open);
            for path in [parent.join("d"), parent.join("deep/d")] {
                let error = PrivateDir::create(&path).unwrap_err();
                assert!(
                    matches!(&error, PrivateDirError::OpenToOthers { culprit, .. } if *culprit == parent),
                    "{error:?}"
                );
                assert!(!path.exists());
            }
            mode(&parent, sticky);
            PrivateDir::create(&parent.join("deep/d")).unwrap();
            std::fs::remove_dir(parent.join("deep/d")).unwrap();
        }
    }

    #[test]
    fn a_foreign_owner_of_it_or_of_a_parent_is_refused_also_by_root() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, path) = (dir.path().join("p"), dir.path().join("p/d"));
        PrivateDir::create(&parent).unwrap();
        PrivateDir::create(&path).unwrap();
        for culprit in [&path, &parent] {
            chown(culprit, Some(NOBODY), None).expect("tests run as root");
            for result in [PrivateDir::create(&path), PrivateDir::open(&path)] {
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, PrivateDirError::ForeignOwner { culprit: found, owner: NOBODY, .. } if found == culprit),
                    "{error:?}"
                );
            }
            chown(culprit, Some(rustix::process::geteuid().as_raw()), None).unwrap();
        }
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads_and_never_is_the_directory_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (open, link) = (dir.path().join("open"), dir.path().join("link"));
        std::fs::create_dir(&open).unwrap();
        mode(&open, 0o777);
        symlink(&open, &link).unwrap();
        assert!(matches!(
            PrivateDir::create(&link.join("d")),
            Err(PrivateDirError::OpenToOthers { .. })
        ));
        mode(&open, 0o700);
        assert_eq!(
            PrivateDir::create(&link.join("d")).unwrap().path(),
            std::fs::canonicalize(&open).unwrap().join("d")
        );
        for result in [PrivateDir::create(&link), PrivateDir::open(&link)] {
            assert!(matches!(result, Err(PrivateDirError::NotADirectory { .. })));
        }
    }

    #[test]
    fn a_directory_of_ours_that_others_can_only_read_can_hold_a_private_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::create_dir(&path).unwrap();
        for (bits, can) in [(0o755, true), (0o700, true), (0o775, false), (0o777, false)] {
            mode(&path, bits);
            assert_eq!(can_hold_one(&path), can, "{bits:o}");
        }
        mode(&path, 0o700);
        chown(&path, Some(NOBODY), None).expect("tests run as root");
        assert!(!can_hold_one(&path));
        assert!(!can_hold_one(&dir.path().join("missing")) && !can_hold_one(Path::new("relative")));
    }

    #[test]
    fn a_relative_path_proves_nothing() {
        for path in ["d", "", "a/d", "/"] {
            assert!(
                matches!(
                    PrivateDir::create(Path::new(path)),
                    Err(PrivateDirError::Relative { .. })
                ),
                "{path:?}"
            );
        }
    }
}
