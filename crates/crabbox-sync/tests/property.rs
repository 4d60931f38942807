//! Random repositories, random edits on both sides: after a sync the workdir equals the manifest, byte for byte.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_sync::manifest::Manifest;
use crabbox_sync::transfer::GitSeed;
use crabbox_sync::{Filter, Verdict};
use proptest::prelude::*;
use proptest::sample::select;
use world::{World, bytes_path, settle};

/// Names that meet each other often, and names that break things.
const NAMES: [&[u8]; 26] = [
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
enum Step {
    Write(PathBuf, u8),
    /// Another content of the same size, the old modification time.
    Forge(PathBuf, u8),
    Link(PathBuf, PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Mode(PathBuf, u32),
    Add(PathBuf),
    Unstage(PathBuf),
    Commit,
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(select(&NAMES[..]), 1..4)
        .prop_map(|parts| parts.iter().map(|part| bytes_path(part)).collect())
}

fn step() -> impl Strategy<Value = Step> {
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
    ]
}

/// What a program in the lease may do: everything but git, and what it makes anew bears its mark.
fn guest_step() -> impl Strategy<Value = Step> {
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
    /// Does what can be done of it; a path that is not there, or is something else, is left alone.
    fn apply(&self, root: &Path, guest: bool) {
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
        }
    }
}

fn git(root: &Path, args: &[&str], path: Option<&PathBuf>) {
    // Paths are meant literally; git may well refuse one that is not there or lies beyond a link.
    let cmd = Cmd::new("git")
        .arg("--literal-pathspecs")
        .args(args)
        .cwd(root)
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    path.into_iter().fold(cmd, Cmd::arg).capture().unwrap();
}

/// Whether the way to `path` leads through directories of the tree only, so that a step stays inside.
fn inside(root: &Path, path: &Path) -> bool {
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

/// What must be synced, worked out another way: git's own list, what is there, and the filter.
fn expected(world: &World) -> BTreeSet<Vec<u8>> {
    let root = world.source();
    let list = |args: &[&str]| -> BTreeSet<Vec<u8>> {
        let out = Cmd::new("git").args(args).cwd(&root).run().unwrap().stdout;
        out.split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    };
    // What being tracked protects is a regular file, as the index has it: `100644 <id> <stage>\t<path>`.
    let regular: BTreeSet<Vec<u8>> = list(&["ls-files", "--stage", "-z"])
        .into_iter()
        .filter(|line| line.starts_with(b"100"))
        .filter_map(|line| line.splitn(2, |byte| *byte == b'\t').nth(1).map(<[u8]>::to_vec))
        .collect();
    let all = list(&["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let filter = Filter::new(&[], b"", &[]);
    all.into_iter()
        .filter(|path| {
            let full = root.join(bytes_path(path));
            inside(&root, &full)
                && full.symlink_metadata().is_ok_and(|meta| !meta.is_dir())
                && filter.judge(path, regular.contains(path)) != Verdict::Drop
        })
        .collect()
}

fn check(first: &[Step], rounds: &[(Vec<Step>, Vec<Step>)], skip: bool, git_seed: GitSeed) {
    let mut world = World::new();
    world.git_seed = git_seed;
    let outside = world.path().join("leases/outside");
    fs::create_dir_all(&outside).unwrap();
    for name in NAMES {
        fs::write(outside.join(bytes_path(name)), "precious").unwrap();
    }
    fs::write(world.source().join(".gitignore"), "*.log\n").unwrap();
    for step in first {
        step.apply(&world.source(), false);
    }
    let paths = |manifest: Manifest| -> BTreeSet<Vec<u8>> {
        manifest.entries.into_iter().map(|entry| entry.path).collect()
    };
    let manifest = world.manifest();
    world.sync_manifest(&manifest);
    let mut before = paths(manifest);
    for (guest, local) in rounds {
        for step in guest {
            step.apply(&world.workdir(), true);
        }
        for step in local {
            step.apply(&world.source(), false);
        }
        let manifest = world.manifest();
        world.sync_manifest(&manifest);
        let wanted = paths(manifest);
        assert_eq!(wanted, expected(&world));
        for path in world.files_there().difference(&wanted) {
            assert!(
                path.ends_with(b"/guest") || !before.contains(path),
                "left over: {}",
                path.escape_ascii()
            );
        }
        before = wanted;
    }
    for name in NAMES {
        assert_eq!(fs::read(outside.join(bytes_path(name))).unwrap(), b"precious");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), NAMES.len());
    if skip {
        settle();
        world.sync();
        assert!(world.sync().skipped);
    }
}

/// One more run of the same property, so that the cases run side by side.
macro_rules! property {
    ($name:ident, $cases:expr, $rounds:expr, $seed:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: $cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]
            #[test]
            fn $name(
                first in prop::collection::vec(step(), 1..25),
                rounds in prop::collection::vec(
                    (prop::collection::vec(guest_step(), 0..5), prop::collection::vec(step(), 1..10)), $rounds),
                skip in prop::bool::weighted(0.1),
            ) {
                check(&first, &rounds, skip, $seed);
            }
        }
    };
}

property!(the_workdir_equals_the_manifest_1, 160, 1..2, GitSeed::Off);
property!(the_workdir_equals_the_manifest_2, 160, 1..2, GitSeed::Off);
property!(the_workdir_equals_the_manifest_3, 160, 1..2, GitSeed::Off);
property!(with_a_repository_too, 40, 1..4, GitSeed::Shallow);
