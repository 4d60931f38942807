//! Asks git for its lists, in the repository itself and in each submodule that is checked out.
//!
//! A submodule's files belong to the tree, by the rules of its own repository. It must never take another
//! nested repository for a submodule, nor run git in a directory that git would treat as part of the
//! surrounding repository.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::command::{CAPTURE_LIMIT, Cmd};

use super::ManifestError;
use crate::entry::{Entry, Scan, show};
use crate::filter::{Filter, Verdict};
use crate::git::{Configuration, Contents, comparing_git, git, whole_message};
use crate::listing::{Index, Status, Tracked};
use crate::mark::{HOLLOW, Mark, SKIPPED};
use crate::{filtered, redirect, repo};

/// What git and the file system report of a repository.
pub(super) struct Tree {
    pub(super) index: Index,
    /// For each path of the index.
    pub(super) looks: Vec<Look>,
    pub(super) status: Status,
    /// The settings that decide whether a file counts as unchanged, as a configuration file.
    pub(super) settings: Vec<u8>,
    /// Whether the configuration names a file of ignore rules.
    pub(super) names_excludes: bool,
}

/// The submodules of a tree.
#[derive(Default)]
pub(super) struct Submodules {
    /// Those whose files were added, sorted.
    pub(super) present: Vec<Vec<u8>>,
    /// Those that are not checked out, sorted.
    pub(super) absent: Vec<Vec<u8>>,
    /// Flags that the index in the lease must have for some of them.
    pub(super) marks: Vec<Mark>,
}

/// Asks git in the repository at `prefix`, which is empty or ends in a slash; all returned paths are relative
/// to the root.
pub(super) fn ask(scan: &Scan, filter: &Filter, prefix: &[u8]) -> Result<Tree, ManifestError> {
    let dir = scan.root.join(OsStr::from_bytes(prefix));
    // git looks for changes while we examine the tracked files.
    let (tracked, status) = std::thread::scope(|threads| {
        let status = threads.spawn(|| ask_status(&dir));
        let tracked = ask_index(&dir).and_then(|index| {
            let index = index.below(prefix);
            let looks = look_at_tracked(scan, filter, &index)?;
            Ok((index, looks))
        });
        (tracked, status.join())
    });
    let status = status.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let (index, looks) = tracked?;
    let (status, configuration) = status?;
    Ok(Tree {
        index,
        looks,
        status: status.below(prefix),
        settings: configuration.deciding,
        names_excludes: configuration.names_excludes,
    })
}

/// Adds the files of the submodules of `tree`, recursively. Submodules that `excluded` drops are not examined
/// at all; it does not contain `sync.include`, which may name a deeper path.
pub(super) fn add(
    tree: &mut Tree,
    scan: &Scan,
    filter: &Filter,
    excluded: &Filter,
) -> Result<Submodules, ManifestError> {
    let mut found = Submodules::default();
    let mut waiting = std::mem::take(&mut tree.index.gitlinks);
    if waiting.is_empty() {
        return Ok(found);
    }
    let own: HashSet<Vec<u8>> = waiting.iter().cloned().collect();
    while let Some(path) = waiting.pop() {
        let mut mark = |flags| {
            // Nested submodules belong to the index of their own parent.
            if own.contains(&path) {
                found.marks.push(Mark {
                    path: path.clone(),
                    flags,
                });
            }
        };
        if excluded.judge(&path, true) == Verdict::Drop {
            mark(SKIPPED);
            continue;
        }
        if let Some(entry) = scan.eye().look(&path, true)? {
            // A file or link in place of the submodule, which git tracks under the same name.
            if filter.judge(&path, false) != Verdict::Drop {
                tree.index.paths.push(Tracked::in_place_of_submodule(&path));
                tree.looks.push(Look::InScope {
                    entry: Some(entry),
                    spared: None,
                });
                tree.status.changed.insert(path);
            }
            continue;
        }
        if !is_checked_out(scan, &path)? {
            if scan.is_own_dir(&path) {
                mark(HOLLOW);
            }
            found.absent.push(path);
            continue;
        }
        mark(HOLLOW);
        let mut below = ask(scan, filter, &[&path[..], b"/"].concat())?;
        waiting.append(&mut below.index.gitlinks);
        tree.index.paths.append(&mut below.index.paths);
        tree.looks.append(&mut below.looks);
        tree.status.add(below.status);
        found.present.push(path);
    }
    let looks = std::mem::take(&mut tree.looks);
    let mut both: Vec<_> = std::mem::take(&mut tree.index.paths)
        .into_iter()
        .zip(looks)
        .collect();
    both.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    (tree.index.paths, tree.looks) = both.into_iter().unzip();
    found.present.sort_unstable();
    found.absent.sort_unstable();
    Ok(found)
}

