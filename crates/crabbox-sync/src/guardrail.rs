//! The limits on the files and bytes of a sync, and the messages about them.
//!
//! Pure arithmetic and texts (the Go program's, which tools parse). It must never count unchanged files against the limits if git reports which files
//! changed.

use std::collections::HashMap;

use crabbox_core::size::human_bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::manifest::{Manifest, Volume};

/// The limits of the configuration; 0 switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// `sync.warnFiles`.
    pub warn_files: u64,
    /// `sync.warnBytes`.
    pub warn_bytes: u64,
    /// `sync.failFiles`.
    pub fail_files: u64,
    /// `sync.failBytes`.
    pub fail_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            warn_files: 50_000,
            warn_bytes: 5 << 30,
            fail_files: 150_000,
            fail_bytes: 20 << 30,
        }
    }
}

/// What counts against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Only what differs from `HEAD`.
    DirtyDelta,
    /// Everything, because nothing differs.
    Candidate,
}

impl Counted {
    /// The word in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::DirtyDelta => "dirty_delta",
            Self::Candidate => "candidate",
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub enum Status {
    /// Below all limits.
    #[serde(rename = "ok")]
    Ok,
    /// At or above a warning threshold.
    #[serde(rename = "warning")]
    Warn,
    /// At or above a limit.
    #[serde(rename = "failed")]
    Fail,
}

/// Which number broke which limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reason {
    /// `warning` or `failed`.
    pub status: Status,
    /// `files` or `bytes`.
    pub metric: &'static str,
    /// The number.
    pub actual: u64,
    /// The limit.
    pub limit: u64,
}

/// The result for one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What was counted.
    pub counted: Counted,
    /// The count.
    pub volume: Volume,
    /// The limits that were applied.
    pub limits: Limits,
    /// `sync.allowLarge`, `--force-sync-large`: no limit forbids the sync; thresholds still warn.
    pub allow_large: bool,
    /// The worst of the reasons.
    pub status: Status,
    /// Every limit that was reached: those that forbid the sync before those that warn.
    pub reasons: Vec<Reason>,
}

/// The sync is too large.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GuardrailError {
    /// Too many files.
    #[error(
        "sync {scope} too large: {actual} files >= limit {limit}; use --force-sync-large or CRABBOX_SYNC_ALLOW_LARGE=1"
    )]
    Files {
        /// `dirty_delta` or `candidate`.
        scope: &'static str,
        /// How many.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// Too many bytes.
    #[error(
        "sync {scope} too large: {} >= limit {}; use --force-sync-large or CRABBOX_SYNC_ALLOW_LARGE=1",
        human_bytes(*.actual), human_bytes(*.limit)
    )]
    Bytes {
        /// `dirty_delta` or `candidate`.
        scope: &'static str,
        /// How many.
        actual: u64,
        /// The limit.
        limit: u64,
    },
}

/// Compares `manifest` with `limits`.
pub fn judge(manifest: &Manifest, limits: Limits, allow_large: bool) -> Judgement {
    let dirty = manifest.dirty();
    let (counted, volume) = if dirty.files > 0 {
        (Counted::DirtyDelta, dirty)
    } else {
        (Counted::Candidate, manifest.candidate())
    };
    let measures = [
        ("files", volume.files, limits.warn_files, limits.fail_files),
        ("bytes", volume.bytes, limits.warn_bytes, limits.fail_bytes),
    ];
    let mut reasons = Vec::new();
    for (metric, actual, warn, fail) in measures {
        let reached = |limit: u64| limit > 0 && actual >= limit;
        if reached(fail) && !allow_large {
            reasons.push(Reason {
                status: Status::Fail,
                metric,
                actual,
                limit: fail,
            });
        }
        if reached(warn) {
            reasons.push(Reason {
                status: Status::Warn,
                metric,
                actual,
                limit: warn,
            });
        }
    }
    reasons.sort_by_key(|reason: &Reason| std::cmp::Reverse(reason.status));
    let status = reasons
        .iter()
        .map(|reason| reason.status)
        .max()
        .unwrap_or(Status::Ok);
    Judgement {
        counted,
        volume,
        limits,
        allow_large,
        status,
        reasons,
    }
}

