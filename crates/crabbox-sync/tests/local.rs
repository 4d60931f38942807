//! Tests of the real sync code against a shell on this machine: the state of a workdir after each kind of
//! change.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod early;
mod repository;
mod world;

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crabbox_host::clock::nap;
use crabbox_host::command::Cmd;
use crabbox_sync::transfer::{Destination, Options, TransferError, begin, sync};
use crabbox_sync::{Silent, Stage, SyncEvents};
use world::{World, settle};

#[test]
fn a_fresh_tree_arrives_whole_and_is_then_skipped() {
    let world = World::new();
    world.local(
        "printf 'target\nout\n' > .gitignore; mkdir -p src out; echo a > src/a; echo b > b; chmod 755 b; ln -s src/a link; \
         ln -s nowhere dangling; git add -A; git commit -qm x; echo new > new; echo o > out/o; echo dirty >> src/a",
    );
    settle();
    let first = world.sync();
    assert!(!first.skipped);
    assert_eq!(first.sent, 6);
    assert!(!world.workdir().join("out").exists());
    assert!(world.sync().skipped);
}

#[test]
fn what_the_guest_did_is_undone_where_it_is_ours_and_kept_where_it_is_not() {
    let world = World::new();
    world.local("mkdir -p a/b; echo 1 > a/b/f; echo 2 > g; echo 3 > h; git add -A; git commit -qm x");
    settle();
    world.sync();
    // Same size, same mtime: only the change time differs.
    world.guest(
        "touch -r g stamp; echo 9 > g; touch -r stamp g; mkdir -p node_modules; echo kept > node_modules/k",
    );
    assert_eq!(world.sync().sent, 1);
    assert!(world.workdir().join("node_modules/k").exists());
    world.guest("rm -rf a; ln -s ../.. a; rm h; mkdir -p h/sub; echo x > h/sub/x");
    assert_eq!(world.sync().sent, 2);
    assert!(world.sync().skipped);
}

#[test]
fn the_far_side_looks_at_nothing_before_it_is_told_to() {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm x");
    settle();
    world.sync();
    assert!(world.sync().skipped);
    let mut far = world.far().unwrap();
    // Until then the tree may belong to another client; an unrequested check would be finished by now.
    nap(Duration::from_millis(300));
    world.guest("echo 9 > a");
    let begun = begin(
        &mut far,
        &world.channel(),
        &world.destination(),
        &Options::default(),
    );
    let outcome = begun.finish(&mut far, &world.manifest(), &Silent).unwrap();
    assert_eq!((outcome.skipped, outcome.sent), (false, 1));
    world.assert_equal(&world.manifest());
}

#[test]
fn a_directory_moved_away_and_linked_back_is_noticed() {
    let world = World::new();
    world.local("mkdir a; echo 1 > a/f; git add -A");
    settle();
    world.sync();
    // The inode and all times of a/f stay as they were.
    world.guest("mv a ../elsewhere; ln -s ../elsewhere a");
    assert!(!world.sync().skipped);
}

/// The names of the record's files in the lease that have changed since the last call.
fn rewritten(world: &World, last: &mut std::collections::BTreeMap<String, u64>) -> Vec<String> {
    let meta = format!("{}/.crabbox-sync/w", world.destination().lease_dir());
    let now: std::collections::BTreeMap<String, u64> = std::fs::read_dir(meta)
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().ino(),
            )
        })
        .collect();
    let changed = now.iter().filter(|(name, inode)| last.get(*name) != Some(inode));
    let changed = changed.map(|(name, _)| name.clone()).collect();
    *last = now;
    changed
}

