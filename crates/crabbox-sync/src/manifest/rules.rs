//! The rules for files that are not in the tree, and would be missing in the lease: those of this clone
//! (`info/attributes`, `info/exclude`) and the user's own ignore rules.
//!
//! An untrusted repository could use them to bring any file into a lease. So those of the clone must be small
//! regular files below its git directory, and the repository's own configuration must never name one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::small::read_small;

use super::submodules::{ask_git, only_path};
use crate::git::EXCLUDES_FILE;

/// Longest file of rules in bytes; a hand-written one has a few KiB. A longer one is ignored.
const LIMIT: u64 = 1 << 20;

/// Rules that no file of the tree has.
#[derive(Debug, Default)]
pub(super) struct OwnRules {
    /// The attributes that only this clone has.
    pub(super) attributes: Vec<u8>,
    /// What git ignores only in this clone, or for this user.
    pub(super) excludes: Vec<u8>,
}

/// Reads those of the clone at `root`. `names_excludes` is whether git's configuration has
/// `core.excludesFile`; without it, git reads the first of `defaults`.
pub(super) fn of_clone(root: &Path, names_excludes: bool, defaults: &[PathBuf]) -> OwnRules {
    let of_user = if names_excludes {
        named_by_user(root)
    } else {
        defaults.first().cloned()
    };
    let mut own = OwnRules::default();
    if let Some(path) = of_user {
        append(&mut own.excludes, &read_of_user(root, &path));
    }
    let Some(common) = common_dir(root) else {
        return own;
    };
    let read = |name: &str| read_small(&common, Path::new(name), LIMIT).unwrap_or_default();
    // Of two rules that match a path the last one counts, and the clone's go before the user's.
    append(&mut own.excludes, &read("info/exclude"));
    own.attributes = read("info/attributes");
    own
}

/// The git directory; that of the main repository in a linked worktree.
fn common_dir(root: &Path) -> Option<PathBuf> {
    let git_dir = root.join(".git");
    if git_dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Some(git_dir);
    }
    let output = ask_git(root, &["rev-parse", "--git-common-dir"]).ok()?;
    Some(root.join(only_path(&output)))
}

/// The file that `core.excludesFile` names, if the user's or the system's configuration says so. Where the
/// repository's own does, git here reads that one alone.
fn named_by_user(root: &Path) -> Option<PathBuf> {
    // A git older than 2.26 does not know the first option, and then none is named.
    let args = [
        "config",
        "--show-scope",
        "-z",
        "--type=path",
        "--get",
        EXCLUDES_FILE,
    ];
    let output = ask_git(root, &args).ok()?;
    let mut words = output.split(|byte| *byte == 0);
    let (scope, path) = (words.next()?, words.next()?);
    let is_trusted = [&b"system"[..], b"global"].contains(&scope);
    (is_trusted && !path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// A file of the user's, which may be a link: configurations are often kept elsewhere. A relative path is
/// one in the tree (git-config(1)), where no link is followed.
fn read_of_user(root: &Path, path: &Path) -> Vec<u8> {
    if path.is_relative() {
        return read_small(root, path, LIMIT).unwrap_or_default();
    }
    let file = path.canonicalize().ok();
    let place = file
        .as_deref()
        .and_then(|file| Some((file.parent()?, file.file_name()?)));
    place
        .and_then(|(dir, name)| read_small(dir, Path::new(name), LIMIT).ok())
        .unwrap_or_default()
}

/// Adds the rules of one file to those of others.
fn append(rules: &mut Vec<u8>, file: &[u8]) {
    // git skips it at the beginning of each file.
    rules.extend_from_slice(file.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(file));
    if !rules.is_empty() && !rules.ends_with(b"\n") {
        rules.push(b'\n');
    }
}
