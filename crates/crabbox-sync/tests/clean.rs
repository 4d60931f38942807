//! Tests that git in the lease agrees with git here about what is clean, and reports the rest in the same
//! way: `git status --short` on both sides, with none of this side's configuration, filters or programs in
//! the lease.

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
use crabbox_sync::manifest::{Manifest, Scope};
use crabbox_sync::memory::Memory;
use crabbox_sync::repo::Repo;
use crabbox_sync::transfer::{Options, Outcome};
use world::{Heard, World, settle};

/// git's status in a directory, without the configuration of the user who runs this test.
fn status(dir: &Path) -> String {
    let out = Cmd::new("git")
        .args(["status", "--short"])
        .cwd(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .run()
        .unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// Runs git status here (which may refresh its index), syncs the tree, and checks that both sides report
/// `wanted`. Nothing that was seeded may fail.
fn check_in(world: &World, scope: &Scope, wanted: &str) -> Outcome {
    assert_eq!(status(&world.source()), wanted, "here");
    let manifest = Manifest::build(&Repo::discover(&world.source()).unwrap(), scope).unwrap();
    let heard = Heard::default();
    let outcome = world.sync_as(&manifest, &Options::default(), &heard).unwrap();
    assert_eq!(heard.warnings(), Vec::<String>::new());
    assert_eq!(status(&world.workdir()), wanted, "there");
    outcome
}

/// The same with the whole tree, from memory where that is trusted.
fn check(world: &World, wanted: &str) -> Outcome {
    assert_eq!(status(&world.source()), wanted, "here");
    let outcome = world.sync();
    assert_eq!(status(&world.workdir()), wanted, "there");
    outcome
}

const COMMIT: &str = "git add -A; git commit -qm x; ";

#[test]
fn line_ends_are_what_the_settings_and_attributes_make_of_them() {
    let world = World::new();
    world.local(
        &["printf 'a\\nb\\n' > t; printf '* text=auto\\nu text eol=crlf\\nraw -text\\n' > .gitattributes; printf '1\\n' > u; printf '1\\r\\n' > raw; ", COMMIT,
          "git config core.autocrlf true; rm t u; git checkout -q t u; grep -q \"$(printf '\\r')\" t u"].concat(),
    );
    check(&world, "");
    // A changed setting alone makes the repository be seeded again.
    world.local("git config core.autocrlf input; rm t; git checkout -q t; printf 'x\\r\\n' > t; git add t 2>/dev/null");
    check(&world, "M  t\n");
    world.local("git commit -qm crlf; git config core.autocrlf false; git config core.eol crlf; rm t; git checkout -q t");
    check(&world, "");
    // Attributes of this clone only, and their removal.
    world.local("git config --unset core.eol; mkdir -p .git/info; printf 'raw text eol=crlf\\n' > .git/info/attributes; rm u raw; git checkout -q u raw; git add --renormalize raw; git commit -qm raw");
    check(&world, "");
    world.guest("touch raw; git status --short > /dev/null; test -z \"$(git diff raw)\"; printf 'y\\r\\n' >> raw; test $(git diff --numstat raw | cut -f1) = 1");
    world.local(
        "rm .git/info/attributes; printf '1\\n' > raw; git add raw; git commit -q --allow-empty -m back",
    );
    check(&world, "");
    world.guest("test ! -e .git/info/attributes");
}

#[test]
fn encodings_and_keywords_are_no_change() {
    let world = World::new();
    world.local(
        &["printf '*.u16 working-tree-encoding=UTF-16\\n*.id ident\\n' > .gitattributes; printf 'h\\303\\251\\n' | iconv -t UTF-16 > a.u16; printf '$Id$\\n' > k.id; ", COMMIT,
          "rm k.id a.u16; git checkout -q .; grep -q 'Id: ' k.id"].concat(),
    );
    check(&world, "");
    world.local("printf 'w\\n' | iconv -t UTF-16 > a.u16");
    check(&world, " M a.u16\n");
}

#[test]
fn modes_and_links_that_do_not_count_here_do_not_count_there() {
    let world = World::new();
    world.local(&["echo 1 > a; echo 2 > b; chmod 755 b; ln -s a l; ", COMMIT].concat());
    world.local("git config core.fileMode false; chmod 755 a; chmod 644 b");
    check(&world, "");
    world.local("git config core.symlinks false; rm l; git checkout -q l; test ! -L l");
    check(&world, "");
    world.local("git config core.fileMode true");
    check(&world, " M a\n M b\n");
    world.local("git config core.symlinks true");
    check(&world, " M a\n M b\n T l\n");
}

const FILTER: &str = "git config filter.u.clean 'tr a-z A-Z'; git config filter.u.smudge 'tr A-Z a-z'; git config filter.u.required true; ";

#[test]
fn what_a_filter_made_is_clean_without_the_filter_and_stays_so() {
    let world = World::new();
    world.local(
        &[
            FILTER,
            "echo '*.u filter=u' > .gitattributes; echo abc > f.u; echo def > g.u; echo 1 > plain; ",
            COMMIT,
        ]
        .concat(),
    );
    check(&world, "");
    world.guest(
        "test \"$(cat f.u)\" = abc; test -z \"$(git config --get-regexp '^filter')\"; git diff --exit-code",
    );
    // One file changes, one only gets another time, and then both are reverted.
    world.local("echo more >> f.u; touch g.u");
    settle();
    check(&world, " M f.u\n");
    world.local("git checkout -q f.u");
    settle();
    check(&world, "");
    assert!(world.sync().skipped);
    // A commit, an edit of another file, another branch.
    world.local(&["echo new > h.u; echo more >> f.u; ", COMMIT].concat());
    check(&world, "");
    world.local("echo 2 > plain; echo n > new.u");
    check(&world, " M plain\n?? new.u\n");
    world.local("git add new.u; git checkout -q -b other; git rm -q --cached g.u");
    check(&world, "D  g.u\nA  new.u\n M plain\n?? g.u\n");
}

#[test]
fn pointers_of_large_files_are_clean_whether_they_were_fetched_or_not() {
    let world = World::new();
    // Like git-lfs: a file that already is a pointer stays one.
    world.local(
        "printf '#!/bin/sh\\nin=$(cat; echo .); in=${in%%.}; case $in in pointer*) printf %%s \"$in\";; *) printf \"pointer %%s\\\\n\" \"$(printf %%s \"$in\" | cksum)\";; esac\\n' > ../clean; chmod 755 ../clean; \
         git config filter.lfs.clean ../clean; git config filter.lfs.smudge cat; git config filter.lfs.required true; \
         echo '*.bin filter=lfs diff=lfs merge=lfs -text' > .gitattributes; echo big > a.bin; echo large > b.bin",
    );
    world.local(
        &[
            COMMIT,
            "git cat-file -p :b.bin > b.bin; git add b.bin; grep -q ^pointer b.bin; grep -q big a.bin",
        ]
        .concat(),
    );
    check(&world, "");
    world.local("echo other > a.bin");
    check(&world, " M a.bin\n");
    // Fetched later: the same commit with other content, and still clean.
    world.local("echo big > a.bin; echo large > b.bin; git add b.bin");
    check(&world, "");
}

#[test]
fn what_git_is_told_not_to_look_at_is_not_looked_at() {
    let world = World::new();
    world.local(
        &[
            "echo 1 > skipped; echo 2 > assumed; echo 3 > both; echo 4 > gone; ",
            COMMIT,
        ]
        .concat(),
    );
    world.local(
        "git update-index --skip-worktree skipped both; git update-index --assume-unchanged assumed both gone; \
         for f in skipped assumed both; do echo local >> $f; done",
    );
    check(&world, "");
    world.guest(
        "test $(git ls-files -v | cut -c1 | tr -d '\\n') = hshS; test \"$(tail -n1 skipped)\" = local",
    );
    world
        .local("git update-index --no-skip-worktree skipped; git update-index --no-assume-unchanged assumed");
    check(&world, " M assumed\n M skipped\n");
    world.local("git checkout -q skipped assumed");
    check(&world, "");
}

#[test]
fn what_is_kept_out_of_the_lease_is_no_change_there() {
    let world = World::new();
    world.local(
        &[
            "mkdir x y z; echo 1 > x/a; echo 2 > y/b; echo 3 > z/c; echo 4 > d; ",
            COMMIT,
        ]
        .concat(),
    );
    let scope = |exclude: &[&str]| Scope {
        exclude: exclude.iter().map(|rule| (*rule).to_owned()).collect(),
        include: Vec::new(),
    };
    check_in(&world, &scope(&["/z/"]), "");
    world.guest("test ! -e z");
    for cone in ["--no-cone /x/ /d", "--cone x", "--cone --sparse-index x"] {
        world.local(&format!("git sparse-checkout set {cone}; test ! -e y"));
        check_in(&world, &scope(&["/y/", "/z/"]), "");
        world.local("echo more >> x/a");
        check_in(&world, &scope(&["/y/", "/z/"]), " M x/a\n");
        world.local("git checkout -q x/a");
    }
    world.local("git sparse-checkout disable");
    check_in(&world, &scope(&[]), "");
    let include = Scope {
        exclude: Vec::new(),
        include: vec!["x".to_owned()],
    };
    check_in(&world, &include, "");
}

#[test]
fn an_index_with_more_than_files_is_the_same_there() {
    for format in ["sha1", "sha256"] {
        let world = World::new();
        world.local(&format!("rm -rf .git; git init -q --template= --object-format={format} -b main . && printf '[user]\\nname=t\\nemail=t@t\\n' >> .git/config"));
        world.local(&["echo 1 > a; echo 2 > b; echo 3 > c; ", COMMIT].concat());
        world.local("echo later > later; chmod 755 later; git add -N later; echo 4 > n; git add n; echo 5 >> n; git rm -q c");
        check(&world, "D  c\n A later\nAM n\n");
        world.guest("git diff --name-only | grep -qx later");
        world.local(
            "git reset -q --hard; git checkout -q -b other; echo theirs > a; git rm -q b; git commit -qam theirs; git checkout -q main; \
             echo ours > a; echo ours > b; git commit -qam ours; git merge -q other >/dev/null 2>&1 || true",
        );
        check(&world, "UU a\nUD b\n");
        world.guest("test $(git ls-files -u | wc -l) = 5; git cat-file -e :1:a; git cat-file -e :3:a");
        world.local("git checkout -q --ours a; git add a b");
        check(&world, "");
    }
}

#[test]
fn submodules_are_no_change_whether_they_are_there_or_not() {
    let world = World::new();
    world.local(
        "for s in here absent out; do git init -q --template= $s; echo $s > $s/f; git -C $s add f; git -C $s -c user.name=t -c user.email=t@t commit -qm x; \
         git -c advice.addEmbeddedRepo=false add $s; done; echo 1 > a; git add a; git commit -qm x; rm -rf absent; mkdir absent",
    );
    let scope = Scope {
        exclude: vec!["/out/".to_owned()],
        include: Vec::new(),
    };
    check_in(&world, &scope, "");
    world.guest("test -d absent; test ! -e out; test -e here/f");
    world.local("rmdir absent; echo 2 > a");
    check_in(&world, &scope, " M a\n D absent\n");
}

#[test]
fn settings_decide_what_is_shown_and_none_that_runs_anything_travels() {
    let world = World::new();
    world.local(&["echo 1 > a; printf x > 'h\\303\\251'; ", COMMIT].concat());
    world.local(
        "git config status.showUntrackedFiles no; git config core.quotePath false; git config core.pager evil; git config core.fsmonitor evil; \
         git config core.sshCommand evil; git config core.hooksPath /evil; git config alias.st '!evil'; git config filter.e.clean evil; \
         git config core.attributesFile /etc/passwd; echo 2 > new; echo 3 > a",
    );
    check(&world, " M a\n");
    world.guest("! grep -r evil .git; ! grep -r root: .git");
    world.local("git config --unset status.showUntrackedFiles");
    check(&world, " M a\n?? new\n");
    // An attributes file that is a link could point anywhere.
    world.local("mkdir -p .git/info; ln -s /etc/passwd .git/info/attributes; echo 4 > a; git add a");
    check(&world, "M  a\n?? new\n");
    world.guest("test ! -e .git/info/attributes");
}

#[test]
fn without_the_commit_of_here_nothing_looks_unchanged_against_an_older_one() {
    let world = World::new();
    world.local(&["echo 1 > a; ", COMMIT].concat());
    check(&world, "");
    settle();
    // A commit that cannot be packed.
    world.local(
        "echo 2 > a; git commit -qam two; rm -f .git/objects/$(git rev-parse HEAD:a | sed 's,..,&/,')",
    );
    world.sync();
    world.guest("test \"$(git status --short)\" = ' M a' && test \"$(cat a)\" = 2");
}

#[test]
fn a_file_that_changes_while_git_looks_is_not_called_unchanged() {
    let world = World::new();
    world.local(
        &[
            FILTER,
            "echo '*.u filter=u' > .gitattributes; echo abc > f.u; echo 1 > a; ",
            COMMIT,
        ]
        .concat(),
    );
    // With a time in the future, like a file that was written while git was running.
    world.local("touch -d '1 hour' a");
    world.sync();
    // git in the lease has to compare it.
    world.guest("test $(git ls-files --debug a | grep -c 'mtime: 0:0') = 1");
}

#[test]
fn an_index_that_the_guest_changed_is_not_trusted() {
    let world = World::new();
    world.local(
        &[
            FILTER,
            "echo '*.u filter=u' > .gitattributes; echo abc > f.u; echo 1 > a; echo 2 > b; ",
            COMMIT,
        ]
        .concat(),
    );
    settle();
    check(&world, "");
    // A change staged in the lease is reverted by the sync, which must not take the staged object for the
    // file that arrived.
    world.guest("echo 9 > a; git add a");
    check(&world, "");
    world.guest("git update-index --index-version 4; git update-index --split-index; touch f.u");
    check(&world, "");
    world.guest("rm .git/index; touch f.u");
    check(&world, "");
    world.guest("printf garbage > .git/index; touch f.u");
    check(&world, "");
    // With the same size in the same second, a change that the guest makes after a sync is still noticed.
    world.guest("echo 8 > a; test \"$(git status --short)\" = ' M a'");
}

/// The lease gets the commit itself, and no replacement.
#[test]
fn what_a_replacement_made_is_a_change_there() {
    let world = World::new();
    world.local(&["echo 1 > a; echo 1 > b; ", COMMIT].concat());
    world.local("echo 2 > a; git commit -qam two; git checkout -q -b x HEAD~; git replace HEAD main; git reset -q --hard; test $(cat a) = 2");
    settle();
    for _ in 0..2 {
        assert_eq!(status(&world.source()), "");
        world.sync();
        assert_eq!(status(&world.workdir()), "M  a\n");
        world.guest("test \"$(git show HEAD:a) $(git show :a) $(cat a)\" = '1 2 2'");
        world.local("touch a");
        settle();
    }
    world.local("git replace -d HEAD; git reset -q --hard");
    check(&world, "");
}

#[test]
fn what_is_ignored_in_this_clone_alone_is_ignored_there_too() {
    let world = World::new();
    world.local(
        &[
            "echo 1 > a; ",
            COMMIT,
            "mkdir -p .git/info; printf 'build/' > .git/info/exclude",
        ]
        .concat(),
    );
    let made = "mkdir -p build; echo 1 > build/x; echo 1 > own.log; echo 1 > a.o; git status --short";
    let seen = |wanted: &str| {
        world.guest(&format!(
            "test \"$({made} | tr '\\n' ' ')\" = '{wanted}'; rm -r build own.log a.o"
        ));
    };
    check(&world, "");
    seen("?? a.o ?? own.log ");
    // The guest's own rules stay, and win.
    world.guest("printf '*.log\\n!a.o\\n' >> .git/info/exclude");
    seen("?? a.o ");
    world.local("printf '\\357\\273\\277*.o\\n' > .git/info/exclude");
    assert!(!check(&world, "").skipped);
    seen("?? a.o ?? build/ ");
    world.guest("sed -i '/!a.o/d' .git/info/exclude");
    seen("?? build/ ");
    // A linked worktree has those of its main repository.
    world.local("mv .git ../main; git --git-dir=../main config core.bare true; git --git-dir=../main worktree add -q ../linked; mv ../linked/.git .; git --git-dir=../main worktree repair . >/dev/null");
    assert_eq!(world.warned(), Vec::<String>::new());
    seen("?? build/ ");
    // Once they are gone here, they are there too.
    world.local("rm ../main/info/exclude");
    check(&world, "");
    seen("?? a.o ?? build/ ");
    world.guest("test $(wc -l < .git/info/exclude) = 2");
}

#[test]
fn ignore_rules_that_a_repository_names_do_not_travel() {
    let world = World::new();
    world.local(
        &[
            "echo 1 > a; ",
            COMMIT,
            "mkdir -p .git/info; ln -s /etc/passwd .git/info/exclude",
        ]
        .concat(),
    );
    check(&world, "");
    world.local("git config core.excludesFile /etc/passwd; git commit -q --allow-empty -m two");
    check(&world, "");
    world.local("rm .git/info/exclude; head -c 1100000 /dev/zero | tr '\\0' '#' > .git/info/exclude; git commit -q --allow-empty -m three");
    check(&world, "");
    world.guest("test \"$(cat .git/info/exclude)\" = /.crabbox/");
}

#[test]
fn what_is_ignored_for_this_user_is_ignored_there_too() {
    let world = World::new();
    world.local(
        &[
            "echo 1 > a; ",
            COMMIT,
            "mkdir ../git; echo '*.o' > ../rules; ln -s ../rules ../git/ignore",
        ]
        .concat(),
    );
    let file = world.path().join("git/ignore");
    let memory = Memory::of(&world.path().join("kept"), &world.source(), vec![file]);
    let repo = || Repo::discover(&world.source()).unwrap();
    let sync = || {
        let manifest = Manifest::build_remembering(&repo(), &Scope::default(), &memory).unwrap();
        world.sync_manifest(&manifest)
    };
    sync();
    world.guest("echo 1 > a.o; test -z \"$(git status --short)\"");
    world.local("echo '*.p' > ../rules");
    assert!(!sync().skipped);
    world.guest("test \"$(git status --short)\" = '?? a.o'");
}
