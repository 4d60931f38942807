//! The paths to which the user limits a pull.
//!
//! A path outside the tree is refused before the lease is asked. A path that exists on neither side must
//! never look like one where nothing changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::is_below;
use crabbox_core::config::trust::lexically_normal;
use crabbox_core::fault::{Fault, Kind};

/// The paths; if there are none, everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Only(Vec<Named>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    /// As the user spelled it.
    given: String,
    /// Relative to the root; empty for the root itself.
    path: Vec<u8>,
}

/// Why a path cannot narrow a pull.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OnlyError {
    /// It is outside the tree.
    #[error("{given:?} is not below {}", root.display())]
    Outside {
        /// The path as it was given.
        given: String,
        /// The root of the tree.
        root: PathBuf,
    },
    /// It is empty, most likely by mistake, and would mean everything.
    #[error("a path is empty; `.` is the whole repository")]
    Empty,
}

impl Fault for OnlyError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec!["paths are relative to the root of the repository".to_owned()]
    }
}

impl Only {
    /// The paths `given`, each relative to `root` or absolute, with `.` and `..` resolved as text.
    pub fn new(root: &Path, given: &[String]) -> Result<Self, OnlyError> {
        let named = |given: &String| {
            if given.is_empty() {
                return Err(OnlyError::Empty);
            }
            let path = below(root, Path::new(given)).ok_or_else(|| OnlyError::Outside {
                given: given.clone(),
                root: root.to_owned(),
            })?;
            Ok(Named {
                given: given.clone(),
                path: path.into_os_string().into_encoded_bytes(),
            })
        };
        given.iter().map(named).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `path` is one of them, or below one.
    pub(super) fn wants(&self, path: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|named| named.reaches(path))
    }

    /// The paths, as they were given, that contain none of `known` and do not exist below `root`.
    pub(super) fn unmatched<'a>(&self, root: &Path, known: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        let stands = |named: &&Named| {
            root.join(OsStr::from_bytes(&named.path))
                .symlink_metadata()
                .is_ok()
        };
        let mut missing: Vec<&Named> = self.0.iter().filter(|named| !stands(named)).collect();
        for path in known {
            missing.retain(|named| !named.reaches(path));
        }
        missing.into_iter().map(|named| named.given.clone()).collect()
    }
}

impl Named {
    fn reaches(&self, path: &[u8]) -> bool {
        self.path.is_empty() || is_below(path, &self.path)
    }
}

/// `path` relative to `root`, if it is `root` or below it.
fn below(root: &Path, path: &Path) -> Option<PathBuf> {
    let normal = lexically_normal(&root.join(path));
    if let Ok(rest) = normal.strip_prefix(root) {
        return Some(rest.to_owned());
    }
    // A shell's `$PWD` may lead to the root through a link.
    let real = root.canonicalize().ok()?;
    let is_root = |dir: &&Path| dir.canonicalize().is_ok_and(|dir| dir == real);
    let by_another_name = normal.ancestors().find(is_root)?;
    normal.strip_prefix(by_another_name).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(root: &Path, given: &[&str]) -> Result<Only, OnlyError> {
        let given: Vec<String> = given.iter().map(ToString::to_string).collect();
        Only::new(root, &given)
    }

    #[test]
    fn paths_narrow_the_choice() {
        let only = only(Path::new("/r/repo"), &["src/", "./a", "x/../b//c"]).unwrap();
        for (path, wanted) in [
            ("src/x", true),
            ("a", true),
            ("b/c/d", true),
            ("ab", false),
            ("srcs/x", false),
            ("b", false),
        ] {
            assert_eq!(only.wants(path.as_bytes()), wanted, "{path}");
        }
        assert!(Only::default().wants(b"anything"));
    }

    #[test]
    fn an_empty_path_is_refused_instead_of_being_everything() {
        assert_eq!(
            only(Path::new("/r/repo"), &["src", ""]).unwrap_err(),
            OnlyError::Empty
        );
    }

    #[test]
    fn every_spelling_of_the_root_is_everything_and_of_a_path_the_path() {
        let root = Path::new("/r/repo");
        for all in [
            ".",
            "./",
            "sub/..",
            "/r/repo",
            "/r/repo/",
            "../repo",
            "/r/./x/../repo/.",
        ] {
            let only = only(root, &[all]).unwrap();
            assert!(only.wants(b"a") && only.wants(b"sub/n"), "{all}");
        }
        for sub in [
            "sub",
            "./sub",
            "/r/repo/sub",
            "../repo/sub",
            "../../r/repo/sub/",
            "x/../sub",
        ] {
            let only = only(root, &[sub]).unwrap();
            assert!(only.wants(b"sub/n") && !only.wants(b"a"), "{sub}");
        }
    }

    #[test]
    fn what_leaves_the_repository_is_refused() {
        let root = Path::new("/r/repo");
        for outside in [
            "..",
            "../other",
            "/r",
            "/etc/passwd",
            "sub/../../x",
            "/r/repository",
            "/",
        ] {
            let refused = only(root, &["sub", outside]).unwrap_err();
            let given = |error| match error {
                OnlyError::Outside { given, .. } => given,
                OnlyError::Empty => String::new(),
            };
            assert_eq!(given(refused), outside);
        }
    }

    #[test]
    fn the_root_is_known_by_way_of_a_link_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("repo");
        std::fs::create_dir(&root).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        let only = only(&root, &[link.join("sub/new").to_str().unwrap()]).unwrap();
        assert!(only.wants(b"sub/new") && !only.wants(b"sub"));
    }

    #[test]
    fn what_is_on_neither_side_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("here")).unwrap();
        let only = only(dir.path(), &["here", "there", "there/new", ".", "nope", "ther"]).unwrap();
        let known = [&b"there/new"[..], b"other"];
        assert_eq!(only.unmatched(dir.path(), known.into_iter()), ["nope", "ther"]);
    }
}