#[test]
fn an_edit_rewrites_its_part_of_the_record_only_and_is_then_skipped() {
    let world = World::new();
    world.local(
        "for d in $(seq 50); do mkdir d$d; for f in $(seq 100); do echo $d $f > d$d/f$f; done; done; git add -A; git commit -qm x",
    );
    settle();
    world.sync();
    let mut record = std::collections::BTreeMap::new();
    let rows = |names: Vec<String>| names.iter().filter(|name| name.starts_with("rows.")).count();
    assert_eq!(rows(rewritten(&world, &mut record)), 8);
    let edits = [
        "echo edit > d7/f7",
        "rm d8/f8",
        "echo new > d9/new",
        "mkdir -p d9/a/b; echo new > d9/a/b/c",
        "rm -r d9/a",
    ];
    for edit in edits {
        world.local(edit);
        settle();
        world.sync();
        let changed = rewritten(&world, &mut record);
        assert!(changed.contains(&"index".to_owned()), "{edit}: {changed:?}");
        assert_eq!(rows(changed), 1, "{edit}");
        assert!(world.sync().skipped, "{edit}");
    }
    assert_eq!(world.files_there().len(), 5000);
    // Any change by the guest makes the agent check everything again.
    world.guest("echo guest > d20/f20");
    world.local("echo edit > d7/f8");
    settle();
    assert_eq!(world.sync().sent, 2);
    assert_eq!(rows(rewritten(&world, &mut record)), 8);
    assert!(world.sync().skipped);
}

#[test]
fn a_hole_stays_a_hole_and_large_files_come_whole() {
    let world = World::new();
    world.local(
        "truncate -s 3M hole; printf x | dd of=hole bs=1 seek=1500000 conv=notrunc status=none; head -c 262144 /dev/urandom > block; \
         head -c 524289 /dev/urandom > more; truncate -s 700000 end; : > empty; git add -A",
    );
    settle();
    world.sync();
    let blocks = |name: &str| world.workdir().join(name).metadata().unwrap().blocks();
    // The first chunk is always sent as data; a block has 512 bytes.
    assert!(blocks("hole") <= 2 * 512 + 64, "{}", blocks("hole"));
    assert!(blocks("end") <= 512 + 64, "{}", blocks("end"));
    assert!(world.sync().skipped);
}

/// A guest that runs this script after rsync has ended and before the record is written.
struct BeforeTheFinish<'a>(&'a World, &'a str);

impl SyncEvents for BeforeTheFinish<'_> {
    fn stage(&self, stage: Stage) {
        if stage == Stage::Finish {
            self.0.guest(self.1);
        }
    }
}

#[test]
fn what_the_guest_does_before_the_finish_is_found_by_the_next_sync() {
    for script in [
        // A file that was not sent, keeping its size and time.
        "touch -r b ../stamp; echo 9 > b; touch -r ../stamp b",
        "rm b",
        // The inode and all times of d/f stay as they were.
        "mv d ../elsewhere; ln -s ../elsewhere d",
    ] {
        let world = World::new();
        world.local("mkdir d; echo 1 > a; echo 2 > b; echo 3 > d/f; git add -A; git commit -qm x");
        settle();
        world.sync();
        world.local("echo 4 > a");
        settle();
        assert_eq!(world.sync_telling(&BeforeTheFinish(&world, script)).sent, 1);
        assert!(!world.sync().skipped, "{script}");
        assert!(world.sync().skipped, "{script}");
    }
}

#[test]
fn a_file_that_the_guest_brings_back_breaks_the_skip() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x; rm a");
    settle();
    world.sync();
    world.guest("echo back > a");
    assert!(!world.sync().skipped);
    assert!(!world.workdir().join("a").exists());
}

#[test]
fn a_local_edit_that_keeps_size_and_time_is_sent() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x");
    settle();
    world.sync();
    world.local("touch -r a /tmp/crabbox-stamp-$$; echo 9 > a; touch -r /tmp/crabbox-stamp-$$ a; rm /tmp/crabbox-stamp-$$");
    // Old enough for its identity to be trusted: only the change time in it differs.
    settle();
    assert_eq!(world.sync().sent, 1);
}

#[test]
fn an_edit_right_after_a_look_is_never_missed() {
    let world = World::new();
    world.local("echo 0 > a; git add -A");
    for round in 1..15 {
        world.sync();
        std::fs::write(world.source().join("a"), format!("{}\n", round % 10)).unwrap();
    }
    world.sync();
}

