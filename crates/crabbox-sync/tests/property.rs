//! Property tests with random repositories, random edits on both sides, and a real sshd between them: after a
//! sync the workdir equals the manifest, byte for byte.

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
use std::path::Path;

use crabbox_host::command::Cmd;
use crabbox_sync::manifest::Manifest;
use crabbox_sync::transfer::GitSeed;
use crabbox_sync::{Filter, Verdict};
use crabbox_testkit::sshd::Sshd;
use crabbox_testkit::trees::{NAMES, Step, guest_step, inside, step};
use proptest::prelude::*;
use world::{Shared, World, bytes_path, settle};

/// The expected paths, computed in another way: from git's own lists, the disk, and the filter.
fn expected(root: &Path, prefix: &[u8]) -> BTreeSet<Vec<u8>> {
    let repo = root.join(bytes_path(prefix));
    let list = |args: &[&str]| -> BTreeSet<Vec<u8>> {
        let out = Cmd::new("git").args(args).cwd(&repo).run().unwrap().stdout;
        out.split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    };
    let below = |path: &[u8]| [prefix, path].concat();
    // Being tracked protects only a regular file, according to the index: `100644 <id> <stage>\t<path>`.
    let staged = list(&["ls-files", "--stage", "-z"]);
    let of_mode = |mode: &[u8]| -> BTreeSet<Vec<u8>> {
        let lines = staged.iter().filter(|line| line.starts_with(mode));
        lines
            .filter_map(|line| line.splitn(2, |byte| *byte == b'\t').nth(1).map(below))
            .collect()
    };
    let regular = of_mode(b"100");
    let all = list(&["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let filter = Filter::new(&[], b"", &[]);
    // A submodule has its own list.
    let modules = of_mode(b"160").into_iter().filter(|path| {
        let dir = root.join(bytes_path(path));
        inside(root, &dir.join("x")) && dir.join(".git").exists() && filter.judge(path, true) != Verdict::Drop
    });
    let of_modules = modules.flat_map(|path| expected(root, &[&path[..], b"/"].concat()));
    all.iter()
        .map(|path| below(path))
        .filter(|path| {
            let full = root.join(bytes_path(path));
            inside(root, &full)
                && full.symlink_metadata().is_ok_and(|meta| !meta.is_dir())
                && filter.judge(path, regular.contains(path)) != Verdict::Drop
        })
        .chain(of_modules)
        .collect()
}

/// The parameters of a case.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// The last sync is repeated, and skipped.
    skip: bool,
    /// Wait before each sync until times are old enough for memory to be trusted on both sides.
    settled: bool,
    /// Use rsync with checksums.
    checksum: bool,
}

fn manner() -> impl Strategy<Value = Manner> {
    let weighted = prop::bool::weighted;
    (weighted(0.1), weighted(0.3), weighted(0.15)).prop_map(|(skip, settled, checksum)| Manner {
        skip,
        settled,
        checksum: checksum && !skip,
    })
}

fn check(
    shared: &Shared,
    first: &[Step],
    rounds: &[(Vec<Step>, Vec<Step>)],
    manner: Manner,
    git_seed: GitSeed,
) {
    let mut world = World::over(&shared.0);
    world.git_seed = git_seed;
    world.checksum = manner.checksum;
    let settle_if = |settled: bool| {
        if settled {
            settle();
        }
    };
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
    settle_if(manner.settled);
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
        settle_if(manner.settled);
        let manifest = world.manifest();
        world.sync_manifest(&manifest);
        let wanted = paths(manifest);
        assert_eq!(wanted, expected(&world.source(), b""));
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
    if manner.skip {
        settle();
        world.sync();
        assert!(world.sync().skipped);
    }
}

/// Defines one more run of the same property, so that runs are parallel; each has its own server and one
/// connection to it.
macro_rules! property {
    ($name:ident, $cases:expr, $rounds:expr, $seed:expr) => {
        #[test]
        fn $name() {
            let sshd = Sshd::start();
            let shared = Shared::new(&sshd);
            let config = ProptestConfig { cases: $cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() };
            proptest!(config, |(
                first in prop::collection::vec(step(), 1..25),
                rounds in prop::collection::vec(
                    (prop_oneof![Just(Vec::new()), prop::collection::vec(guest_step(), 0..5)],
                     prop::collection::vec(step(), 1..10)), $rounds),
                manner in manner(),
            )| {
                check(&shared, &first, &rounds, manner, $seed);
            });
            assert_eq!(sshd.logins(), 1, "one connection carries everything");
        }
    };
}

property!(the_workdir_equals_the_manifest_1, 160, 1..2, GitSeed::Off);
property!(the_workdir_equals_the_manifest_2, 160, 1..2, GitSeed::Off);
property!(the_workdir_equals_the_manifest_3, 160, 1..2, GitSeed::Off);
property!(with_a_repository_too, 40, 1..4, GitSeed::Shallow);

/// Sends nothing, so that there is time for many small changes between calls that are old enough to be
/// trusted.
#[test]
fn what_is_remembered_of_a_tree_is_what_git_says() {
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    };
    proptest!(config, |(
        first in prop::collection::vec(step(), 1..25),
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..3), 1..8),
    )| {
        let world = World::new();
        fs::write(world.source().join(".gitignore"), "*.log\n").unwrap();
        for steps in [first].into_iter().chain(rounds) {
            for step in steps {
                step.apply(&world.source(), false);
            }
            settle();
            // This compares both.
            world.manifest();
        }
    });
}
