//! Unusual working trees: generated steps of a user and of a program in a lease, and the trees they result
//! in.
//!
//! The property tests of the sync draw hundreds of them, and the end-to-end tests use a few fixed ones. A
//! step must never touch anything outside of the tree that it is applied to.

#![expect(
    clippy::unwrap_used,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Names that often collide, and names that break things.
pub const NAMES: [&[u8]; 26] = [
    b"a",
    b"b",
    b"A",
    b"dir",
    b"src",
    b"x y",
    b"new\nline",
    b"-dash",
    b"--delete",
    b"#hash",
    b";semi",
    b"\xc3\xa9t\xc3\xa9",
    b"\xff\xfe",
    b"*",
    b"[br]",
    b"quo'te\"",
    b"back\\slash",
    b"\ttab",
    b"trail ",
    b".hidden",
    b"dist",
    b"node_modules",
    b"junk.log",
    b"$HOME",
    b"~",
    b"...",
];

/// A step of a user or of a program in the lease.
#[derive(Debug, Clone)]
pub enum Step {
    /// A small file, with the directories on the way to it.
    Write(PathBuf, u8),
    /// Changes the contents but neither size nor modification time.
    Forge(PathBuf, u8),
    /// A symbolic link with this target.
    Link(PathBuf, PathBuf),
    /// Removes the file or directory.
    Remove(PathBuf),
    /// Moves it, replacing the target.
    Rename(PathBuf, PathBuf),
    /// Changes the permission bits.
    Mode(PathBuf, u32),
    /// Adds it to the index.
    Add(PathBuf),
    /// Removes it from the index only.
    Unstage(PathBuf),
    /// Commits the index.
    Commit,
    /// Makes the directory a repository, with a commit of its contents, and a submodule if git accepts it as
    /// one.
    Module(PathBuf),
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(select(&NAMES[..]), 1..4)
        .prop_map(|parts| parts.iter().map(|part| bytes_path(part)).collect())
}

/// A step of a user.
pub fn step() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        path(),
        Just(PathBuf::from("../../outside")),
        Just(PathBuf::from("/nonexistent/crabbox")),
        Just(PathBuf::from("."))
    ];
    prop_oneof![
        8 => (path(), any::<u8>()).prop_map(|(path, byte)| Step::Write(path, byte)),
        2 => (path(), any::<u8>()).prop_map(|(path, byte)| Step::Forge(path, byte)),
        2 => (path(), target).prop_map(|(path, target)| Step::Link(path, target)),
        3 => path().prop_map(Step::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (path(), select(vec![0o644_u32, 0o755, 0o600, 0o444, 0o775])).prop_map(|(path, mode)| Step::Mode(path, mode)),
        2 => path().prop_map(Step::Add),
        1 => path().prop_map(Step::Unstage),
        1 => Just(Step::Commit),
        1 => path().prop_map(Step::Module),
    ]
}

/// A step of a program in the lease: anything but git; new files are marked with `guest` in their path.
pub fn guest_step() -> impl Strategy<Value = Step> {
    let marked = path().prop_map(|path| path.join("guest"));
    prop_oneof![
        3 => (marked, any::<u8>()).prop_map(|(path, byte)| Step::Write(path, byte)),
        3 => (path(), any::<u8>()).prop_map(|(path, byte)| Step::Forge(path, byte)),
        2 => path().prop_map(Step::Remove),
        1 => (path(), select(vec![0o600_u32, 0o755])).prop_map(|(path, mode)| Step::Mode(path, mode)),
        1 => (path(), Just(PathBuf::from("../../outside"))).prop_map(|(path, target)| Step::Link(path, target)),
    ]
}

impl Step {
    /// Applies the step in `root` if possible; a path that is missing or of another type is left alone. With
    /// `guest`, it happens in a lease, where symlinks only replace existing entries.
    pub fn apply(&self, root: &Path, guest: bool) {
        match self {
            Self::Write(path, byte) => {
                let path = root.join(path);
                if inside(root, &path) && !path.is_dir() && fs::create_dir_all(path.parent().unwrap()).is_ok()
                {
                    fs::write(&path, vec![b'0' + byte % 3; usize::from(byte % 7)]).ok();
                }
            }
            Self::Forge(path, byte) => {
                let path = root.join(path);
                if let Ok(meta) = path.symlink_metadata()
                    && meta.is_file()
                    && inside(root, &path)
                {
                    let content = vec![b'5' + byte % 3; usize::try_from(meta.len()).unwrap()];
                    fs::write(&path, content).unwrap();
                    fs::File::options()
                        .write(true)
                        .open(&path)
                        .unwrap()
                        .set_modified(meta.modified().unwrap())
                        .unwrap();
                }
            }
            Self::Link(path, target) => {
                let path = root.join(path);
                let exists = path.symlink_metadata().is_ok();
                if inside(root, &path) && (exists || !guest) {
                    remove(&path);
                    fs::create_dir_all(path.parent().unwrap()).ok();
                    std::os::unix::fs::symlink(target, &path).ok();
                }
            }
            Self::Remove(path) => {
                if inside(root, &root.join(path)) {
                    remove(&root.join(path));
                }
            }
            Self::Rename(from, to) => {
                let (from, to) = (root.join(from), root.join(to));
                if inside(root, &from) && inside(root, &to) {
                    fs::create_dir_all(to.parent().unwrap()).ok();
                    fs::rename(from, to).ok();
                }
            }
            Self::Mode(path, mode) => {
                let path = root.join(path);
                if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) && inside(root, &path) {
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
            }
            Self::Add(path) => git(root, &["add", "-A", "--"], Some(path)),
            Self::Unstage(path) => git(
                root,
                &["rm", "-r", "-q", "--cached", "--ignore-unmatch", "--"],
                Some(path),
            ),
            Self::Commit => git(root, &["commit", "-q", "-m", "x"], None),
            Self::Module(path) => make_module(root, path),
        }
    }
}

fn make_module(root: &Path, path: &PathBuf) {
    const COMMIT: &[&str] = &[
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "x",
    ];
    let dir = root.join(path);
    if !inside(root, &dir.join("x")) || fs::create_dir_all(&dir).is_err() {
        return;
    }
    git(&dir, &["init", "-q", "--template="], None);
    git(&dir, &["add", "-A"], None);
    git(&dir, COMMIT, None);
    git(
        root,
        &["-c", "advice.addEmbeddedRepo=false", "add", "--"],
        Some(path),
    );
}

fn git(root: &Path, args: &[&str], path: Option<&PathBuf>) {
    // Paths are literal; git may refuse one that is missing or beyond a symlink.
    let cmd = Cmd::new("git")
        .arg("--literal-pathspecs")
        .args(args)
        .cwd(root)
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    path.into_iter().fold(cmd, Cmd::arg).capture().unwrap();
}

/// Whether all parents of `path` are directories of the tree, so that a step stays inside.
pub fn inside(root: &Path, path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .take_while(|dir| *dir != root)
        .all(|dir| dir.symlink_metadata().map_or(true, |meta| meta.is_dir()))
}

fn remove(path: &Path) {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).ok();
    }
}

/// The steps of tree number `number`, identical on every run and every machine.
#[must_use]
pub fn fixed(number: u8) -> Vec<Step> {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[number; 32]),
    );
    let steps = prop::collection::vec(step(), 12..30);
    steps.new_tree(&mut runner).unwrap().current()
}

/// A path of any bytes.
#[must_use]
pub fn bytes_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