#[test]
fn types_change_into_each_other() {
    let world = World::new();
    let shapes = [
        "echo file > x",
        "mkdir x; echo inner > x/y",
        "ln -s elsewhere x",
        "mkdir -p x/y/z; echo deep > x/y/z/f",
        "ln -s ../../.. x",
        "echo file > x; chmod 755 x",
        "mkdir x; ln -s . x/y",
    ];
    world.local("echo stay > stay; git add -A; git commit -qm x");
    for from in shapes {
        for to in shapes {
            world.local(&format!("rm -rf x; {from}; git add -A"));
            world.sync();
            world.guest("if [ -d x ] && [ ! -L x ]; then echo guest > x/guest; fi");
            world.local(&format!("rm -rf x; {to}"));
            world.sync();
        }
    }
}

#[test]
fn a_staged_deletion_that_is_there_again_untracked_is_kept() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x");
    world.sync();
    world.local("git rm -q --cached a; echo new > a; git rm -q b");
    world.sync();
    assert!(world.workdir().join("a").exists());
    assert!(!world.workdir().join("b").exists());
}

#[test]
fn pruning_drops_emptied_directories_and_no_others() {
    let world = World::new();
    world.local("mkdir -p d/e/f g; echo 1 > d/e/f/x; echo 2 > g/x; echo 3 > stay; git add -A");
    world.sync();
    world.guest("echo mine > g/mine");
    world.local("git rm -rqf d g");
    world.sync();
    assert!(!world.workdir().join("d").exists());
    assert!(world.workdir().join("g/mine").exists());
    assert!(!world.workdir().join("g/x").exists());
}

#[test]
fn pruning_never_leaves_the_workdir_through_a_link() {
    let world = World::new();
    world.local("mkdir -p d/e; echo 1 > d/e/x; echo 2 > d/x; echo 3 > stay; git add -A");
    world.sync();
    let outside = world.path().join("outside");
    std::fs::create_dir_all(outside.join("e")).unwrap();
    std::fs::write(outside.join("x"), "precious").unwrap();
    std::fs::write(outside.join("e/x"), "precious").unwrap();
    world.guest("rm -rf d; ln -s ../../../outside d");
    world.local("git rm -rqf d");
    world.sync();
    assert_eq!(std::fs::read_to_string(outside.join("x")).unwrap(), "precious");
    assert_eq!(std::fs::read_to_string(outside.join("e/x")).unwrap(), "precious");
}

#[test]
fn sending_never_leaves_the_workdir_through_a_link() {
    let world = World::new();
    world.local("mkdir -p d/e; echo 1 > d/e/x; echo 2 > d/x; git add -A");
    world.sync();
    let outside = world.path().join("outside");
    std::fs::create_dir_all(outside.join("e")).unwrap();
    std::fs::write(outside.join("e/x"), "precious").unwrap();
    world.guest("rm -rf d; ln -s ../../../outside d");
    world.local("echo changed > d/e/x; echo changed > d/x");
    world.sync();
    assert_eq!(std::fs::read_to_string(outside.join("e/x")).unwrap(), "precious");
    assert!(!outside.join("x").exists());
}

#[test]
fn a_workdir_that_became_a_link_is_refused() {
    let world = World::new();
    world.local("echo 1 > a; git add -A");
    world.sync();
    let outside = world.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::remove_dir_all(world.workdir()).unwrap();
    std::os::unix::fs::symlink(&outside, world.workdir()).unwrap();
    let error = world.try_sync(&Options::default()).unwrap_err();
    assert!(
        matches!(&error, TransferError::Prepare { why } if why.contains("not a directory")),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn an_interrupted_sync_is_finished_and_pruned_by_the_next() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x");
    world.sync();
    world.local("echo new > c; mkdir d; echo new > d/e");
    // Make writing the record fail, as if the connection broke after rsync.
    let record = world
        .workdir()
        .parent()
        .unwrap()
        .join(".crabbox-sync/w/index.new");
    std::fs::create_dir(&record).unwrap();
    let error = world.try_sync(&Options::default()).unwrap_err();
    assert!(matches!(error, TransferError::Finalize { .. }), "{error:?}");
    assert!(world.workdir().join("c").exists());
    std::fs::remove_dir(&record).unwrap();
    world.local("rm c; rm -r d; echo more > b");
    world.sync();
    assert!(!world.workdir().join("c").exists());
    assert!(!world.workdir().join("d").exists());
}

#[test]
fn what_a_sync_that_broke_off_had_brought_goes_though_nothing_else_has_changed() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x");
    settle();
    world.sync();
    assert!(world.sync().skipped);
    // As if the connection had broken after `c` arrived and before the record was written, and `c` is deleted
    // here again.
    world.guest("echo new > c");
    let pending = format!("{}/.crabbox-sync/w/pending", world.destination().lease_dir());
    std::fs::write(&pending, b"1f f 644 4 1 c\0").unwrap();
    assert!(!world.sync().skipped);
    assert!(!world.workdir().join("c").exists());
    assert!(world.sync().skipped);
}