impl Judgement {
    /// The first limit that forbids the sync.
    pub fn check(&self) -> Result<(), GuardrailError> {
        let scope = self.counted.word();
        match self.reasons.iter().find(|reason| reason.status == Status::Fail) {
            None => Ok(()),
            Some(Reason {
                metric: "files",
                actual,
                limit,
                ..
            }) => Err(GuardrailError::Files {
                scope,
                actual: *actual,
                limit: *limit,
            }),
            Some(Reason { actual, limit, .. }) => Err(GuardrailError::Bytes {
                scope,
                actual: *actual,
                limit: *limit,
            }),
        }
    }

    /// The warning lines.
    pub fn warnings(&self) -> Vec<String> {
        let warned = self.reasons.iter().filter(|reason| reason.status == Status::Warn);
        warned
            .map(|reason| {
                let (actual, limit) = if reason.metric == "files" {
                    (format!("{} files", reason.actual), reason.limit.to_string())
                } else {
                    (human_bytes(reason.actual), human_bytes(reason.limit))
                };
                format!(
                    "warning: large sync {}: {actual} >= warning threshold {limit}",
                    self.counted.word()
                )
            })
            .collect()
    }
}

/// `sync candidate: 12 files, 3.4 KiB dirty_delta=1 files, 12 B`.
pub fn candidate_line(manifest: &Manifest) -> String {
    let (candidate, dirty) = (manifest.candidate(), manifest.dirty());
    let delta = if dirty.files > 0 {
        format!(" dirty_delta={} files, {}", dirty.files, human_bytes(dirty.bytes))
    } else {
        String::new()
    };
    format!(
        "sync candidate: {} files, {}{delta}",
        candidate.files,
        human_bytes(candidate.bytes)
    )
}

/// The warning about tracked files that built-in excludes would have dropped; at most five are named.
pub fn protected_line(manifest: &Manifest) -> Option<String> {
    let paths = &manifest.protected_tracked;
    let named = |(path, rule): &(Vec<u8>, Vec<u8>)| {
        format!("{} ({})", crate::entry::show(path), String::from_utf8_lossy(rule))
    };
    (!paths.is_empty()).then(|| {
        format!(
            "warning: protected {} tracked files from built-in artifact excludes: {}",
            paths.len(),
            some(paths, named)
        )
    })
}

/// Lines about directories of the tree that are not in its manifest because git treats them separately, and how to include them.
pub fn apart_lines(manifest: &Manifest) -> Vec<String> {
    let kinds = [
        (
            &manifest.absent,
            "submodules that are not checked out",
            "bring them with `git submodule update --init`",
        ),
        (
            &manifest.nested,
            "repositories inside this one",
            "make them submodules",
        ),
    ];
    let left_out = kinds.into_iter().filter(|(paths, ..)| !paths.is_empty());
    left_out
        .map(|(paths, kind, fix)| {
            let named = some(paths, |path| crate::entry::show(path));
            format!("warning: {kind} are not synced: {named}; {fix}, or leave them out with sync.exclude")
        })
        .collect()
}

/// The first five items, and how many more there are.
fn some<T>(items: &[T], named: impl Fn(&T) -> String) -> String {
    const SHOWN: usize = 5;
    let first: Vec<String> = items.iter().take(SHOWN).map(named).collect();
    let more = match items.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" (+{more} more)"),
    };
    first.join(", ") + &more
}

/// A file or directory and what it weighs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Weight {
    /// The path, invalid UTF-8 replaced.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// The same for people.
    pub human_bytes: String,
}

impl Weight {
    fn new(path: &[u8], bytes: u64) -> Self {
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            bytes,
            human_bytes: human_bytes(bytes),
        }
    }
}

