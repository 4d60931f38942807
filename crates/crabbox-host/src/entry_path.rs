//! Untrusted paths: a name from a guest, an archive or a repository, as a path below one directory.
//!
//! An [`EntryPath`] has no root, no `..`, no `.`, no empty part and no NUL, so it can be joined to any
//! directory and has only one spelling. It must never be made from unchecked parts. Whether a part is a link
//! is not known here.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Maximum length of a path in bytes (`PATH_MAX`, which counts the final NUL).
const LENGTH_LIMIT: usize = 4095;

/// Maximum length of a part in bytes (`NAME_MAX`).
const PART_LIMIT: usize = 255;

/// A relative path that stays below its directory, in its only spelling.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryPath(Vec<u8>);

/// Why a text is not a path below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryPathError {
    /// It names the directory itself.
    #[error("an empty name")]
    Empty,
    /// It is absolute.
    #[error("an absolute path")]
    Absolute,
    /// It has a `..`.
    #[error("a path with a part \"..\"")]
    Parent,
    /// It has a `.`, an empty part or a slash at its end, where only one spelling is accepted.
    #[error("a path with an empty part or a part \".\"")]
    Spelling,
    /// It has a NUL byte, which ends a path for the kernel.
    #[error("a path with a NUL byte")]
    Nul,
    /// It, or a part of it, exceeds the limits of the kernel.
    #[error("a path that is too long")]
    Long,
}

impl EntryPath {
    /// Accepts `path` only in its normal form; `a//b`, `./a` and `a/` are refused. For lists in which names
    /// must be unique.
    pub fn exact(path: &[u8]) -> Result<Self, EntryPathError> {
        let normal = Self::normal(path)?;
        if normal.0 == path {
            Ok(normal)
        } else {
            Err(EntryPathError::Spelling)
        }
    }

    /// Accepts `path` and removes its `.` and empty parts, as written in archives (`./a/`).
    pub fn normal(path: &[u8]) -> Result<Self, EntryPathError> {
        if path.starts_with(b"/") {
            return Err(EntryPathError::Absolute);
        }
        if path.contains(&0) {
            return Err(EntryPathError::Nul);
        }
        let mut kept = Vec::with_capacity(path.len());
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(EntryPathError::Parent),
                _ if part.len() > PART_LIMIT => return Err(EntryPathError::Long),
                _ => {}
            }
            if !kept.is_empty() {
                kept.push(b'/');
            }
            kept.extend_from_slice(part);
        }
        if kept.is_empty() {
            return Err(EntryPathError::Empty);
        }
        if kept.len() > LENGTH_LIMIT {
            return Err(EntryPathError::Long);
        }
        Ok(Self(kept))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its parts, from the directory down; there is at least one.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The directory that contains it (`None` for the top directory) and its last part.
    pub fn split(&self) -> (Option<Self>, &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (Some(Self(self.0[..at].to_vec())), &self.0[at + 1..]),
            None => (None, &self.0),
        }
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_path(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_of_a_path_below_is_exact() {
        for (path, verdict) in [
            ("a", Ok(())),
            ("a/b.c", Ok(())),
            ("..a/b..", Ok(())),
            ("", Err(EntryPathError::Empty)),
            (".", Err(EntryPathError::Empty)),
            ("/a", Err(EntryPathError::Absolute)),
            ("..", Err(EntryPathError::Parent)),
            ("a/../b", Err(EntryPathError::Parent)),
            ("a//b", Err(EntryPathError::Spelling)),
            ("a/./b", Err(EntryPathError::Spelling)),
            ("./a", Err(EntryPathError::Spelling)),
            ("a/", Err(EntryPathError::Spelling)),
            ("a\0b", Err(EntryPathError::Nul)),
        ] {
            assert_eq!(EntryPath::exact(path.as_bytes()).map(drop), verdict, "{path:?}");
        }
        assert_eq!(EntryPath::exact(&[b'a'; 256]).unwrap_err(), EntryPathError::Long);
        assert_eq!(
            EntryPath::exact(&b"a/".repeat(2100)).unwrap_err(),
            EntryPathError::Long
        );
    }

    #[test]
    fn an_archives_spelling_becomes_the_only_one() {
        let path = EntryPath::normal(b"./a//b/./c/").unwrap();
        assert_eq!(path.as_bytes(), b"a/b/c");
        let (dir, leaf) = path.split();
        assert_eq!((dir.unwrap().as_bytes(), leaf), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(path.parts().count(), 3);
        assert!(EntryPath::normal(b"./a/../b").is_err());
    }
}
