//! Tests of the base of a branch in the lease: git reports the same about it there as here, from local
//! objects alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use std::path::Path;

use crabbox_host::command::Cmd;
use crabbox_sync::transfer::Options;
use world::{Heard, World, settle};

/// Syncs with this base; returns the warnings.
fn based(world: &World, base: &str) -> Vec<String> {
    let options = Options {
        base_ref: base.to_owned(),
        ..Options::default()
    };
    let heard = Heard::default();
    world.sync_as(&world.manifest(), &options, &heard).unwrap();
    heard.warnings()
}

/// The exit code and output of git.
fn said(dir: &Path, args: &str) -> (Option<i32>, String) {
    let out = Cmd::new("git")
        .args(args.split(' '))
        .cwd(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .capture()
        .unwrap();
    (out.status.code(), out.stdout_text())
}

/// Checks that both sides report the same about the base, and that the repository in the lease is complete.
fn check(world: &World, base: &str) {
    for args in [
        "merge-base --all {} HEAD",
        "diff {}...",
        "diff --stat {}...HEAD",
        "diff --name-status {}",
        "log --format=%H {}..HEAD",
        "log --format=%H HEAD..{}",
        "status --short",
    ] {
        let args = args.replace("{}", base);
        assert_eq!(
            said(&world.workdir(), &args),
            said(&world.source(), &args),
            "git {args}"
        );
    }
    let (code, problems) = said(&world.workdir(), "fsck --full --strict --no-dangling");
    assert_eq!((code, problems.as_str()), (Some(0), ""));
}

/// `main` with commits a, b and c; `work`, which is checked out, forks at b and has d and e.
const BRANCHES: &str = "c() { echo $1 >> f; echo $1 > $1; git add -A; git commit -qm $1; }; \
     c a; c b; git branch work; c c; git checkout -q work; c d; c e; ";

#[test]
fn the_branch_of_the_origin_is_there_with_the_history_up_to_the_fork() {
    let world = World::new();
    world.local(
        &[
            BRANCHES,
            "git update-ref refs/remotes/origin/main main; git update-ref -d refs/heads/main",
        ]
        .concat(),
    );
    // History that an earlier sync cut off is joined again.
    assert_eq!(based(&world, ""), [""; 0]);
    assert_eq!(said(&world.workdir(), "rev-list --count HEAD").1, "1");
    // A file that was just written would be sent again.
    settle();
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "origin/main");
    let patches = "log -p --format=%H origin/main..HEAD";
    assert_eq!(said(&world.workdir(), patches), said(&world.source(), patches));
    assert_eq!(
        said(&world.workdir(), "rev-parse main"),
        said(&world.source(), "rev-parse origin/main")
    );
    // a is older than the fork, so it is not sent.
    assert_eq!(said(&world.workdir(), "rev-list --count --all").1, "4");
    let options = Options {
        base_ref: "main".to_owned(),
        ..Options::default()
    };
    let outcome = world.sync_as(&world.manifest(), &options, &Heard::default());
    assert!(outcome.unwrap().skipped);

    // Both branches advance, and then only the base.
    world.local("c() { echo $1 > $1; git add -A; git commit -qm $1; }; c g; git checkout -q --detach origin/main; c h; \
                 git update-ref refs/remotes/origin/main HEAD; git checkout -q work");
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "origin/main");
    world.local("git merge -q -X ours -m merged origin/main; git checkout -q --detach origin/main; echo i > i; git add i; git commit -qm i; \
                 git update-ref refs/remotes/origin/main HEAD; git checkout -q work");
    assert_eq!(based(&world, "origin/main"), [""; 0]);
    check(&world, "origin/main");
    // Without a base, the rest stays as it is.
    world.local("echo j > j; git add j; git commit -qm j");
    assert_eq!(based(&world, ""), [""; 0]);
    check(&world, "HEAD");
}

