//! Checks every component of the path to the `authorized_keys` file.
//!
//! Root reads and writes there by path. If another user could replace one of its components, nothing may be
//! read or written.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_host::files::FileError;
use crabbox_host::process;

use super::ServeSetupError;

/// Checks that the existing part of the path to `keys` belongs to root (or our own user) alone. We create the
/// missing part.
pub(super) fn check(keys: &Path) -> Result<(), ServeSetupError> {
    let us = process::euid();
    let mut parts: Vec<&Path> = keys.ancestors().collect();
    // From the root down: a checked component cannot change any more, since only we can change its directory.
    parts.reverse();
    let home = keys.parent().and_then(Path::parent);
    for part in parts {
        let found = match std::fs::symlink_metadata(part) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(FileError::io("inspect", part, source).into()),
        };
        let is_above = home.is_some_and(|home| home != part && home.starts_with(part));
        let why = wrong_kind(&found, part == keys).or_else(|| loose(found.uid(), found.mode(), us, is_above));
        if let Some(why) = why {
            return Err(ServeSetupError::Way {
                path: part.to_owned(),
                why,
            });
        }
    }
    Ok(())
}

fn wrong_kind(found: &Metadata, is_keys: bool) -> Option<&'static str> {
    if is_keys {
        (!found.is_file()).then_some("it is a link, or no regular file")
    } else {
        (!found.is_dir()).then_some("it is a link, or no directory")
    }
}

/// Why a user other than `us` and root could change something with this owner and mode. If it
/// `may_be_shared`, a directory like /tmp is allowed, in which others cannot replace foreign files.
pub(super) fn loose(owner: u32, mode: u32, us: u32, may_be_shared: bool) -> Option<&'static str> {
    let is_shared = may_be_shared && mode & 0o1000 != 0;
    if owner != us && owner != 0 {
        Some("it does not belong to root")
    } else if mode & 0o022 != 0 && !is_shared {
        Some("others than its owner may write there")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_what_root_alone_can_change_is_firm() {
        for (owner, mode) in [(0, 0o755), (7, 0o700), (0, 0o644)] {
            assert_eq!(loose(owner, mode, 7, false), None, "{owner} {mode:o}");
        }
        for (owner, mode) in [(998, 0o700), (0, 0o775), (7, 0o702), (0, 0o1777)] {
            assert!(loose(owner, mode, 7, false).is_some(), "{owner} {mode:o}");
        }
        assert_eq!(loose(0, 0o1777, 7, true), None);
        assert!(loose(998, 0o1777, 7, true).is_some());
    }

    #[test]
    fn a_way_that_somebody_else_can_change_is_named_at_the_first_such_part() {
        let dir = tempfile::tempdir().unwrap();
        let (home, keys) = (
            dir.path().join("home"),
            dir.path().join("home/.ssh/authorized_keys"),
        );
        check(&keys).unwrap();
        std::fs::create_dir_all(home.join(".ssh")).unwrap();
        std::fs::write(&keys, "").unwrap();
        check(&keys).unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let at = || match check(&keys) {
            Err(ServeSetupError::Way { path, .. }) => path,
            other => panic!("{other:?}"),
        };
        for (part, usual) in [(&home, 0o755), (&home.join(".ssh"), 0o755), (&keys, 0o644)] {
            for loose in [0o777, 0o1777] {
                mode(part, loose);
                assert_eq!(at(), *part, "{loose:o}");
            }
            mode(part, usual);
        }
        for (part, aside) in [(keys.clone(), "k"), (home.join(".ssh"), "s"), (home.clone(), "h")] {
            let aside = dir.path().join(aside);
            std::fs::rename(&part, &aside).unwrap();
            std::os::unix::fs::symlink(&aside, &part).unwrap();
            assert_eq!(at(), part);
            std::fs::remove_file(&part).unwrap();
            std::fs::rename(&aside, &part).unwrap();
        }
        check(&keys).unwrap();
    }
}
