//! The directories of a working tree in which a change could change its manifest.
//!
//! Those of every entry, and untracked ones that are still empty; it must never look into what is ignored, which may be huge.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::filter::{Filter, Verdict};
use crate::git::git;
use crate::manifest::{Manifest, ManifestError, Scope};

/// The directories, absolute, the root among them.
pub fn directories(manifest: &Manifest, scope: &Scope) -> Result<BTreeSet<PathBuf>, ManifestError> {
    let root = manifest.root.as_path();
    let mut found = BTreeSet::from([root.to_owned()]);
    for path in manifest
        .entries
        .iter()
        .map(|entry| &entry.path)
        .chain(&manifest.deleted)
    {
        let mut end = path.len();
        while let Some(cut) = path[..end].iter().rposition(|byte| *byte == b'/') {
            if !found.insert(root.join(OsStr::from_bytes(&path[..cut]))) {
                break;
            }
            end = cut;
        }
    }
    let filter = Filter::new(&scope.exclude, &crate::manifest::read_ignore_file(root)?, &[]);
    for prefix in manifest.prefixes() {
        let dir = root.join(OsStr::from_bytes(prefix.strip_suffix(b"/").unwrap_or_default()));
        let listed = git(&dir)
            .args(["ls-files", "--others", "--exclude-standard", "--directory", "-z"])
            .capture()
            .map_err(|source| ManifestError::Git {
                root: dir.clone(),
                source,
            })?;
        found.insert(dir);
        for path in listed.stdout.split(|byte| *byte == 0) {
            if let Some(below) = path.strip_suffix(b"/") {
                walk(root, &[&prefix, below].concat(), &filter, &mut found);
            }
        }
    }
    Ok(found)
}

fn walk(root: &Path, dir: &[u8], filter: &Filter, found: &mut BTreeSet<PathBuf>) {
    let full = root.join(OsStr::from_bytes(dir));
    // A repository of its own is left out of the manifest.
    if filter.judge(dir, false) == Verdict::Drop || full.join(".git").symlink_metadata().is_ok() {
        return;
    }
    let Ok(inside) = full.read_dir() else { return };
    found.insert(full.clone());
    for entry in inside.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let below = [dir, b"/", entry.file_name().as_bytes()].concat();
            walk(root, &below, filter, found);
        }
    }
}
