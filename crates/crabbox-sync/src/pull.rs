//! Compares the changes in a workdir since its last sync with the local tree, and plans what can be brought
//! back and what cannot. Files that have become equal on both sides are neither.
//!
//! The list comes from a possibly hostile machine: a path from it is only accepted if it names a file of this
//! tree, in scope and outside `.git`, and a local file is only replaced or removed if it is exactly the one
//! that was sent.

mod only;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::is_below;
use crabbox_host::beneath::Beneath;
use crabbox_host::digest::{Running, sha256};
use crabbox_host::entry_path::EntryPath;
use rustix::fs::{Mode, OFlags};

use crate::entry::{Entry, Kind, show};
use crate::filter::{Filter, Verdict};
use crate::git::{Contents, git, whole_message};
use crate::manifest::{Manifest, ManifestError, Scope, read_ignore_file};
pub use only::{Only, OnlyError};

/// The action for a local file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullAction {
    /// Replace it; it is the file that was sent.
    Replace(Entry),
    /// Add it.
    Add,
    /// Remove it; it is the file that was sent.
    Remove(Entry),
}

/// One file to bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path, relative to the root.
    pub path: Vec<u8>,
    /// What to do with the local file.
    pub act: PullAction,
    /// Whether it is executable.
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

/// What can be brought back and what cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes that can, sorted by path.
    pub changes: Vec<Change>,
    /// Paths that have changed on both sides.
    pub conflicts: Vec<Left>,
    /// Paths that are never brought back.
    pub skipped: Vec<Left>,
    /// Paths given by the user that exist on neither side.
    pub unmatched: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// There is nothing to compare with.
    #[error("the lease has no record of a sync of this tree: run a command in it first")]
    NeverSynced,
    /// The list is malformed.
    #[error("the lease sent a list of changes that crabbox cannot read: {record}")]
    Unreadable {
        /// The record that does not parse.
        record: String,
    },
    /// git could not report which files it ignores.
    #[error("git check-ignore in {} failed: {said}", root.display())]
    Rules {
        /// The repository.
        root: PathBuf,
        /// Its whole message.
        said: String,
    },
    /// The local tree could not be listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A path that is left alone, and not reported if it is equal on both sides.
#[derive(Debug)]
struct LeftAlone {
    path: Vec<u8>,
    /// Permission bits in the lease.
    mode: u32,
    left: Left,
    is_conflict: bool,
}

/// Compares the list from a lease with the local tree, as far as `only` reaches. `digests` asks the lease for
/// digests of files (`Request::Digest`).
pub fn plan<E: From<PullError>>(
    manifest: &Manifest,
    scope: &Scope,
    list: &[u8],
    only: &Only,
    digests: impl FnOnce(&[Vec<u8>]) -> Result<Vec<u8>, E>,
) -> Result<Plan, E> {
    let (mut plan, doubts) = compare(manifest, scope, list, only)?;
    if !doubts.is_empty() {
        let paths: Vec<Vec<u8>> = doubts.iter().map(|doubt| doubt.path.clone()).collect();
        let digests = digests(&paths)?;
        let mut digests = digests.split(|byte| *byte == 0);
        for doubt in doubts {
            // The lease's answer only decides whether a file that is left alone is reported.
            if is_same(&manifest.root, &doubt, digests.next().unwrap_or_default()) {
                continue;
            }
            let left = if doubt.is_conflict {
                &mut plan.conflicts
            } else {
                &mut plan.skipped
            };
            left.push(doubt.left);
        }
    }
    Ok(plan)
}

/// Whether the local file or link has the content that the lease reports, and the same executable bit.
fn is_same(root: &Path, doubt: &LeftAlone, reported: &[u8]) -> bool {
    let same = || {
        let path = EntryPath::exact(&doubt.path).ok()?;
        let tree = Beneath::open(root).ok()?;
        match reported.split_first()? {
            (b'l', digest) => {
                let (above, leaf) = path.split();
                let dir = above
                    .map_or(Ok(tree), |above| Beneath::open(root)?.dir(&above))
                    .ok()?;
                let target = rustix::fs::readlinkat(&dir, OsStr::from_bytes(leaf), Vec::new()).ok()?;
                Some(sha256(target.as_bytes()).as_bytes() == digest)
            }
            (b'f', digest) => {
                let file = tree.open_file(&path, OFlags::RDONLY, Mode::empty()).ok()?;
                let meta = file.metadata().ok()?;
                let is_like = meta.is_file() && meta.permissions().mode() & 0o100 == doubt.mode & 0o100;
                Some(is_like && content(file)?.as_bytes() == digest)
            }
            _ => None,
        }
    };
    same().unwrap_or(false)
}

