//! What has changed in a workdir since its last sync, held against the tree here: what can be brought back, and what cannot.
//!
//! The list comes from a machine that may be hostile: a path of it is only ever taken when it names a file of this tree, in
//! scope and outside `.git`, and a file here is only given up when it is exactly the one that was sent.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::entry_path::EntryPath;

use crate::entry::{Entry, Kind, show};
use crate::filter::{Filter, Verdict};
use crate::git::{Contents, git, whole_message};
use crate::manifest::{Manifest, ManifestError, Scope, read_ignore_file};

/// What is to become of a file here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It is replaced; it is what was sent.
    Replace(Entry),
    /// It is new.
    Add,
    /// It is removed; it is what was sent.
    Remove(Entry),
}

/// One file that is brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path, relative to the root.
    pub path: Vec<u8>,
    /// What becomes of it here.
    pub act: Act,
    /// Whether it is a program.
    pub executable: bool,
}

/// A path that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The path as a message shows it.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// What can be brought and what cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What can, sorted by path.
    pub changes: Vec<Change>,
    /// What has changed on both sides.
    pub conflicts: Vec<Left>,
    /// What is never brought.
    pub skipped: Vec<Left>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Nothing to compare with.
    #[error("the lease has no record of a sync of this tree: run a command in it first")]
    NeverSynced,
    /// The list is none.
    #[error("the lease sent a list of changes that crabbox cannot read: {record}")]
    Unreadable {
        /// The record that does not parse.
        record: String,
    },
    /// git does not say what it ignores.
    #[error("git check-ignore in {} failed: {said}", root.display())]
    Rules {
        /// The repository.
        root: PathBuf,
        /// All that it said.
        said: String,
    },
    /// The tree here could not be listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Holds the list that a lease sent against the tree here. With `only`, just these paths and what is below them.
pub fn plan(manifest: &Manifest, scope: &Scope, list: &[u8], only: &[String]) -> Result<Plan, PullError> {
    let mut records = list.split(|byte| *byte == 0).filter(|record| !record.is_empty());
    if records.next() != Some(b"-") {
        return Err(PullError::NeverSynced);
    }
    let here: HashMap<&[u8], &Entry> = manifest
        .entries
        .iter()
        .map(|entry| (entry.path.as_slice(), entry))
        .collect();
    let filter = Filter::new(&scope.exclude, &read_ignore_file(&manifest.root)?, &scope.include);
    let (mut plan, mut seen) = (Plan::default(), HashSet::new());
    for record in records {
        let (state, identity, mode, path) = parse(record)?;
        if !is_wanted(path, only) || !seen.insert(path) {
            continue;
        }
        let left = |why| Left {
            path: show(path),
            why,
        };
        if !is_inside(path) {
            plan.skipped.push(left("not a file of this tree"));
            continue;
        }
        let mut apart = manifest.absent.iter().chain(&manifest.nested);
        if apart.any(|repo| is_below(path, repo)) {
            plan.skipped
                .push(left("in a repository of its own, which is not synced"));
            continue;
        }
        let entry = here.get(path).copied();
        // An ambiguous rule never hides what is tracked, and what was sent was in scope.
        if entry.is_none() && filter.judge(path, false) == Verdict::Drop {
            continue;
        }
        let as_sent = entry.filter(|entry| {
            entry.kind == Kind::File && entry.identity.is_some() && entry.identity == identity
        });
        let stands = || {
            manifest
                .root
                .join(OsStr::from_bytes(path))
                .symlink_metadata()
                .is_ok()
        };
        let act = match (state, as_sent, entry) {
            (b'L', ..) => {
                plan.skipped.push(left("a link or special file"));
                continue;
            }
            (b'M', Some(entry), _) => Ok(Act::Replace(entry.clone())),
            (b'D', Some(entry), _) => Ok(Act::Remove(entry.clone())),
            (b'D', None, None) if !stands() => continue,
            (b'N', _, None) if !is_way_free(&manifest.root, path) => {
                Err("new in the lease, below what is no directory here")
            }
            (b'N', _, None) if !stands() => Ok(Act::Add),
            (b'N', ..) => Err("new in the lease, and here already"),
            (b'M', None, None) => Err("changed in the lease, removed here"),
            (b'M', None, Some(_)) => Err("changed on both sides"),
            _ => Err("removed in the lease, changed here"),
        };
        let act = match act {
            Ok(act) => act,
            Err(why) => {
                plan.conflicts.push(left(why));
                continue;
            }
        };
        plan.changes.push(Change {
            path: path.to_vec(),
            act,
            executable: mode & 0o100 != 0,
        });
    }
    drop_ignored(manifest, &mut plan)?;
    plan.changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

/// State, identity, mode and path of a record.
type Record<'a> = (u8, Option<u64>, u32, &'a [u8]);

