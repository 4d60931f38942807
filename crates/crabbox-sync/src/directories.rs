//! The directories of a working tree in which a change could change its manifest.
//!
//! These are the directories of all tracked files, and untracked ones that are still empty. It must never
//! descend into ignored directories, which may be huge.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::filter::{Filter, Verdict};
use crate::manifest::{Manifest, ManifestError, Scope, ask_git};

/// The directories as absolute paths, including the root.
pub fn directories(manifest: &Manifest, scope: &Scope) -> Result<BTreeSet<PathBuf>, ManifestError> {
    let root = manifest.root.as_path();
    let filter = Filter::new(&scope.exclude, &crate::manifest::read_ignore_file(root)?, &[]);
    let mut search = Search {
        root,
        filter: &filter,
        nested: manifest.nested.iter().map(Vec::as_slice).collect(),
        last: Vec::new(),
        found: BTreeSet::from([root.to_owned()]),
    };
    for path in manifest
        .entries
        .iter()
        .map(|entry| entry.path.as_slice())
        .chain(manifest.deleted.iter().map(Vec::as_slice))
    {
        search.add_above(path, |_| true);
    }
    for prefix in manifest.prefixes() {
        let dir = root.join(OsStr::from_bytes(prefix.strip_suffix(b"/").unwrap_or_default()));
        let listed = ask_git(
            &dir,
            &[
                "ls-files",
                "--cached",
                "--others",
                "--exclude-standard",
                "--directory",
                "-z",
            ],
        )?;
        search.found.insert(dir);
        for path in listed.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
            let path = [&prefix, path].concat();
            let dir = path.strip_suffix(b"/");
            // A new file beside tracked files is in scope even if all of those are out of scope or missing.
            search.add_above(dir.unwrap_or(&path), |above| {
                filter.judge(above, false) != Verdict::Drop
            });
            if let Some(dir) = dir {
                search.walk(dir);
            }
        }
    }
    Ok(search.found)
}

struct Search<'a> {
    root: &'a Path,
    filter: &'a Filter,
    /// Repositories that are left out of the manifest.
    nested: HashSet<&'a [u8]>,
    /// The directory of the last path, because neighbouring paths usually follow each other.
    last: Vec<u8>,
    found: BTreeSet<PathBuf>,
}

impl Search<'_> {
    /// Adds the directories above `path`, below the root, that are `wanted`.
    fn add_above(&mut self, path: &[u8], wanted: impl Fn(&[u8]) -> bool) {
        let parent = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/');
        let mut dir = parent(path).map_or(&[][..], |cut| &path[..cut]);
        if dir == self.last {
            return;
        }
        self.last = dir.to_vec();
        while !dir.is_empty() {
            let full = self.root.join(OsStr::from_bytes(dir));
            // Then those above it were added too.
            if self.found.contains(&full) {
                break;
            }
            if wanted(dir) {
                self.found.insert(full);
            }
            dir = parent(dir).map_or(&[], |cut| &dir[..cut]);
        }
    }

    fn walk(&mut self, dir: &[u8]) {
        if self.filter.judge(dir, false) == Verdict::Drop || self.nested.contains(dir) {
            return;
        }
        let full = self.root.join(OsStr::from_bytes(dir));
        let Ok(inside) = full.read_dir() else { return };
        self.found.insert(full);
        for entry in inside.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.walk(&[dir, b"/", entry.file_name().as_bytes()].concat());
            }
        }
    }
}
