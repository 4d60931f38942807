//! Tests with untrusted repositories: none of their programs runs on this side, and no other repository of
//! the user is synced.
//!
//! Each test first checks that its trap fires with plain git; a trap that cannot fire would prove nothing.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_sync::manifest::{Manifest, ManifestError, Scope};
use crabbox_sync::memory::Memory;
use crabbox_sync::repo::{self, Repo, Vcs};
use world::{World, run, settle};

/// A program that leaves a file behind when it is run.
struct Trap(tempfile::TempDir);

impl Trap {
    fn new() -> Self {
        let trap = Self(tempfile::tempdir().unwrap());
        run(
            trap.0.path(),
            "printf '#!/bin/sh\\necho \"$0 $*\" >> \"${0%%/*}/fired\"\\n' > trap; chmod 755 trap",
        );
        trap
    }

    fn program(&self) -> String {
        self.0.path().join("trap").to_str().unwrap().to_owned()
    }

    /// Whether it was run since the last call.
    fn fired(&self) -> bool {
        std::fs::remove_file(self.0.path().join("fired")).is_ok()
    }

    /// Runs `git` as a user would, to show that the trap works.
    fn fires_with(&self, dir: &Path, words: &[&str]) {
        Cmd::new("git").arg("-C").arg(dir).args(words).capture().unwrap();
        assert!(self.fired(), "plain git {words:?} does not fire the trap");
    }
}

/// Does everything that this side does with a repository before and after a sync, twice, the second time from
/// memory.
fn all_of(world: &World) {
    for _ in 0..2 {
        world.sync();
        settle();
    }
    repo::root(&world.source());
}

/// A repository with a commit and a change.
fn repository() -> World {
    let world = World::new();
    world.local("echo one > a; echo two > b; git add -A; git commit -qm x; echo three >> a; echo new > c");
    world
}

#[test]
fn a_file_system_monitor_does_not_run() {
    let (world, trap) = (repository(), Trap::new());
    world.local(&format!("git config core.fsmonitor {}", trap.program()));
    trap.fires_with(&world.source(), &["status"]);
    all_of(&world);
    assert!(!trap.fired());
}

#[test]
fn included_and_worktree_configuration_does_not_run_either() {
    let (world, trap) = (repository(), Trap::new());
    world.local(&format!(
        "printf '[core]\\nfsmonitor = {}\\n' > .git/more; git config include.path more",
        trap.program()
    ));
    trap.fires_with(&world.source(), &["status"]);
    all_of(&world);
    assert!(!trap.fired());
    world.local(&format!(
        "git config --unset include.path; git config extensions.worktreeConfig true; git config --worktree core.fsmonitor {}",
        trap.program()
    ));
    trap.fires_with(&world.source(), &["status"]);
    all_of(&world);
    assert!(!trap.fired());
}

#[test]
fn filters_do_not_run_whatever_they_are_called() {
    for variable in ["clean", "process"] {
        for name in ["x", "a.b", "x y", "\u{fc}", "a=b", "=", "a=b.clean=c"] {
            let (world, trap) = (repository(), Trap::new());
            world.local(&format!(
                "git config 'filter.{name}.{variable}' {}; git config 'filter.{name}.required' true; \
                 printf '* filter=%s\\n' '{name}' > .gitattributes; touch -d @1 a b",
                trap.program()
            ));
            if !name.contains(' ') {
                trap.fires_with(&world.source(), &["--no-optional-locks", "status"]);
            }
            all_of(&world);
            world.local("touch -d @2 b");
            all_of(&world);
            assert!(!trap.fired(), "filter.{name}.{variable}");
        }
    }
}

#[test]
fn what_submodules_configure_does_not_run() {
    let (world, trap) = (repository(), Trap::new());
    let other = World::new();
    other.local("echo s > s; git add -A; git commit -qm s");
    world.local(&format!(
        "git -c protocol.file.allow=always submodule --quiet add {} sub; git commit -qm sub
         git -C sub config core.fsmonitor {trap}; git -C sub config filter.x.clean {trap}; echo '* filter=x' > sub/.gitattributes
         echo more >> sub/s; touch -d @1 sub/s",
        other.source().display(),
        trap = trap.program()
    ));
    trap.fires_with(&world.source().join("sub"), &["--no-optional-locks", "status"]);
    all_of(&world);
    assert!(!trap.fired());
}

#[test]
fn a_promisor_remote_is_not_asked_for_what_is_missing() {
    let (world, trap) = (repository(), Trap::new());
    world.local(&format!(
        "git config remote.evil.url 'ext::{}'; git config remote.evil.promisor true; git config protocol.ext.allow always
         git config extensions.partialClone evil; rm \".git/objects/$(git rev-parse HEAD:b | sed 's,..,&/,')\"",
        trap.program()
    ));
    trap.fires_with(&world.source(), &["cat-file", "-p", "HEAD:b"]);
    all_of(&world);
    assert!(!trap.fired());
}

