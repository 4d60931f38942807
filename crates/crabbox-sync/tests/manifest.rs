//! Tests of what is in a manifest, and of what prevents one from being made.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use crabbox_sync::directories::directories;
use crabbox_sync::guardrail::{apart_lines, candidate_line};
use crabbox_sync::manifest::{Manifest, ManifestError, Scope};
use crabbox_sync::repo::Repo;
use world::{World, settle};

fn build(world: &World, scope: &Scope) -> Result<Manifest, ManifestError> {
    Manifest::build(&Repo::discover(&world.source()).unwrap(), scope)
}

fn names(manifest: &Manifest) -> Vec<String> {
    manifest
        .entries
        .iter()
        .map(|entry| entry.path.escape_ascii().to_string())
        .collect()
}

#[test]
fn tracked_and_untracked_files_in_scope_are_in_it_and_nothing_else() {
    let world = World::new();
    world.local(
        "printf 'ignored\n' > .gitignore; printf '*.bak\n' > .crabboxignore; mkdir dist node_modules; echo 1 > dist/t; echo 2 > a;
         echo 3 > gone; echo 4 > staged-gone; git add -A; git commit -qm x; echo 5 > dist/u; echo 6 > node_modules/m;
         echo 7 > ignored; echo 8 > b.bak; echo new > new; rm gone; git rm -q staged-gone; echo 22 > a",
    );
    let manifest = build(&world, &Scope::default()).unwrap();
    assert_eq!(
        names(&manifest),
        [".crabboxignore", ".gitignore", "a", "dist/t", "new"]
    );
    assert_eq!(manifest.deleted, [b"gone".to_vec(), b"staged-gone".to_vec()]);
    assert_eq!(
        manifest.protected_tracked,
        [(b"dist/t".to_vec(), b"dist".to_vec())]
    );
    assert_eq!((manifest.dirty().files, manifest.dirty().bytes), (4, 7));
    assert_eq!(
        candidate_line(&manifest),
        "sync candidate: 5 files, 23 B dirty_delta=4 files, 7 B"
    );
    let scope = Scope {
        exclude: vec!["new".to_owned()],
        include: vec!["a".to_owned(), "new".to_owned()],
    };
    assert_eq!(names(&build(&world, &scope).unwrap()), ["a"]);
}

/// `repo DIR` creates a repository with a commit of all its files.
const REPO: &str = "repo() { git init -q --template= $1; git -C $1 add -A; git -C $1 -c user.name=t -c user.email=t@t commit -q --allow-empty -m x; };
    link() { git -C $1 -c advice.addEmbeddedRepo=false add $2; }; ";

#[test]
fn files_of_submodules_are_in_it_by_their_own_rules_and_other_repositories_are_not() {
    let world = World::new();
    world.local(&[REPO, "mkdir -p nested sub/deep sub/cut; echo n > nested/file; repo nested; echo d > sub/deep/file; repo sub/deep; \
        printf '*.o\n' > sub/.gitignore; echo g > sub/gone; echo c > sub/cut/file; echo k > sub/kept; echo s > sub/staged; repo sub; link . sub; \
        mkdir absent; repo absent; link . absent; rm -rf absent; mkdir absent; echo o > top.o; echo s > stranger; repo elsewhere; link . elsewhere; \
        rm -rf elsewhere; ln -s nested elsewhere; \
        cd sub; rm gone; echo kk > kept; echo x > x.o; echo u > new; git rm -q --cached staged; rm staged; printf 'cut\n' > .crabboxignore"].concat());
    let scope = Scope {
        exclude: vec!["/sub/cut/".to_owned()],
        include: Vec::new(),
    };
    let manifest = build(&world, &scope).unwrap();
    let wanted = [
        "elsewhere",
        "stranger",
        "sub/.crabboxignore",
        "sub/.gitignore",
        "sub/deep/file",
        "sub/kept",
        "sub/new",
        "top.o",
    ];
    assert_eq!(names(&manifest), wanted);
    assert_eq!(manifest.submodules, [b"sub".to_vec(), b"sub/deep".to_vec()]);
    assert_eq!(manifest.absent, [b"absent".to_vec()]);
    assert_eq!(manifest.nested, [b"nested".to_vec()]);
    assert_eq!(manifest.deleted, [b"sub/gone".to_vec(), b"sub/staged".to_vec()]);
    assert!(
        manifest
            .staged
            .iter()
            .all(|staged| !staged.path.starts_with(b"sub/")),
        "{:?}",
        manifest.staged
    );
    let dirty: Vec<&[u8]> = manifest
        .entries
        .iter()
        .filter(|entry| entry.changed && entry.path.starts_with(b"sub/"))
        .map(|entry| entry.path.as_slice())
        .collect();
    assert_eq!(dirty, [&b"sub/.crabboxignore"[..], b"sub/kept", b"sub/new"]);
    assert_eq!(
        apart_lines(&manifest),
        [
            "warning: submodules that are not checked out are not synced: absent; bring them with `git submodule update --init`, or leave them out with sync.exclude",
            "warning: repositories inside this one are not synced: nested; make them submodules, or leave them out with sync.exclude"
        ]
    );
    world.local("echo gitdir: /nonexistent/crabbox > sub/deep/.git.new; rm -rf sub/deep/.git; mv sub/deep/.git.new sub/deep/.git");
    let error = build(&world, &scope).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the submodule sub/deep cannot be listed (`git submodule update --init` may mend it, sync.exclude leaves it out): \
             fatal: not a git repository"
        ),
        "{error}"
    );
    // An excluded submodule is not examined, and not reported.
    let scope = Scope {
        exclude: ["/sub/", "/nested/", "/absent/"].map(str::to_owned).to_vec(),
        include: Vec::new(),
    };
    let manifest = build(&world, &scope).unwrap();
    assert_eq!(names(&manifest), ["elsewhere", "stranger", "top.o"]);
    assert!(apart_lines(&manifest).is_empty(), "{:?}", apart_lines(&manifest));
    // With an invalid `.git`, git would report on the surrounding repository.
    world.local("rm -rf sub/deep/.git; mkdir sub/deep/.git");
    let scope = Scope {
        exclude: Vec::new(),
        include: vec!["sub/new".to_owned()],
    };
    let manifest = build(&world, &scope).unwrap();
    assert_eq!(names(&manifest), ["sub/new"]);
    assert_eq!(manifest.absent, [b"absent".to_vec(), b"sub/deep".to_vec()]);
}

