//! Verifies that a template still matches its manifest.
//!
//! A template with any difference must not be used. This must never change a part, or report a template as
//! damaged for good when it only could not be inspected.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_host::digest;
use crabbox_host::files;
use crabbox_host::process;

use super::{
    CHECKED, FAILURES, LAYER, MANIFEST, MANIFEST_LIMIT, MEMORY, MOST_FAILURES, Manifest, Template,
    TemplateError, UNUSED_LIMIT, Unusable, VERSION, VMSTATE,
};

/// How thoroughly a template is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Only the file attributes.
    Look,
    /// The same, provided that every byte was verified since the host booted.
    OncePerBoot,
    /// Every byte.
    EveryByte,
}

pub(super) fn manifest(dir: &Path) -> Result<Manifest, Unusable> {
    let unreadable = |error: &dyn std::error::Error| Unusable::Manifest {
        why: error.to_string(),
    };
    let text =
        files::read_regular(&dir.join(MANIFEST), MANIFEST_LIMIT).map_err(|error| unreadable(&error))?;
    serde_json::from_slice(&text).map_err(|error| unreadable(&error))
}

pub(super) fn check(dir: &Path, key: &str, depth: Depth) -> Result<Template, Unusable> {
    let unreadable = |why: String| Unusable::Manifest { why };
    let manifest = manifest(dir)?;
    if manifest.version != VERSION || manifest.key != key {
        return Err(unreadable("it is another one's".to_owned()));
    }
    let failures = failures(dir);
    if failures >= MOST_FAILURES {
        return Err(Unusable::SetAside { failures });
    }
    let read_all = match depth {
        Depth::Look => false,
        Depth::EveryByte => true,
        Depth::OncePerBoot => {
            let boot = process::boot_id().map_err(TemplateError::from)?;
            !std::fs::read_to_string(dir.join(CHECKED)).is_ok_and(|checked| checked == boot)
        }
    };
    for name in [MEMORY, VMSTATE, LAYER] {
        let changed = |what| Unusable::Changed {
            name: name.to_owned(),
            what,
        };
        let part = manifest
            .parts
            .get(name)
            .ok_or_else(|| changed("nothing is said of it"))?;
        let path = dir.join(name);
        let facts = std::fs::symlink_metadata(&path).map_err(|_| changed("it is not there"))?;
        let differs = [
            (!facts.is_file(), "it is not a file"),
            (facts.len() != part.bytes, "another length"),
            (facts.ino() != part.inode, "another file"),
            (modified(&facts) != part.modified, "written to"),
            (facts.mode() & 0o7777 != 0o444, "another mode"),
            (facts.uid() != process::euid(), "another owner"),
        ];
        if let Some((_, what)) = differs.into_iter().find(|(differs, _)| *differs) {
            return Err(changed(what));
        }
        if read_all && digest::sha256_sparse(&path, &|| false)?.as_ref() != Some(&part.sha256) {
            return Err(changed("other bytes"));
        }
    }
    if read_all {
        note_checked(dir)?;
    }
    Ok(Template {
        allocated: allocated(dir),
        dir: dir.to_owned(),
        key: manifest.key,
        about: manifest.about,
    })
}

pub(super) fn note_checked(dir: &Path) -> Result<(), TemplateError> {
    let boot = process::boot_id()?;
    Ok(files::write_atomic(&dir.join(CHECKED), boot.as_bytes(), 0o600)?)
}

pub(super) fn failures(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(FAILURES)).map_or(0, |facts| facts.len())
}

pub(super) fn is_unused(dir: &Path) -> bool {
    let used = std::fs::metadata(dir.join(CHECKED)).and_then(|facts| facts.modified());
    used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED_LIMIT))
}

pub(super) fn modified(facts: &std::fs::Metadata) -> i128 {
    i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec())
}

/// Disk space of the files in `dir`, in bytes; `st_blocks` counts units of 512 bytes (`stat(2)`).
pub(super) fn allocated(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|facts| facts.blocks() * 512)
        .sum()
}