fn content(mut file: File) -> Option<String> {
    let (mut hash, mut chunk) = (Running::default(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Some(hash.hex()),
            Ok(count) => hash.update(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// The plan, and the paths that need their contents compared.
fn compare(
    manifest: &Manifest,
    scope: &Scope,
    list: &[u8],
    only: &Only,
) -> Result<(Plan, Vec<LeftAlone>), PullError> {
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
    let (mut plan, mut doubts, mut seen) = (Plan::default(), Vec::new(), HashSet::new());
    for record in records {
        let (state, identity, mode, path) = parse(record)?;
        if !seen.insert(path) || !only.wants(path) {
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
        // An ambiguous rule never hides tracked files, and what was sent was in scope.
        if entry.is_none() && filter.judge(path, false) == Verdict::Drop {
            continue;
        }
        let mut doubt = |why, is_conflict| {
            doubts.push(LeftAlone {
                path: path.to_vec(),
                mode,
                left: left(why),
                is_conflict,
            });
        };
        match hold(&manifest.root, path, (state, identity), entry) {
            Held::Nothing => {}
            Held::PullAction(act) => plan.changes.push(Change {
                path: path.to_vec(),
                act,
                executable: mode & 0o100 != 0,
            }),
            Held::Conflict(why) => doubt(why, true),
            Held::Skipped(why) => doubt(why, false),
        }
    }
    plan.unmatched = only.unmatched(&manifest.root, seen.iter().chain(here.keys()).copied());
    drop_ignored(manifest, &mut plan)?;
    plan.changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok((plan, doubts))
}

/// The result of comparing one path of the list with the local tree.
enum Held {
    /// Bring it back.
    PullAction(PullAction),
    /// Nothing to do.
    Nothing,
    /// Leave it alone; not reported if both sides turn out to be equal.
    Conflict(&'static str),
    Skipped(&'static str),
}

fn hold(root: &Path, path: &[u8], (state, identity): (u8, Option<u64>), entry: Option<&Entry>) -> Held {
    let as_sent = entry
        .filter(|entry| entry.kind == Kind::File && entry.identity.is_some() && entry.identity == identity);
    let stands = root.join(OsStr::from_bytes(path)).symlink_metadata().ok();
    match (state, as_sent, entry) {
        (b'L', ..) => Held::Skipped("a link or special file"),
        (b'U', ..) => Held::Skipped("cannot be read in the lease"),
        (b'M', Some(entry), _) => Held::PullAction(PullAction::Replace(entry.clone())),
        (b'D', Some(entry), _) => Held::PullAction(PullAction::Remove(entry.clone())),
        // A directory in its place also means that the file is gone.
        (b'D', None, None) if stands.as_ref().is_none_or(std::fs::Metadata::is_dir) => Held::Nothing,
        (b'N', _, None) if !is_way_free(root, path) => {
            Held::Conflict("new in the lease, below what is no directory here")
        }
        (b'N', _, None) if stands.is_none() => Held::PullAction(PullAction::Add),
        (b'N', ..) => Held::Conflict("new in the lease, and here already"),
        (b'M', None, None) => Held::Conflict("changed in the lease, removed here"),
        (b'M', None, Some(_)) => Held::Conflict("changed on both sides"),
        _ => Held::Conflict("removed in the lease, changed here"),
    }
}

/// The state, identity, mode and path of a record.
type Record<'a> = (u8, Option<u64>, u32, &'a [u8]);

/// Whether `record` is valid.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_record(record: &[u8]) -> bool {
    parse(record).is_ok_and(|(.., path)| is_inside(path))
}

/// Parses `<state> <identity> <mode> <path>`.
fn parse(record: &[u8]) -> Result<Record<'_>, PullError> {
    let unreadable = || PullError::Unreadable { record: show(record) };
    let mut fields = record.splitn(4, |byte| *byte == b' ');
    let mut next = || fields.next().ok_or_else(unreadable);
    let (state, identity, mode, path) = (next()?, next()?, next()?, next()?);
    let text = |field| std::str::from_utf8(field).map_err(|_| unreadable());
    let identity = u64::from_str_radix(text(identity)?, 16).map_err(|_| unreadable())?;
    let mode = u32::from_str_radix(text(mode)?, 8).map_err(|_| unreadable())?;
    match state {
        [state @ (b'M' | b'N' | b'D' | b'L' | b'U')] => {
            Ok((*state, Some(identity).filter(|number| *number > 0), mode, path))
        }
        _ => Err(unreadable()),
    }
}

/// Whether it names a file of a tree outside the directories of git and crabbox.
fn is_inside(path: &[u8]) -> bool {
    let ours = |name: &[u8]| name.eq_ignore_ascii_case(b".git") || name.eq_ignore_ascii_case(b".crabbox");
    // Only in canonical form: `a/./b` would pass for another file than `a/b`.
    EntryPath::exact(path).is_ok_and(|path| !path.parts().any(ours))
}

/// Whether everything that exists on the path from the root to `path` is a directory.
fn is_way_free(root: &Path, path: &[u8]) -> bool {
    let above = Path::new(OsStr::from_bytes(path)).ancestors().skip(1);
    above
        .map(|dir| root.join(dir).symlink_metadata())
        .all(|stands| stands.map_or_else(|error| error.kind() == ErrorKind::NotFound, |meta| meta.is_dir()))
}

/// Drops new files that the local git ignores. Each repository has its own rules.
fn drop_ignored(manifest: &Manifest, plan: &mut Plan) -> Result<(), PullError> {
    let mut new: Vec<&[u8]> = plan
        .changes
        .iter()
        .filter(|change| change.act == PullAction::Add)
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
        .retain(|change| change.act != PullAction::Add || !ignored.contains(&change.path));
    Ok(())
}

/// Which of `paths`, all in the repository at `prefix`, git ignores there.
fn ask_ignored(root: &Path, prefix: &[u8], paths: &[&[u8]]) -> Result<Vec<Vec<u8>>, PullError> {
    let dir = root.join(OsStr::from_bytes(prefix));
    let names: Vec<u8> = paths
        .iter()
        .flat_map(|path| [&path[prefix.len()..], b"\0"].concat())
        .collect();
    let checked = git(&dir, Contents::Unread)
        .args(["check-ignore", "-z", "--stdin"])
        .stdin(names)
        .capture()
        .map_err(|source| ManifestError::Git {
            root: dir.clone(),
            source,
        })?;
    // Exit code 1 means that none is ignored: git-check-ignore(1).
    if !matches!(checked.status.code(), Some(0 | 1)) {
        return Err(PullError::Rules {
            root: dir,
            said: whole_message(&checked.stderr_text()),
        });
    }
    let ignored = checked
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
        // It claims that all files are equal.
        let equal = format!("f{}\0", sha256(b"other")).repeat(9);
        let plan = plan(&manifest, &Scope::default(), list, &Only::default(), |_| {
            Ok::<_, PullError>(equal.into_bytes())
        })
        .unwrap();
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

    #[test]
    fn what_is_the_same_on_both_sides_is_no_conflict() {
        use std::os::unix::fs::symlink;

        use crabbox_host::command::Cmd;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        Cmd::new("git")
            .args(["init", "-q"])
            .cwd(dir.path())
            .run()
            .unwrap();
        for name in ["both", "new", "tool", "unlike"] {
            std::fs::write(at(name), name).unwrap();
        }
        symlink("both", at("link")).unwrap();
        symlink("new", at("elsewhere")).unwrap();
        std::fs::create_dir(at("now-dir")).unwrap();
        std::fs::write(at("now-dir/file"), "new").unwrap();
        let repo = crate::repo::Repo::discover(dir.path()).unwrap();
        let manifest = Manifest::build(&repo, &Scope::default()).unwrap();
        let list =
            b"-\0M 1 644 both\0N 0 644 new\0M 1 755 tool\0M 1 644 unlike\0L 1 0 link\0L 1 0 elsewhere\0\
            D 1 0 now-dir\0N 0 644 now-dir/file\0D 1 0 never\0U 1 0 shut\0M 1 644 elsewhere/x\0";
        let digests = |paths: &[Vec<u8>]| {
            let told = paths.iter().map(|path| match path.as_slice() {
                b"link" | b"elsewhere" => format!("l{}\0", sha256(b"both")),
                b"unlike" | b"shut" | b"elsewhere/x" => "-\0".to_owned(),
                b"now-dir/file" => format!("f{}\0", sha256(b"new")),
                path => format!("f{}\0", sha256(path)),
            });
            Ok::<_, PullError>(told.collect::<String>().into_bytes())
        };
        let plan = plan(&manifest, &Scope::default(), list, &Only::default(), digests).unwrap();
        let names = |left: &[Left]| left.iter().map(|left| left.path.clone()).collect::<Vec<_>>();
        // An executable file differs from a non-executable one.
        assert_eq!(names(&plan.conflicts), ["tool", "unlike", "elsewhere/x"]);
        assert_eq!(names(&plan.skipped), ["elsewhere", "shut"]);
        assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    }
}