#[test]
fn programs_that_no_command_of_ours_should_reach_do_not_run() {
    let (world, trap) = (repository(), Trap::new());
    world.local(&format!(
        "for key in core.sshCommand core.gitProxy core.askPass core.pager core.editor core.alternateRefsCommand credential.helper \
         diff.external diff.x.textconv diff.x.command merge.x.driver gpg.program interactive.diffFilter uploadpack.packObjectsHook \
         remote.origin.uploadpack; do git config $key {trap}; done
         git config pager.status {trap}; git config remote.origin.url host:x; git config log.showSignature true; \
         git config alias.status '!{trap}'; git config alias.ls-files '!{trap}'; echo '* diff=x merge=x' > .gitattributes; \
         mkdir -p .git/hooks hooks; cp {trap} .git/hooks/post-index-change; cp {trap} hooks/post-index-change; \
         git config core.hooksPath hooks",
        trap = trap.program()
    ));
    all_of(&world);
    assert!(!trap.fired());
}

/// A bare repository, committed file by file into a plain clone.
fn with_bare_inside(trap: &Trap) -> (World, PathBuf) {
    let world = repository();
    world.local(&format!(
        "git init -q --bare vendor/lib; rm -r vendor/lib/hooks vendor/lib/info; touch vendor/lib/refs/keep vendor/lib/objects/keep
         printf '[core]\\nrepositoryformatversion = 0\\nbare = false\\nworktree = ../..\\nfsmonitor = {}\\n' > vendor/lib/config
         git add -A; git commit -qm y",
        trap.program()
    ));
    let inside = world.source().join("vendor/lib");
    (world, inside)
}

#[test]
fn a_bare_repository_in_the_tree_is_data_for_who_stands_in_it() {
    let trap = Trap::new();
    let (world, inside) = with_bare_inside(&trap);
    trap.fires_with(&inside, &["status"]);
    let found = Repo::discover(&inside).unwrap();
    assert!(matches!(found.vcs, Vcs::Bare), "{found:?}");
    assert!(matches!(found.check_syncable(), Err(ManifestError::Bare { .. })));
    assert_eq!(repo::root(&inside), inside);
    assert!(!trap.fired());
    // The surrounding tree is synced as usual.
    assert!(matches!(Repo::discover(&world.source()).unwrap().vcs, Vcs::Git));
}

/// Another repository of the same user, with a secret in it.
fn victim() -> World {
    let victim = World::new();
    victim.local("echo secret > secret; git add -A; git commit -qm secret; echo more > untracked");
    victim
}

#[track_caller]
fn redirected(dir: &Path) {
    let found = Repo::discover(dir).unwrap();
    assert!(matches!(found.vcs, Vcs::Redirected(_)), "{found:?}");
    assert_eq!(found.root, dir.canonicalize().unwrap());
    assert_eq!((&found.head, &found.origin), (&None, &None));
    assert!(matches!(
        found.check_syncable(),
        Err(ManifestError::Redirected { .. })
    ));
    assert_eq!(repo::root(dir), dir);
}

#[test]
fn a_configuration_that_names_another_working_tree_is_refused() {
    let (world, victim) = (repository(), victim());
    world.local(&format!("git config core.worktree {}", victim.source().display()));
    redirected(&world.source());
}

#[test]
fn a_configuration_that_names_a_directory_around_it_is_refused() {
    let outer = victim();
    outer.local("git init -q --template= inner && git -C inner config core.worktree ../..");
    redirected(&outer.source().join("inner"));
    // Also if the directory around it is not a repository.
    let plain = tempfile::tempdir().unwrap();
    run(
        plain.path(),
        "echo secret > secret; git init -q --template= inner && git -C inner config core.worktree ../..",
    );
    redirected(&plain.path().join("inner"));
}

#[test]
fn a_git_file_or_link_to_another_repository_is_refused() {
    let victim = victim();
    let git_dir = victim.source().join(".git");
    for make in [
        format!("echo 'gitdir: {}' > .git", git_dir.display()),
        format!("ln -s {} .git", git_dir.display()),
        format!("git init -q . && echo {} > .git/commondir", git_dir.display()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &make);
        redirected(dir.path());
    }
    let message = {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &format!("ln -s {} .git", git_dir.display()));
        Repo::discover(dir.path())
            .unwrap()
            .check_syncable()
            .unwrap_err()
            .to_string()
    };
    assert!(message.contains("config core.worktree"), "{message}");
}