#[test]
fn a_submodule_is_synced_and_git_in_the_lease_finds_nothing_to_say_of_it() {
    let world = World::new();
    world.local(&[REPO, "mkdir -p sub/dir; echo 1 > sub/dir/a; echo 2 > sub/b; repo sub; link . sub; echo top > top; git add top; git commit -qm x; echo 3 > sub/new"].concat());
    world.sync();
    world.local("mkdir new; echo 5 > new/x; repo() { git init -q --template= $1; git -C $1 add -A; git -C $1 -c user.name=t -c user.email=t@t commit -qm x; }; repo new; \
        git -c advice.addEmbeddedRepo=false add new; git ls-files --stage > ../here");
    world.sync();
    world.guest("git ls-files --stage | cmp - ../../../here; test $(cat new/x) = 5; test \"$(git status --porcelain)\" = 'A  new'");
    world.local("git rm -qf --cached new; rm -rf new");
    world.sync();
    world.guest("test -z \"$(git status --porcelain)\"; test \"$(cat sub/dir/a sub/b sub/new)\" = \"$(printf '1\n2\n3')\"; test ! -e sub/.git");
    world.local("rm sub/dir/a; echo 4 > sub/b; git -C sub mv b c");
    world.sync();
    world.guest(
        "test ! -e sub/dir; test ! -e sub/b; test $(cat sub/c) = 4; test -z \"$(git status --porcelain)\"",
    );
    settle();
    world.sync();
    assert!(world.sync().skipped);
    // A directory in which a file could appear is included, also in a submodule.
    world.local("mkdir sub/hollow");
    let dirs = directories(&world.manifest(), &Scope::default()).unwrap();
    assert!(dirs.contains(&world.source().join("sub/hollow")), "{dirs:?}");
    // With another commit of a submodule, the tree differs.
    world.local("git -C sub stash -qu");
    world.sync();
    world.guest("test $(cat sub/b) = 2; test -e sub/dir/a; test ! -e sub/new");
}

#[test]
fn a_sparse_checkout_is_an_error_and_no_deletion() {
    let world = World::new();
    world.local(
        "mkdir x y; echo 1 > x/a; echo 2 > y/b; git add -A; git commit -qm x; git sparse-checkout set x",
    );
    let error = build(&world, &Scope::default()).unwrap_err();
    assert!(
        matches!(&error, ManifestError::Hidden { path, count: 1 } if path == "y/b"),
        "{error:?}"
    );
    // Out of scope it does not matter.
    build(
        &world,
        &Scope {
            exclude: vec!["y".to_owned()],
            include: Vec::new(),
        },
    )
    .unwrap();
}

#[test]
fn a_pipe_or_socket_in_the_place_of_a_tracked_file_is_an_error() {
    let world = World::new();
    world.local("echo 1 > a; git add a; rm a; mkfifo a");
    let error = build(&world, &Scope::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a is a named pipe, which cannot be synced: remove it, or leave it out with sync.exclude"
    );
    world.local("rm a");
    let _socket = std::os::unix::net::UnixListener::bind(world.source().join("a")).unwrap();
    assert!(matches!(
        build(&world, &Scope::default()),
        Err(ManifestError::Special { kind: "socket", .. })
    ));
}

#[test]
fn a_tracked_path_beyond_a_new_link_counts_as_deleted() {
    let world = World::new();
    world.local("mkdir d e; echo 1 > d/f; echo 2 > e/f; git add -A; git commit -qm x; rm -r d; ln -s e d");
    let manifest = build(&world, &Scope::default()).unwrap();
    assert_eq!(names(&manifest), ["d", "e/f"]);
    assert_eq!(manifest.deleted, [b"d/f".to_vec()]);
}

#[test]
fn the_fingerprint_moves_with_every_change_and_only_then() {
    let world = World::new();
    world.local("echo 1 > a; echo 2 > b; git add -A; git commit -qm x");
    settle();
    let print = || build(&world, &Scope::default()).unwrap().fingerprint;
    let first = print();
    assert_eq!(first, print());
    for change in ["chmod 755 a", "touch b", "mv a c", "rm b", "ln -s x l"] {
        let before = print();
        world.local(change);
        settle();
        assert_ne!(before, print(), "{change}");
    }
}