/// Whether `record` is one.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_record(record: &[u8]) -> bool {
    parse(record).is_ok_and(|(.., path)| is_inside(path))
}

/// `<state> <identity> <mode> <path>`.
fn parse(record: &[u8]) -> Result<Record<'_>, PullError> {
    let unreadable = || PullError::Unreadable { record: show(record) };
    let mut fields = record.splitn(4, |byte| *byte == b' ');
    let mut next = || fields.next().ok_or_else(unreadable);
    let (state, identity, mode, path) = (next()?, next()?, next()?, next()?);
    let text = |field| std::str::from_utf8(field).map_err(|_| unreadable());
    let identity = u64::from_str_radix(text(identity)?, 16).map_err(|_| unreadable())?;
    let mode = u32::from_str_radix(text(mode)?, 8).map_err(|_| unreadable())?;
    match state {
        [state @ (b'M' | b'N' | b'D' | b'L')] => {
            Ok((*state, Some(identity).filter(|one| *one > 0), mode, path))
        }
        _ => Err(unreadable()),
    }
}

/// Whether it names a file of a tree, and nothing that git or crabbox keep there.
fn is_inside(path: &[u8]) -> bool {
    let ours = |name: &[u8]| name.eq_ignore_ascii_case(b".git") || name.eq_ignore_ascii_case(b".crabbox");
    // Only in its one spelling: `a/./b` would pass for another file than the `a/b` that it is.
    EntryPath::exact(path).is_ok_and(|path| !path.parts().any(ours))
}

/// Whether all that is there on the way from the root to `path` is directories.
fn is_way_free(root: &Path, path: &[u8]) -> bool {
    let above = Path::new(OsStr::from_bytes(path)).ancestors().skip(1);
    above
        .map(|dir| root.join(dir).symlink_metadata())
        .all(|stands| stands.map_or_else(|error| error.kind() == ErrorKind::NotFound, |meta| meta.is_dir()))
}

fn is_wanted(path: &[u8], only: &[String]) -> bool {
    only.is_empty()
        || only.iter().any(|wanted| {
            let wanted = wanted.trim_start_matches("./").trim_end_matches('/').as_bytes();
            wanted.is_empty() || is_below(path, wanted)
        })
}

/// Whether `path` is `dir` or something in it.
fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// New files that git here ignores are nobody's work. Each repository has its own rules.
fn drop_ignored(manifest: &Manifest, plan: &mut Plan) -> Result<(), PullError> {
    let mut new: Vec<&[u8]> = plan
        .changes
        .iter()
        .filter(|change| change.act == Act::Add)
        .map(|change| change.path.as_slice())
        .collect();
    let mut ignored = HashSet::new();
    for prefix in manifest.prefixes() {
        let (inside, others): (Vec<_>, Vec<_>) = new.into_iter().partition(|path| path.starts_with(&prefix));
        new = others;
        if !inside.is_empty() {
            ignored.extend(ask_ignored(&manifest.root, &prefix, &inside)?);
        }
    }
    plan.changes
        .retain(|change| change.act != Act::Add || !ignored.contains(&change.path));
    Ok(())
}