/// The `limit` largest files, largest first.
pub fn top_files(manifest: &Manifest, limit: usize) -> Vec<Weight> {
    heaviest(
        manifest
            .entries
            .iter()
            .map(|entry| (entry.path.as_slice(), entry.size))
            .collect(),
        limit,
    )
}

/// The `limit` largest directories, to the second level, largest first; files in the root count as `.`.
pub fn top_dirs(manifest: &Manifest, limit: usize) -> Vec<Weight> {
    let mut sums: HashMap<&[u8], u64> = HashMap::new();
    for entry in &manifest.entries {
        let mut cuts = entry.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let cut = cuts.next().map(|first| cuts.next().unwrap_or(first).0);
        let dir = cut.map_or(&b"."[..], |cut| &entry.path[..cut]);
        *sums.entry(dir).or_default() += entry.size;
    }
    heaviest(sums.into_iter().collect(), limit)
}

fn heaviest(mut all: Vec<(&[u8], u64)>, limit: usize) -> Vec<Weight> {
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    all.into_iter()
        .take(limit)
        .map(|(path, bytes)| Weight::new(path, bytes))
        .collect()
}

/// The line about the names in the root that most of the counted files are below, shown with a warning or an
/// error: `sync top dirs: a:12,b:3`.
pub fn top_dirs_line(manifest: &Manifest, counted: Counted) -> String {
    let changed_alone = counted == Counted::DirtyDelta;
    let sent = manifest.entries.iter();
    let sent = sent
        .filter(|entry| entry.changed || !changed_alone)
        .map(|entry| &entry.path);
    let deleted = manifest.deleted.iter().filter(|_| changed_alone);
    let mut counts: HashMap<&[u8], u64> = HashMap::new();
    for path in sent.chain(deleted) {
        let name = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let dirs: Vec<String> = counts
        .iter()
        .take(5)
        .map(|(name, count)| format!("{}:{count}", crate::entry::show(name)))
        .collect();
    format!("sync top dirs: {}", dirs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Kind, Standing};

    fn manifest(sizes: &[(&str, u64, bool)]) -> Manifest {
        let entry = |&(path, size, changed): &(&str, u64, bool)| Entry {
            path: path.as_bytes().to_vec(),
            kind: Kind::File,
            mode: 0o644,
            size,
            mtime_ns: 0,
            changed,
            standing: Standing::Untracked,
            identity: None,
        };
        Manifest {
            root: "/r".into(),
            entries: sizes.iter().map(entry).collect(),
            deleted: Vec::new(),
            protected_tracked: Vec::new(),
            submodules: Vec::new(),
            absent: Vec::new(),
            nested: Vec::new(),
            staged: Vec::new(),
            marks: Vec::new(),
            settings: Vec::new(),
            attributes: Vec::new(),
            excludes: Vec::new(),
            repo: crate::repo::Repo::bare_of_facts("/r".into()),
            fingerprint: String::new(),
            since: None,
        }
    }

    fn limits(warn_files: u64, warn_bytes: u64, fail_files: u64, fail_bytes: u64) -> Limits {
        Limits {
            warn_files,
            warn_bytes,
            fail_files,
            fail_bytes,
        }
    }

    #[test]
    fn the_candidate_line_names_the_dirty_part_only_when_there_is_one() {
        assert_eq!(
            candidate_line(&manifest(&[("a", 10, false)])),
            "sync candidate: 1 files, 10 B"
        );
        assert_eq!(
            candidate_line(&manifest(&[("a", 10, false), ("b", 2048, true)])),
            "sync candidate: 2 files, 2.0 KiB dirty_delta=1 files, 2.0 KiB"
        );
    }

    #[test]
    fn only_changed_files_count_when_something_changed() {
        let many = manifest(&[("a", 10, false), ("b", 10, false), ("c", 1, true)]);
        judge(&many, limits(0, 0, 2, 0), false).check().unwrap();
        let clean = manifest(&[("a", 10, false), ("b", 10, false)]);
        assert_eq!(
            judge(&clean, limits(0, 0, 2, 0), false)
                .check()
                .unwrap_err()
                .to_string(),
            "sync candidate too large: 2 files >= limit 2; use --force-sync-large or CRABBOX_SYNC_ALLOW_LARGE=1"
        );
        assert_eq!(
            judge(&manifest(&[("c", 2048, true)]), limits(0, 0, 0, 1024), false)
                .check()
                .unwrap_err()
                .to_string(),
            "sync dirty_delta too large: 2.0 KiB >= limit 1.0 KiB; use --force-sync-large or CRABBOX_SYNC_ALLOW_LARGE=1"
        );
    }

    #[test]
    fn a_threshold_warns_and_force_lifts_the_limits_alone() {
        let judgement = judge(&manifest(&[("a", 10, false)]), limits(1, 10, 0, 0), false);
        assert_eq!(judgement.status, Status::Warn);
        assert_eq!(
            judgement.warnings(),
            [
                "warning: large sync candidate: 1 files >= warning threshold 1",
                "warning: large sync candidate: 10 B >= warning threshold 10 B"
            ]
        );
        let forced = judge(&manifest(&[("a", 10, false)]), limits(0, 0, 1, 0), true);
        forced.check().unwrap();
        assert_eq!((forced.status, forced.reasons.as_slice()), (Status::Ok, &[][..]));
        let both = judge(&manifest(&[("a", 10, false)]), limits(1, 0, 1, 1), true);
        assert_eq!(
            both.warnings(),
            ["warning: large sync candidate: 1 files >= warning threshold 1"]
        );
    }

    #[test]
    fn the_heaviest_come_first_and_the_root_counts_as_a_directory() {
        let tree = manifest(&[
            ("a/x", 5, false),
            ("a/y", 5, false),
            ("b/z", 7, false),
            ("top", 1, false),
        ]);
        assert_eq!(
            top_files(&tree, 2)
                .iter()
                .map(|weight| weight.path.as_str())
                .collect::<Vec<_>>(),
            ["b/z", "a/x"]
        );
        let dirs = |tree: &Manifest| -> Vec<(String, u64)> {
            let dirs = top_dirs(tree, 20).into_iter();
            dirs.map(|dir| (dir.path, dir.bytes)).collect()
        };
        let weighs = |dir: &str, bytes| (dir.to_owned(), bytes);
        assert_eq!(dirs(&tree), [weighs("a", 10), weighs("b", 7), weighs(".", 1)]);
        let deep = manifest(&[("a/b/c/d", 5, false), ("a/b/x", 1, false), ("a/y", 2, false)]);
        assert_eq!(dirs(&deep), [weighs("a/b", 6), weighs("a", 2)]);
    }

    #[test]
    fn the_counted_files_are_summed_up_by_what_they_are_below() {
        let mut tree = manifest(&[
            ("a/b/x", 5, false),
            ("a/y", 5, true),
            ("b/z", 7, false),
            ("top", 1, true),
        ]);
        tree.deleted = vec![b"gone/1".to_vec(), b"gone/2".to_vec()];
        assert_eq!(
            top_dirs_line(&tree, Counted::Candidate),
            "sync top dirs: a:2,b:1,top:1"
        );
        assert_eq!(
            top_dirs_line(&tree, Counted::DirtyDelta),
            "sync top dirs: gone:2,a:1,top:1"
        );
    }

    #[test]
    fn protected_files_are_named_up_to_five() {
        let mut tree = manifest(&[]);
        assert_eq!(protected_line(&tree), None);
        tree.protected_tracked = (0..7)
            .map(|n| (format!("dist/{n}").into_bytes(), b"dist".to_vec()))
            .collect();
        assert_eq!(
            protected_line(&tree).unwrap(),
            "warning: protected 7 tracked files from built-in artifact excludes: dist/0 (dist), dist/1 (dist), \
             dist/2 (dist), dist/3 (dist), dist/4 (dist) (+2 more)"
        );
    }
}
