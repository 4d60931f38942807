//! Handles files that pass through a filter and were written shortly before git's index.
//!
//! git considers a file unchanged if its times match the index, but not if the file is as young as the index
//! (in whole seconds): then it compares contents. Our git compares without the filters, so such a file
//! wrongly looks changed. The nanoseconds of the times decide. It must never call a file unchanged that git
//! with its filters would find changed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::git::{Contents, Filters, git};

/// Removes from `unlike` (paths below the root) those that are as git last saw them.
pub(crate) fn settle(root: &Path, filters: &Filters, unlike: &mut HashSet<Vec<u8>>) {
    if filters.is_empty() || unlike.is_empty() {
        return;
    }
    let Some(written) = index(root).and_then(|index| index.symlink_metadata().ok()) else {
        return;
    };
    let written = (written.mtime(), written.mtime_nsec());
    // git has already accepted older files; younger ones have changed since, or may have.
    let young = |path: &[u8]| {
        let meta = root.join(OsStr::from_bytes(path)).symlink_metadata().ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        (meta.is_file() && meta.mtime() >= written.0 && changed < written).then(|| Times {
            changed,
            modified: (meta.mtime(), meta.mtime_nsec()),
            inode: meta.ino(),
            size: meta.size(),
        })
    };
    let young: Vec<(Vec<u8>, Times)> = unlike
        .iter()
        .filter_map(|path| Some((path.clone(), young(path)?)))
        .collect();
    if young.is_empty() {
        return;
    }
    let asked = git(root, Contents::Unread)
        .args(["--literal-pathspecs", "ls-files", "--debug", "-z", "--"])
        .args(young.iter().map(|(path, _)| OsStr::from_bytes(path)))
        .capture();
    // On failure, for example with too many paths for one command, they stay in `unlike`.
    let Ok(listed) = asked else { return };
    let mut rest = listed.stdout.as_slice();
    while let Some((path, times, behind)) = record(rest) {
        if young.iter().any(|(name, now)| name == path && *now == times) {
            unlike.remove(path);
        }
        rest = behind;
    }
}

/// The index of the repository at `root`.
fn index(root: &Path) -> Option<PathBuf> {
    let git_dir = root.join(".git");
    if git_dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Some(git_dir.join("index"));
    }
    let asked = git(root, Contents::Unread)
        .args(["rev-parse", "--git-path", "index"])
        .capture()
        .ok()?;
    let path = asked.stdout.strip_suffix(b"\n")?;
    asked.status.success().then(|| root.join(OsStr::from_bytes(path)))
}

/// What an index stores of a file; numbers as it truncates them.
#[derive(Debug)]
struct Times {
    changed: (i64, i64),
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

impl PartialEq for Times {
    fn eq(&self, other: &Self) -> bool {
        // 32 bits each (gitformat-index(5)).
        let low = |number: u64| number & 0xFFFF_FFFF;
        (self.changed, self.modified) == (other.changed, other.modified)
            && low(self.inode) == low(other.inode)
            && low(self.size) == low(other.size)
    }
}

/// Parses the first record of `ls-files --debug -z`: a path, a NUL, and five lines of named numbers.
fn record(bytes: &[u8]) -> Option<(&[u8], Times, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (path, mut rest) = (&bytes[..end], &bytes[end + 1..]);
    let mut lines = Vec::new();
    for _ in 0..5 {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        lines.push(std::str::from_utf8(&rest[..end]).ok()?);
        rest = &rest[end + 1..];
    }
    let word = |line: usize, name: &str| -> Option<&str> {
        let mut words = lines[line].split_whitespace();
        words.find(|word| *word == name)?;
        words.next()
    };
    let time = |line: usize, name: &str| -> Option<(i64, i64)> {
        let (seconds, nanoseconds) = word(line, name)?.split_once(':')?;
        Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
    };
    let times = Times {
        changed: time(0, "ctime:")?,
        modified: time(1, "mtime:")?,
        inode: word(2, "ino:")?.parse().ok()?,
        size: word(4, "size:")?.parse().ok()?,
    };
    Some((path, times, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_prints_of_times_is_read_and_nothing_else() {
        let printed = b"a\nb\0  ctime: 17:5\n  mtime: 16:4\n  dev: 65024\tino: 99\n  uid: 0\tgid: 0\n  size: 2\tflags: 8000\nc\0";
        let (path, times, rest) = record(printed).unwrap();
        assert_eq!((path, rest), (&b"a\nb"[..], &b"c\0"[..]));
        let same = Times {
            changed: (17, 5),
            modified: (16, 4),
            inode: 99 + (1 << 32),
            size: 2,
        };
        assert_eq!(times, same);
        assert_ne!(
            times,
            Times {
                changed: (17, 6),
                ..same
            }
        );
        assert!(record(rest).is_none() && record(&printed[..40]).is_none());
    }
}