/// Which of `paths`, all of the repository at `prefix`, git ignores there.
fn ask_ignored(root: &Path, prefix: &[u8], paths: &[&[u8]]) -> Result<Vec<Vec<u8>>, PullError> {
    let dir = root.join(OsStr::from_bytes(prefix));
    let names: Vec<u8> = paths
        .iter()
        .flat_map(|path| [&path[prefix.len()..], b"\0"].concat())
        .collect();
    let said = git(&dir, Contents::Unread)
        .args(["check-ignore", "-z", "--stdin"])
        .stdin(names)
        .capture()
        .map_err(|source| ManifestError::Git {
            root: dir.clone(),
            source,
        })?;
    // One says that none is ignored: git-check-ignore(1).
    if !matches!(said.status.code(), Some(0 | 1)) {
        return Err(PullError::Rules {
            root: dir,
            said: whole_message(&said.stderr_text()),
        });
    }
    let ignored = said
        .stdout
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty());
    Ok(ignored.map(|path| [prefix, path].concat()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_tree_are_taken() {
        for (path, inside) in [
            ("a", true),
            ("a/b.c", true),
            (".gitignore", true),
            ("", false),
            ("/etc/passwd", false),
            ("../x", false),
            ("a/../../x", false),
            (".git/hooks/pre-commit", false),
            ("sub/.GIT/config", false),
            (".crabbox/env/x", false),
            ("a/", false),
            ("a/./nested/x", false),
            ("a//c", false),
            ("./a", false),
            ("a\0b", false),
        ] {
            assert_eq!(is_inside(path.as_bytes()), inside, "{path:?}");
        }
    }

    #[test]
    fn paths_narrow_the_choice() {
        let only = ["src/".to_owned(), "./a".to_owned()];
        for (path, wanted) in [("src/x", true), ("a", true), ("ab", false), ("srcs/x", false)] {
            assert_eq!(is_wanted(path.as_bytes(), &only), wanted, "{path}");
        }
        assert!(is_wanted(b"anything", &[]));
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for record in ["X 1 644 a", "M x 644 a", "M 1 9 a", "M 1", "MM 1 644 a"] {
            assert!(parse(record.as_bytes()).is_err(), "{record}");
        }
        assert_eq!(parse(b"N 0 755 a b").unwrap(), (b'N', None, 0o755, &b"a b"[..]));
    }

    #[test]
    fn a_hostile_list_reaches_nothing_but_files_that_were_sent() {
        use crabbox_host::command::Cmd;
        let dir = tempfile::tempdir().unwrap();
        Cmd::new("git")
            .args(["init", "-q"])
            .cwd(dir.path())
            .run()
            .unwrap();
        std::fs::write(dir.path().join("here"), "mine").unwrap();
        std::fs::write(dir.path().join(".gitignore"), "ignored\n").unwrap();
        let repo = crate::repo::Repo::discover(dir.path()).unwrap();
        let manifest = Manifest::build(&repo, &Scope::default()).unwrap();
        let list = b"-\0N 0 755 .git/hooks/post-checkout\0M 1 755 .git/config\0N 0 644 ../out\0N 0 644 /etc/x\0D 1 0 here\0\
            M 1 644 here\0N 0 644 ignored\0N 0 644 target/x\0N 0 644 fresh\0D 1 0 never\0";
        let plan = plan(&manifest, &Scope::default(), list, &[]).unwrap();
        let names = |left: &[Left]| left.iter().map(|left| left.path.clone()).collect::<Vec<_>>();
        assert_eq!(
            names(&plan.skipped),
            [".git/hooks/post-checkout", ".git/config", "../out", "/etc/x"]
        );
        assert_eq!(
            names(&plan.conflicts),
            ["here"],
            "it is not the one that was sent"
        );
        let brought: Vec<_> = plan.changes.iter().map(|change| change.path.as_slice()).collect();
        assert_eq!(brought, [b"fresh"]);
    }
}