#[test]
fn a_full_resync_starts_from_nothing() {
    let world = World::new();
    world.local("echo 1 > a; git add -A");
    world.sync();
    world.guest("mkdir -p build; echo x > build/o; chmod 500 build");
    world
        .try_sync(&Options {
            full_resync: true,
            ..Options::default()
        })
        .unwrap();
    assert_eq!(world.files_there().len(), 1);
}

#[test]
fn many_missing_tracked_files_look_like_an_accident() {
    let world = World::new();
    world.local(
        "for n in $(seq 200); do echo $n > f$n; done; echo s > stay; git add -A; git commit -qm x; rm f*",
    );
    let error = world.try_sync(&Options::default()).unwrap_err();
    assert!(
        matches!(error, TransferError::MassDeletion { count: 200 }),
        "{error:?}"
    );
    assert!(!error.is_remote());
    world
        .try_sync(&Options {
            allow_mass_deletions: true,
            ..Options::default()
        })
        .unwrap();
}

#[test]
fn without_delete_nothing_is_pruned() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A");
    world.sync();
    world.local("git rm -qf a");
    world
        .try_sync(&Options {
            delete: false,
            ..Options::default()
        })
        .unwrap();
    assert!(world.workdir().join("a").exists());
}

#[test]
fn a_read_only_directory_is_filled_changed_and_emptied() {
    let world = World::new();
    world.local("mkdir ro; echo 1 > ro/a; echo 2 > ro/b; git add -A; chmod 555 ro");
    world.sync();
    world.local("chmod 755 ro; echo 3 > ro/a; rm ro/b; chmod 555 ro");
    world.sync();
    world.local("chmod 755 ro; rm -r ro");
    world.sync();
    assert!(!world.workdir().join("ro").exists());
}

#[test]
fn what_the_go_program_synced_is_pruned_and_its_fingerprint_dropped() {
    let world = World::new();
    world.local("echo 1 > a; git add -A");
    std::fs::create_dir_all(world.workdir().join(".git/crabbox")).unwrap();
    world.guest(
        "echo old > old; echo 1 > a; printf 'a\\0old\\0' > .git/crabbox/sync-manifest; echo f > .git/crabbox/sync-fingerprint",
    );
    world.sync();
    assert!(!world.workdir().join("old").exists());
    assert!(!world.workdir().join(".git/crabbox/sync-fingerprint").exists());
    assert_eq!(
        std::fs::read(world.workdir().join(".git/crabbox/sync-manifest")).unwrap(),
        b"a\0"
    );
}

/// Checks that `git status`, the commit and the branch are the same on both sides.
fn assert_same_repository(world: &World) {
    let ask = |dir: &std::path::Path| {
        let git = |args: &[&str]| {
            let said = Cmd::new("git").args(args).cwd(dir).capture().unwrap();
            (said.stdout_text(), said.stderr_text())
        };
        [
            git(&[
                "status",
                "--porcelain=v2",
                "--untracked-files=all",
                "--no-renames",
            ]),
            git(&["rev-parse", "HEAD"]),
            git(&["symbolic-ref", "-q", "HEAD"]),
            git(&["ls-files", "-s"]),
            git(&["diff", "HEAD"]),
        ]
    };
    assert_eq!(ask(&world.source()), ask(&world.workdir()));
}