/// Whether the submodule at `path` is a repository of its own, in a directory that is not reached through a
/// link.
fn is_checked_out(scan: &Scan, path: &[u8]) -> Result<bool, ManifestError> {
    let dir = scan.root.join(OsStr::from_bytes(path));
    if !scan.is_own_dir(path) || dir.join(".git").symlink_metadata().is_err() {
        return Ok(false);
    }
    let said = match ask_git(&dir, &[&["rev-parse"], repo::PLACES].concat()) {
        Err(ManifestError::GitRefused { said, .. }) => {
            return Err(ManifestError::Submodule {
                path: show(path),
                said,
            });
        }
        other => other?,
    };
    let (git_dir, top) = match said.strip_suffix(b"\n").and_then(repo::places) {
        Some(places) => places,
        // One of the paths contains a newline, so ask for each separately.
        None => (
            only_path(&ask_git(&dir, &["rev-parse", "--absolute-git-dir"])?),
            only_path(&ask_git(&dir, &["rev-parse", "--show-toplevel"])?),
        ),
    };
    // With an invalid `.git`, git goes on to the directories above.
    if top != dir {
        return Ok(false);
    }
    match redirect::find(&dir, &top, &git_dir) {
        None => Ok(true),
        Some(redirect) => Err(ManifestError::Submodule {
            path: show(path),
            said: redirect.to_string(),
        }),
    }
}

/// The single path that git printed.
pub(super) fn only_path(printed: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(printed.strip_suffix(b"\n").unwrap_or(printed)))
}

/// The output of `git` with these arguments.
pub(crate) fn ask_git(root: &Path, args: &[&str]) -> Result<Vec<u8>, ManifestError> {
    printed(root, &git(root, Contents::Unread).args(args))
}

/// The same for arguments that compare files of the working tree with the index.
fn ask_comparing(root: &Path, args: &[&str]) -> Result<(Vec<u8>, Configuration), ManifestError> {
    let configuration = Configuration::read(root).map_err(|source| ManifestError::Configuration {
        root: root.to_owned(),
        source,
    })?;
    let filters = &configuration.filters;
    let output = printed(root, &comparing_git(root, filters).args(args))?;
    Ok((output, configuration))
}

fn printed(root: &Path, cmd: &Cmd) -> Result<Vec<u8>, ManifestError> {
    let out = cmd.capture().map_err(|source| ManifestError::Git {
        root: root.to_owned(),
        source,
    })?;
    if !out.status.success() {
        return Err(ManifestError::GitRefused {
            root: root.to_owned(),
            said: whole_message(&out.stderr_text()),
        });
    }
    if out.stdout.len() >= CAPTURE_LIMIT {
        return Err(ManifestError::TooLong {
            root: root.to_owned(),
        });
    }
    Ok(out.stdout)
}

fn unreadable(root: &Path) -> impl Fn(String) -> ManifestError {
    move |line| ManifestError::Unreadable {
        root: root.to_owned(),
        line,
    }
}

/// The differences, and the configuration that decides about them.
fn ask_status(root: &Path) -> Result<(Status, Configuration), ManifestError> {
    let (output, configuration) = ask_comparing(
        root,
        &[
            "status",
            "--porcelain=v2",
            "-z",
            "--untracked-files=all",
            "--no-renames",
            "--ignore-submodules=dirty",
        ],
    )?;
    let mut status = Status::parse(&output).map_err(unreadable(root))?;
    filtered::settle(root, &configuration.filters, &mut status.unlike);
    Ok((status, configuration))
}

fn ask_index(root: &Path) -> Result<Index, ManifestError> {
    let output = ask_git(root, &["ls-files", "-v", "--stage", "-z"])?;
    Index::parse(&output).map_err(unreadable(root))
}

/// The result of examining a tracked path.
pub(super) enum Look {
    /// It is out of scope.
    Dropped,
    /// It is in scope.
    InScope {
        /// The file or link there, if any.
        entry: Option<Entry>,
        /// The rule that would have dropped it if it were not tracked.
        spared: Option<Vec<u8>>,
    },
}

fn look_at_tracked(scan: &Scan, filter: &Filter, index: &Index) -> Result<Vec<Look>, ManifestError> {
    scan.all(
        &index.paths,
        || filter.judge_of_many(),
        |eye, judge, tracked| {
            let spared = match judge.judge(&tracked.path, tracked.is_regular()) {
                Verdict::Drop => return Ok(Look::Dropped),
                Verdict::Keep => None,
                Verdict::KeepTracked(rule) => Some(rule.to_vec()),
            };
            // Whether it has changed is reported by git.
            let entry = eye.look(&tracked.path, false)?;
            Ok(Look::InScope { entry, spared })
        },
    )
}