#[test]
fn a_base_may_be_a_branch_a_tag_or_a_commit_of_here() {
    let world = World::new();
    world.local(&[BRANCHES, "git tag -a -m x v1 main; git tag v2 main~1"].concat());
    let commit = said(&world.source(), "rev-parse main").1;
    // Without an origin the base has the origin's name there, too, if it is a branch; other branches have not.
    let of_origin = |branch: &str| {
        let name = format!("refs/remotes/origin/{branch}");
        said(
            &world.workdir(),
            &format!("for-each-ref --format=%(objectname) {name}"),
        )
        .1
    };
    for base in ["main", "refs/heads/main", "v1", "v2", "work"] {
        assert_eq!(based(&world, base), [""; 0], "{base}");
        check(&world, base);
        assert_eq!(of_origin("main"), commit, "{base}");
        let work = said(&world.source(), "rev-parse work").1;
        let known = if base == "work" { work.as_str() } else { "" };
        assert_eq!(of_origin("work"), known, "{base}");
    }
    assert_eq!(based(&world, "main"), [""; 0]);
    assert_eq!(of_origin("main"), commit);
    assert_eq!(based(&world, &commit), [""; 0]);
    check(&world, &commit);
    assert_eq!(said(&world.workdir(), "rev-parse refs/crabbox/base").1, commit);
}

#[test]
fn a_base_whose_name_the_branch_goes_on_from_is_known_by_its_own_ref_alone() {
    let world = World::new();
    world.local(BRANCHES);
    world.local("git update-ref refs/remotes/origin/release main; git checkout -q -b release/1");
    assert_eq!(based(&world, "release"), Vec::<String>::new());
    check(&world, "origin/release");
}

#[test]
fn histories_that_meet_more_than_once_or_never_do_so_there_too() {
    // Old topic branches merged into both sides, each from before the fork.
    let world = World::new();
    world.local(&[
        BRANCHES,
        "git checkout -q -b t1 main~2; c t1; git checkout -q -b t2 main~2; c t2; git checkout -q work; git merge -q -X ours -m m1 t1; \
         git checkout -q main; git merge -q -X ours -m m2 t2; git checkout -q work; git merge -q -X ours -m m3 t2",
    ].concat());
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "main");
    // Merging an old commit again would be disconnected from the fork: then the whole history is sent.
    let world = World::new();
    world.local(
        &[
            BRANCHES,
            "git reset -q --hard $(git commit-tree -p main~1 -p main~2 -m odd HEAD^{tree})",
        ]
        .concat(),
    );
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "main");
    // Branches without a common ancestor.
    let world = World::new();
    world.local(&[BRANCHES, "git checkout -q --orphan alone; git commit -qm alone"].concat());
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "main");
}

#[test]
fn what_is_no_base_is_a_warning_and_the_rest_is_seeded() {
    let world = World::new();
    world.local(&[BRANCHES, "echo x > f; git stash -q; git tag tree HEAD^{tree}"].concat());
    for (base, want) in [
        ("nowhere", "is not a branch, tag or commit of this repository"),
        ("stash", "is not a branch, tag or commit of this repository"),
        ("refs/stash", "is not a branch, tag or commit of this repository"),
        ("tree", "is not a branch, tag or commit of this repository"),
        (
            "0123456789012345678901234567890123456789",
            "is not a branch, tag or commit of this repository",
        ),
        ("HEAD~1", "is not a valid name of a branch, tag or commit"),
        ("stash@{0}", "is not a valid name of a branch, tag or commit"),
        ("-x", "is not a valid name of a branch, tag or commit"),
        ("main..work", "is not a valid name of a branch, tag or commit"),
        ("ma*", "is not a valid name of a branch, tag or commit"),
    ] {
        let warned = based(&world, base);
        assert_eq!(warned.len(), 1, "{base}: {warned:?}");
        let start = format!("sync.baseRef: {base:?} {want}");
        assert!(warned[0].starts_with(&start), "{warned:?}");
        assert_eq!(
            said(&world.workdir(), "rev-parse HEAD"),
            said(&world.source(), "rev-parse HEAD")
        );
    }
    let refs = said(&world.workdir(), "for-each-ref --format=%(refname)").1;
    assert_eq!(refs, "refs/heads/work");
    // A branch without a commit has no base.
    let world = World::new();
    world.local("echo x > f");
    assert_eq!(based(&world, ""), [""; 0]);
}

#[test]
fn long_object_names_and_a_shallow_clone_are_no_obstacle() {
    let world = World::new();
    world.local(&["rm -rf .git; git init -q --template= --object-format=sha256 -b main .; git config user.name t; git config user.email t@t; ", BRANCHES].concat());
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "main");
    let world = World::new();
    world.local(&[
        BRANCHES,
        "git clone -q --no-local --depth 2 --no-single-branch . ../s; rm -rf .git; mv ../s/.git .; rm -rf ../s; git config user.name t; git config user.email t@t",
    ].concat());
    assert_eq!(based(&world, "main"), [""; 0]);
    check(&world, "origin/main");
}