#[test]
fn a_destination_is_never_taken_for_a_pattern() {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm one");
    for (name, matched) in [("r[1]", "r1"), ("r*", "rest"), ("r?", "r2"), (r"r\", "r")] {
        let destination = Destination {
            name: name.to_owned(),
            ..world.destination()
        };
        let tree = std::path::PathBuf::from(destination.workdir());
        let other = tree.with_file_name(matched);
        std::fs::create_dir_all(&other).unwrap();
        let options = Options {
            checksum: true,
            ..Options::default()
        };
        let (manifest, mut far) = (world.manifest(), world.far().unwrap());
        sync(
            &mut far,
            &world.channel(),
            &destination,
            &manifest,
            &options,
            &Silent,
        )
        .unwrap();
        assert_eq!(std::fs::read(tree.join("a")).unwrap(), b"1\n", "{name}");
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 0, "{name}");
    }
}

/// Tests every kind of repository change, with this object format (git-init(1)).
fn the_repository_is_followed(format: &str) {
    let world = World::new();
    world.local(&format!("rm -rf .git; git init -q --template= --object-format={format} -b main . && printf '[user]\nname=t\nemail=t@t\n' >> .git/config"));
    world.local("mkdir d; echo 1 > d/a; echo 2 > b; echo 3 > c; echo 4 > e; git add -A; git commit -qm one");
    world.local("echo 1b >> d/a; git commit -qam two; echo staged > s; git add s; echo more >> b; git rm -q c; echo u > u");
    world.local("git mv e moved; chmod 755 d/a; git remote add origin https://h.invalid/me/w.git");
    settle();
    world.sync();
    assert_same_repository(&world);
    assert!(world.sync().skipped);
    // A new commit, another branch, a detached head: each is followed, with only new objects in the pack.
    world.local("git commit -qam three; echo 5 > f; git add f; git commit -qm four");
    world.sync();
    assert_same_repository(&world);
    world.local("git checkout -q -b feature/x; echo 6 >> f");
    world.sync();
    assert_same_repository(&world);
    world.local("git stash -q; git checkout -q --detach HEAD~2");
    world.sync();
    assert_same_repository(&world);
}

#[test]
fn the_workdir_is_a_repository_in_the_same_state() {
    the_repository_is_followed("sha1");
}

#[test]
fn a_repository_of_long_object_names_is_one_there_too() {
    the_repository_is_followed("sha256");
}

#[test]
fn a_repository_that_the_guest_moved_is_brought_back() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm one");
    settle();
    world.sync();
    world.guest("git status -s; git -c user.name=g -c user.email=g@g commit -q --allow-empty -m guest");
    assert!(!world.sync().skipped);
    assert_same_repository(&world);
    world.guest("git checkout -q -b other; echo x >> a; git add a");
    world.sync();
    assert_same_repository(&world);
    world.guest("rm -rf .git");
    world.sync();
    assert_same_repository(&world);
    world.guest("git status -s");
    assert!(world.sync().skipped);
}

#[test]
fn a_repository_that_cannot_be_seeded_is_only_a_warning() {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm one");
    world.sync();
    world.local("git commit -q --allow-empty -m two");
    world.guest("rm .git/index; mkdir -p .git/index/x");
    let heard = world.warned();
    assert!(
        heard
            .iter()
            .any(|line| line.starts_with("remote git seed failed: ")),
        "{heard:?}"
    );
}

#[test]
fn an_unborn_branch_gives_a_repository_without_a_commit() {
    for format in ["sha1", "sha256"] {
        let world = World::new();
        world.local(&format!(
            "rm -rf .git; git init -q --object-format={format} -b main .; echo 1 > a; git add a; echo 2 > b"
        ));
        world.sync();
        assert_same_repository(&world);
    }
}

#[test]
fn an_origin_with_credentials_stays_here() {
    let world = World::new();
    world.local(
        "git remote add origin https://me:secret@h.invalid/w.git; echo 1 > a; git add a; git commit -qm x",
    );
    world.sync();
    let config = std::fs::read_to_string(world.workdir().join(".git/config")).unwrap();
    assert!(!config.contains("secret"), "{config}");
}