#[test]
fn a_git_directory_with_links_into_another_repository_is_refused() {
    let victim = victim();
    let git_dir = victim.source().join(".git");
    // If HEAD is a link, git requires its target to begin with `refs/`.
    let way = format!("refs/{}", "../".repeat(12));
    for (name, way) in [
        ("index", ""),
        ("HEAD", &*way),
        ("refs", ""),
        ("refs/heads", ""),
        ("refs/heads/main", ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        run(
            dir.path(),
            &format!(
                "git init -q --template= -b main . && rm -rf .git/objects .git/{name} && ln -s {theirs}/objects .git/objects && \
                 ln -s {way}{theirs}/{name} .git/{name}",
                theirs = git_dir.display()
            ),
        );
        redirected(dir.path());
    }
    // Whatever way HEAD leads to a link: git skips blanks, follows names, and trims what follows them.
    let theirs = git_dir.display();
    for head in [
        "printf 'ref:refs/heads/x\\n' > .git/HEAD".to_owned(),
        "printf 'ref:\\trefs/heads/x\\n' > .git/HEAD".to_owned(),
        "(printf 'ref: refs/heads/x'; yes '' | head -n 9000) > .git/HEAD".to_owned(),
        "printf 'ref: refs/heads/y\\n' > .git/HEAD; printf 'ref: refs/heads/x\\n' > .git/refs/heads/y"
            .to_owned(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        run(
            dir.path(),
            &format!(
                "git init -q --template= -b main . && mkdir -p .git/objects/info && echo {theirs}/objects > .git/objects/info/alternates && \
                 ln -s {theirs}/refs/heads/main .git/refs/heads/x && {head} && git log -1 >/dev/null"
            ),
        );
        redirected(dir.path());
    }
    // A HEAD that is a link is an old form of a symbolic ref, to a branch that need not exist yet.
    let old = tempfile::tempdir().unwrap();
    run(
        old.path(),
        "git init -q --template= -b main . && rm .git/HEAD && ln -s refs/heads/main .git/HEAD && git status",
    );
    let found = Repo::discover(old.path()).unwrap();
    assert!(matches!(found.vcs, Vcs::Git), "{found:?}");
    // Links inside a repository are legitimate, and objects may be shared.
    let own = repository();
    own.local("rm -rf .git/rr && mv .git/refs .git/rr && ln -s rr .git/refs; git pack-refs --all");
    let found = Repo::discover(&own.source()).unwrap();
    assert!(matches!(found.vcs, Vcs::Git), "{found:?}");
    let shared = tempfile::tempdir().unwrap();
    run(
        shared.path(),
        &format!(
            "git clone -q --shared --template= {} c",
            victim.source().display()
        ),
    );
    let found = Repo::discover(&shared.path().join("c")).unwrap();
    assert!(matches!(found.vcs, Vcs::Git), "{found:?}");
}

#[test]
fn a_git_directory_that_leads_back_does_not_lead_on_to_another_repository() {
    let victim = victim();
    let git_dir = victim.source().join(".git");
    // Each claims to belong to this tree, in one of the two ways that git uses.
    for back in [
        "echo \"$PWD/.git\" > g/gitdir",
        "git config --file g/config core.worktree \"$PWD\"",
    ] {
        let dir = tempfile::tempdir().unwrap();
        run(
            dir.path(),
            &format!(
                "git init -q --template= .; mv .git g; echo 'gitdir: g' > .git; echo {} > g/commondir; {back}",
                git_dir.display()
            ),
        );
        redirected(dir.path());
    }
}

#[test]
fn a_token_in_the_origin_s_address_reaches_neither_the_lease_nor_a_message() {
    for (address, seen) in [
        (
            "https://me:s3cret@h.invalid/me/thing.git",
            "https://h.invalid/me/thing.git",
        ),
        ("https://s3cret@h.invalid", "https://h.invalid"),
        ("me:s3cret@h.invalid:me/thing", "h.invalid:me/thing"),
    ] {
        let world = repository();
        world.local(&format!("git remote add origin {address}"));
        let found = Repo::discover(&world.source()).unwrap();
        assert_eq!(found.origin.as_ref().unwrap().as_str(), seen);
        assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");
        world.sync();
        let lease = world.destination().lease_dir();
        let told = Cmd::new("git")
            .args(["config", "remote.origin.url"])
            .cwd(world.workdir())
            .run()
            .unwrap();
        assert_eq!(told.stdout_text(), seen);
        let leaked = Cmd::new("grep")
            .args(["-rl", "s3cret", &lease])
            .capture()
            .unwrap();
        assert_eq!(leaked.stdout_text(), "", "{address}");
    }
}

#[test]
fn a_path_of_the_index_stays_in_the_tree() {
    let world = World::new();
    world.local("echo secret > ../s; mkdir xx; echo x > xx/s; git add .");
    let repo = Repo::discover(&world.source()).unwrap();
    // git does not write such a name but reads it: replace a name of the same length, and leave out the
    // checksum (gitformat-index(5)) as with `index.skipHash`.
    let index = world.source().join(".git/index");
    let mut bytes = std::fs::read(&index).unwrap();
    let at = bytes.windows(4).position(|name| name == b"xx/s").unwrap();
    bytes[at..at + 2].copy_from_slice(b"..");
    let end = bytes.len() - 20;
    bytes[end..].fill(0);
    std::fs::write(&index, &bytes).unwrap();
    world.local("git ls-files | grep -qx ../s");
    let refused = Manifest::build(&repo, &Scope::default()).unwrap_err();
    assert!(
        matches!(&refused, ManifestError::Unreadable { line, .. } if line.contains("../s")),
        "{refused:?}"
    );
}

#[test]
fn a_tree_of_another_user_is_refused_with_the_whole_of_what_git_advises() {
    let world = repository();
    world.local("chown -R 4321:4321 .");
    let refused = Repo::discover(&world.source())
        .unwrap()
        .check_syncable()
        .unwrap_err()
        .to_string();
    assert!(refused.contains("dubious ownership"), "{refused}");
    assert!(
        refused.contains("git config --global --add safe.directory"),
        "{refused}"
    );
}

#[test]
fn a_submodule_that_leads_to_another_repository_stops_the_sync() {
    let (world, victim) = (repository(), victim());
    let other = World::new();
    other.local("echo s > s; git add -A; git commit -qm s");
    world.local(&format!(
        "git -c protocol.file.allow=always submodule --quiet add {} sub; git commit -qm sub; echo 'gitdir: {}' > sub/.git",
        other.source().display(),
        victim.source().join(".git").display()
    ));
    let refused = Manifest::build(&Repo::discover(&world.source()).unwrap(), &Scope::default());
    assert!(
        matches!(refused, Err(ManifestError::Submodule { .. })),
        "{refused:?}"
    );
}

#[test]
fn worktrees_submodules_and_separate_directories_are_what_they_seem() {
    let world = repository();
    let other = World::new();
    other.local("echo s > s; git add -A; git commit -qm s");
    world.local(&format!(
        "git -c protocol.file.allow=always submodule --quiet add {} sub; git commit -qm sub; git worktree add -q ../tree; \
         git init -q --separate-git-dir ../apart.git ../apart; ln -s . here",
        other.source().display()
    ));
    for dir in ["w", "w/sub", "w/here", "tree", "apart"] {
        let dir = world.path().join(dir);
        let found = Repo::discover(&dir).unwrap();
        assert!(matches!(found.vcs, Vcs::Git), "{}: {found:?}", dir.display());
        assert_eq!(repo::root(&dir), found.root);
    }
}

#[test]
fn what_is_remembered_of_a_tree_is_not_believed_when_a_filter_came() {
    let (world, trap) = (repository(), Trap::new());
    let memory = Memory::of(&world.path().join("kept"), &world.source(), Vec::new());
    let build = || {
        let found = Repo::discover(&world.source()).unwrap();
        Manifest::build_remembering(&found, &Scope::default(), &memory).unwrap()
    };
    settle();
    build();
    world.local(&format!(
        "git config filter.x.clean {}; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes; touch -d @1 b",
        trap.program()
    ));
    build();
    world.local("touch -d @2 b");
    build();
    assert!(!trap.fired());
}

/// Only one place in the shipped code starts git on this side; a second one would bring every trap back.
#[test]
fn git_is_started_in_one_place() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = Cmd::new("grep")
        .args(["-rlE", r#"Cmd::new\(\s*"(/usr/bin/)?git""#, "--include=*.rs"])
        .arg(crates)
        .run()
        .unwrap();
    let places: Vec<String> = found
        .stdout_text()
        .lines()
        .map(|path| path.trim_start_matches(crates.to_str().unwrap()).to_owned())
        .filter(|path| path.contains("/src/"))
        .collect();
    // The test kit creates repositories, and is not shipped.
    let allowed = [
        "/crabbox-sync/src/git.rs",
        // Creates the tree of a proof, in its own directory, with its own home and configuration.
        "/crabbox-engine/src/host/proof/fixture.rs",
        "/crabbox-testbase/src/compat.rs",
        "/crabbox-testkit/src/trees.rs",
    ];
    let unexpected: Vec<&String> = places
        .iter()
        .filter(|path| !allowed.contains(&path.as_str()) && !only_in_tests(&crates.join(&path[1..])))
        .collect();
    assert!(places.iter().any(|path| path == allowed[0]), "{places:?}");
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

/// Whether every such call in the file comes after its `#[cfg(test)]`.
fn only_in_tests(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap();
    let before = text.split("#[cfg(test)]").next().unwrap_or_default();
    !before.contains("Cmd::new(\"git\")")
}