/// A partial clone of `../origin.git` in place of the working tree.
fn cloned(world: &World, options: &str) {
    world.local(&format!(
        "mkdir a b; echo 1 > a/f; echo 7 > b/f; git add -A; git commit -qm one; git branch old; echo 2 > a/f; echo 8 > b/f; git commit -qam two; \
         git clone -q --bare . ../origin.git; git -C ../origin.git config uploadpack.allowFilter true; \
         rm -rf .git a b; git clone -q {options} file://$(realpath ..)/origin.git .; git config user.name t; git config user.email t@t"
    ));
}

/// The objects that are missing in a repository, of these revisions.
fn missing(dir: &Path, revisions: &str) -> usize {
    let list = said(dir, &format!("rev-list --objects --missing=print {revisions}")).1;
    list.lines().filter(|line| line.starts_with('?')).count()
}

#[test]
fn what_a_partial_clone_never_fetched_is_left_out_and_comes_once_it_is_there() {
    let world = World::new();
    cloned(&world, "--filter=blob:none --sparse");
    world.local("git sparse-checkout set a");
    assert_eq!(missing(&world.source(), "HEAD^{tree}"), 1);
    let repo = || crabbox_sync::repo::Repo::discover(&world.source()).unwrap();
    let sync = |exclude: &[&str]| {
        let scope = crabbox_sync::manifest::Scope {
            exclude: exclude.iter().map(|rule| (*rule).to_owned()).collect(),
            include: Vec::new(),
        };
        let manifest = crabbox_sync::manifest::Manifest::build(&repo(), &scope).unwrap();
        let heard = Heard::default();
        world.sync_as(&manifest, &Options::default(), &heard).unwrap();
        assert_eq!(heard.warnings(), Vec::<String>::new());
        for args in ["status --short", "log --format=%H -1", "diff HEAD"] {
            assert_eq!(
                said(&world.workdir(), args),
                said(&world.source(), args),
                "git {args}"
            );
        }
    };
    sync(&["/b/"]);
    // Nothing was fetched for it.
    assert_eq!(missing(&world.source(), "HEAD^{tree}"), 1);
    world.local("echo 3 >> a/f; echo 3 > a/g; git add a/g");
    sync(&["/b/"]);
    world.local("git commit -qam three");
    sync(&["/b/"]);
    assert_eq!(missing(&world.workdir(), "HEAD^{tree}"), 1);
    // What is checked out later comes then, although the commit is the one that the lease has.
    world.local("git sparse-checkout set a b; echo 4 >> b/f");
    sync(&[]);
    assert_eq!(missing(&world.workdir(), "HEAD^{tree}"), 0);
    world.guest("git -c user.name=g -c user.email=g@g commit -qam guest; git show HEAD:b/f");
}

#[test]
fn the_base_of_a_partial_clone_has_its_history_and_one_without_trees_is_a_warning() {
    let world = World::new();
    cloned(&world, "--filter=blob:none");
    assert_eq!(based(&world, "old"), Vec::<String>::new());
    for args in [
        "log --format=%H origin/old..HEAD",
        "diff --name-status origin/old...",
        "status --short",
    ] {
        assert_eq!(
            said(&world.workdir(), args),
            said(&world.source(), args),
            "git {args}"
        );
    }
    // Fetched for a comparison here; the next commit brings it.
    world.local("git diff origin/old... > /dev/null; git commit -q --allow-empty -m three");
    assert_eq!(based(&world, "old"), Vec::<String>::new());
    check(&world, "origin/old");

    let world = World::new();
    cloned(&world, "--filter=tree:0");
    for _ in 0..2 {
        let heard = based(&world, "old");
        assert!(
            matches!(heard.as_slice(), [line] if line.starts_with("sync.baseRef: ")),
            "{heard:?}"
        );
        assert_eq!(said(&world.workdir(), "status --short"), (Some(0), String::new()));
        assert_ne!(
            said(&world.workdir(), "rev-parse -q --verify origin/old").0,
            Some(0)
        );
    }
    // Once the tree is here, the base goes along.
    world.local("git diff --stat origin/old HEAD > /dev/null");
    assert_eq!(based(&world, "old"), Vec::<String>::new());
    assert_eq!(
        said(&world.workdir(), "diff --name-status origin/old..."),
        said(&world.source(), "diff --name-status origin/old...")
    );
}
