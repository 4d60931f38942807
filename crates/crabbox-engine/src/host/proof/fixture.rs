//! The working tree that a proof syncs: a repository with a commit and uncommitted changes.
//!
//! It is a temporary directory, removed on drop and locked until then. A directory whose lock is free was
//! left by a killed proof, and the next proof removes it. It must never touch a repository of the user's.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::proof::DIRTY_TREE;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::files::{self, FileError};
use crabbox_host::lock::{FileLock, LockError};

/// The time limit of each `git` command.
const LIMIT: Duration = Duration::from_mins(1);

/// Why the tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// Its directory could not be made.
    #[error("cannot create a directory for it")]
    Dir(#[source] std::io::Error),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It could not be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A git command failed.
    #[error(transparent)]
    Git(#[from] CommandError),
}

impl FixtureError {
    /// What the user can do about it.
    pub(super) fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Dir(_) | Self::File(_) | Self::Lock(_) => "set TMPDIR to a directory that can be written",
            Self::Git(_) => "a proof syncs a git working tree, as `crabbox run` does: install git",
        };
        vec![hint.to_owned()]
    }
}

/// The prefix of the directory's name.
const PREFIX: &str = "crabbox-proof-";

/// The name of its lock file.
const LOCK: &str = "lock";

/// The tree.
#[derive(Debug)]
pub(super) struct Fixture {
    dir: tempfile::TempDir,
    _lock: FileLock,
}

impl Fixture {
    pub(super) fn make() -> Result<Self, FixtureError> {
        sweep(&std::env::temp_dir());
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .map_err(FixtureError::Dir)?;
        let lock = FileLock::acquire(&dir.path().join(LOCK))?;
        let made = Self { dir, _lock: lock };
        let tree = made.tree();
        for dir in [&tree, &made.runtime()] {
            files::create_private_dir(dir)?;
        }
        let write = |name: &str, text: &str| {
            files::write_atomic(&tree.join(name), format!("{text}\n").as_bytes(), 0o644)
        };
        write("greeting", "hello from the last commit")?;
        write("removed", "here")?;
        made.git(&["init", "--quiet"])?;
        made.git(&["add", "--all"])?;
        made.git(&["commit", "--quiet", "--no-verify", "--message", "one"])?;
        write("greeting", DIRTY_TREE[0])?;
        write("untracked", DIRTY_TREE[1])?;
        let removed = tree.join("removed");
        std::fs::remove_file(&removed).map_err(|source| FileError::io("remove", &removed, source))?;
        Ok(made)
    }

    /// The whole directory.
    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The repository.
    pub(super) fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// The directory for sockets of connections.
    pub(super) fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Whether two files of the tree have equal content.
    pub(super) fn same(&self, one: &str, other: &str) -> bool {
        let read = |name: &str| std::fs::read(self.tree().join(name)).ok();
        read(one).is_some() && read(one) == read(other)
    }

    fn git(&self, words: &[&str]) -> Result<(), CommandError> {
        // The user's own git settings must have no effect: no hooks, no signatures.
        let set = [
            "user.name=crabbox",
            "user.email=proof@crabbox.invalid",
            "commit.gpgsign=false",
            "core.autocrlf=false",
        ];
        Cmd::new("git")
            .args(set.iter().flat_map(|set| ["-c", set]))
            .args(words)
            .cwd(self.tree())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .limit(LIMIT)
            .run()
            .map(drop)
    }
}

/// Removes leftovers of this user's killed proofs from `temporary`: directories with our prefix whose lock is
/// free. Those that cannot be inspected or removed stay; they do no harm.
fn sweep(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else {
        return;
    };
    let user = rustix::process::geteuid().as_raw();
    for entry in entries.filter_map(Result::ok) {
        let is_of_a_proof = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_ours = entry
            .metadata()
            .is_ok_and(|facts| facts.is_dir() && facts.uid() == user);
        let lock = entry.path().join(LOCK);
        if is_of_a_proof
            && is_ours
            && lock.is_file()
            && let Ok(Some(_held)) = FileLock::try_acquire(&lock)
        {
            files::remove_tree(&entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_proof_has_left_goes_and_nothing_that_is_in_use_or_another_s() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, has_lock: bool| {
            let made = dir.path().join(name);
            std::fs::create_dir_all(made.join("tree")).unwrap();
            if has_lock {
                std::fs::write(made.join(LOCK), "").unwrap();
            }
            made
        };
        let (left, used) = (
            make("crabbox-proof-left00", true),
            make("crabbox-proof-used00", true),
        );
        let (unlocked, other) = (make("crabbox-proof-none00", false), make("my-proof", true));
        std::os::unix::fs::symlink(&other, dir.path().join("crabbox-proof-link00")).unwrap();
        let theirs = make("crabbox-proof-theirs", true);
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        let _held = FileLock::acquire(&used.join(LOCK)).unwrap();
        sweep(dir.path());
        assert!(!left.exists());
        for stays in [&used, &unlocked, &other, &theirs] {
            assert!(stays.join("tree").exists(), "{}", stays.display());
        }
    }

    #[test]
    fn the_tree_is_dirty_in_three_ways_and_goes_with_its_value() {
        let fixture = Fixture::make().unwrap();
        let status = Cmd::new("git")
            .args(["status", "--short"])
            .cwd(fixture.tree())
            .run()
            .unwrap();
        assert_eq!(
            status.stdout_text(),
            "M greeting\n D removed\n?? untracked".replacen("M g", " M g", 1)
        );
        assert!(!fixture.same("greeting", "untracked") && fixture.same("greeting", "greeting"));
        assert!(!fixture.same("nothing", "nothing"));
        let root = fixture.root().to_owned();
        drop(fixture);
        assert!(!root.exists());
    }
}
