//! What a manifest depends on besides its own files: directories in which a file could appear, ignore rules,
//! the index.
//!
//! It must never omit anything that git would read, and never call anything unchanged if a later change could
//! look the same.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Stat};

use crate::directories::directories;
use crate::entry::Scan;
use crate::git::{Contents, git};
use crate::manifest::{IGNORE_FILE, Manifest, Scope};

/// An absolute path and its identity; zero if nothing existed there.
pub(super) type Place = (Vec<u8>, u64);

/// File systems that change a directory's times whenever an entry is added or removed; the numbers are those
/// of statfs(2).
const HONEST: [u32; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
    0x794C_7630, // overlayfs
];

/// Everything that a new file or a changed rule would touch, with its identity; `None` if any of it cannot be
/// trusted.
pub(super) fn find(
    scan: &Scan,
    manifest: &Manifest,
    scope: &Scope,
    ignore_files: &[PathBuf],
) -> Option<Vec<Place>> {
    let root = manifest.root.as_path();
    let file_system = rustix::fs::statfs(root).ok()?.f_type;
    let device = rustix::fs::stat(root).ok()?.st_dev;
    // The number has 32 bits, but on some machines its type is wider.
    if !HONEST.iter().any(|honest| i64::from(*honest) == file_system) {
        return None;
    }
    let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
    let dirs = directories(manifest, scope).ok()?;
    let nested = manifest
        .nested
        .iter()
        .chain(&manifest.absent)
        .map(|path| root.join(OsStr::from_bytes(path)));
    for dir in dirs.iter().cloned().chain(nested) {
        if let Ok(stat) = rustix::fs::lstat(&dir)
            && stat.st_dev != device
        {
            return None;
        }
        wanted.insert(dir.join(".gitignore").into_os_string().into_encoded_bytes());
        wanted.insert(dir.into_os_string().into_encoded_bytes());
    }
    let files = lines(
        root,
        &[
            "rev-parse",
            "--git-path",
            "index",
            "--git-path",
            "info/exclude",
            "--git-path",
            "info/attributes",
            "--git-path",
            "info/sparse-checkout",
        ],
    )?;
    // These settings may be absent.
    let of_config = ["core.excludesFile", "core.attributesFile"]
        .into_iter()
        .filter_map(|name| lines(root, &["config", "--type=path", "--get", name]))
        .flatten();
    let of_user = ignore_files.iter().cloned().chain([PathBuf::from(IGNORE_FILE)]);
    for path in files.into_iter().chain(of_config).chain(of_user) {
        wanted.insert(root.join(path).into_os_string().into_encoded_bytes());
    }
    wanted
        .into_iter()
        .map(|path| Some((identity(scan, &path)?, path)))
        .map(|found| found.map(|(identity, path)| (path, identity)))
        .collect()
}

/// Whether it is unchanged.
pub(super) fn is_same((path, was): &Place) -> bool {
    match rustix::fs::statat(CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stands_for(&stat) == *was,
        Err(_) => *was == 0,
    }
}

/// The output of git with these arguments, as paths; `None` if it fails.
fn lines(root: &Path, args: &[&str]) -> Option<Vec<PathBuf>> {
    let out = git(root, Contents::Unread).args(args).capture().ok()?;
    let lines = out.stdout.split(|byte| *byte == b'\n');
    out.status.success().then(|| {
        lines
            .filter(|line| !line.is_empty())
            .map(|line| PathBuf::from(OsStr::from_bytes(line)))
            .collect()
    })
}

/// The identity of a directory or a file of rules: zero if absent, `None` if it was touched too recently to
/// be trusted.
fn identity(scan: &Scan, path: &[u8]) -> Option<u64> {
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Some(0),
        Err(_) => return None,
    };
    // The target of a link could change without the link.
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink || scan.is_fresh(&stat) {
        return None;
    }
    Some(stands_for(&stat))
}

fn stands_for(stat: &Stat) -> u64 {
    let mut hash = DefaultHasher::new();
    (stat.st_dev, stat.st_ino, stat.st_mode).hash(&mut hash);
    (stat.st_mtime, stat.st_mtime_nsec).hash(&mut hash);
    (stat.st_ctime, stat.st_ctime_nsec).hash(&mut hash);
    hash.finish().max(1)
}
