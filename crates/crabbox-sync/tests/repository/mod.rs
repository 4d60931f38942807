//! The repository in the lease after something went wrong with it, or stands in its way: the next sync makes
//! it the client's again.

use crabbox_host::command::Cmd;

use super::assert_same_repository;
use super::world::{World, settle};

/// Syncs, without a warning, and finds the same on both sides.
#[track_caller]
fn follows(world: &World, what: &str) {
    assert_eq!(world.warned(), Vec::<String>::new(), "{what}");
    assert_same_repository(world);
    world.guest("test -z \"$(ls -A ../.crabbox-sync/w/tmp)\"");
}

/// A repository with one commit, which the lease has.
#[track_caller]
fn synced() -> World {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm one");
    follows(&world, "first");
    world
}

#[test]
fn a_repository_that_git_cannot_use_is_moved_away_and_made_again() {
    for spoilt in [
        "rm .git/HEAD",
        ": > .git/HEAD",
        "echo garbage > .git/config",
        "git config core.repositoryformatversion 1; git config extensions.nosuch true",
        "rm -rf .git; echo gitdir: /nowhere > .git",
        "rm -rf .git; mkdir ../elsewhere; ln -s ../elsewhere .git",
        "rm -rf .git/objects",
    ] {
        let world = synced();
        world.guest(spoilt);
        follows(&world, spoilt);
        world.guest("git status -s");
        settle();
        // What was made a moment ago is looked at once more.
        world.sync();
        assert!(world.sync().skipped, "{spoilt}");
    }
}

#[test]
fn commits_of_a_guest_whose_repository_is_made_again_are_kept() {
    let world = synced();
    world.guest("git -c user.name=g -c user.email=g@g commit -q --allow-empty -m guest; git rev-parse HEAD > ../guest");
    world.guest("git config extensions.nosuch true; git config core.repositoryformatversion 1");
    follows(&world, "spoilt");
    world.guest(
        "a=$(ls -d ../.crabbox-sync/*/git-aside); sed -i /nosuch/d $a/config; test \"$(git --git-dir=$a log --format=%s -1)\" = guest",
    );
}

#[test]
fn of_repositories_that_were_moved_away_the_last_one_is_kept() {
    let world = synced();
    for message in ["first", "second"] {
        world.guest(&format!(
            "git -c user.name=g -c user.email=g@g commit -q --allow-empty -m {message}"
        ));
        world.guest("git config extensions.nosuch true; git config core.repositoryformatversion 1");
        follows(&world, message);
        world.guest(&format!(
            "cd ../.crabbox-sync/*/; test \"$(echo git-aside*)\" = git-aside; sed -i /nosuch/d git-aside/config; \
             test \"$(git --git-dir=git-aside log --format=%s -1)\" = {message}"
        ));
    }
}

#[test]
fn settings_that_lead_git_away_from_the_tree_do_not_last() {
    for led in [
        "git config core.bare true",
        "git config core.worktree /tmp",
        "git config core.worktree /tmp; git config --add core.worktree /",
    ] {
        let world = World::new();
        world.local("echo 1 > a; git add -A; git commit -qm one; echo 2 >> a");
        follows(&world, "first");
        world.guest(led);
        follows(&world, led);
    }
}

#[test]
fn a_repository_whose_ids_have_another_length_is_made_again() {
    for (before, after) in [("sha1", "sha256"), ("sha256", "sha1")] {
        for commit in ["git commit -qm one", "true"] {
            let world = World::new();
            let format = |format: &str| {
                world.local(&format!(
                    "rm -rf .git; git init -q --object-format={format} -b main .; \
                     git config user.name t; git config user.email t@t; date +%N > a; git add a; {commit}"
                ));
            };
            format(before);
            follows(&world, before);
            format(after);
            follows(&world, after);
        }
    }
}

#[test]
fn a_damaged_repository_inside_another_one_leaves_that_one_alone() {
    let world = synced();
    // A monorepo, or the dotfiles of a home directory, with the work root in it.
    let outer = "cd ..; git init -q -b trunk .; echo x > x; git add x; git -c user.name=g -c user.email=g@g commit -qm outer";
    world.guest(outer);
    let picture = "cd ..; (cat .git/HEAD .git/config; git rev-parse HEAD; git ls-files -s; git for-each-ref; find .git/objects -type f | sort)";
    world.guest(&format!("({picture}) > ../../before"));
    for spoilt in [": > .git/HEAD", "rm -rf .git/objects .git/refs"] {
        world.guest(spoilt);
        world.local("echo more >> a; git commit -qam more");
        follows(&world, spoilt);
        world.guest(&format!(
            "({picture}) > ../../after; cmp ../../before ../../after"
        ));
    }
}

#[test]
fn branches_that_cannot_stand_beside_each_other_follow_each_other() {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm one; git checkout -qb topic");
    follows(&world, "topic");
    world.local("git checkout -q main; git branch -qD topic; git checkout -qb topic/sub/one; echo 2 >> a; git commit -qam two");
    follows(&world, "topic/sub/one");
    world.local("git checkout -q main; git branch -qD topic/sub/one; git checkout -qb topic");
    follows(&world, "topic again");
    // A branch of the guest's own loses its name and nothing else.
    world.guest("git update-ref refs/heads/topic2/x HEAD; git rev-parse HEAD > ../../kept");
    world.local("git checkout -qb topic2; echo 3 >> a; git commit -qam three");
    follows(&world, "topic2");
    world.guest("git for-each-ref --format='%(objectname)' refs/crabbox/aside | grep -qxf ../../kept");
}

#[test]
fn locks_of_a_git_that_died_stop_nothing() {
    let world = synced();
    for lock in [
        "HEAD",
        "config",
        "index",
        "packed-refs",
        "shallow",
        "refs/heads/main",
    ] {
        world.guest(&format!(": > .git/{lock}.lock"));
        world.local("date +%N >> a; git commit -qam more; git config core.quotePath false");
        follows(&world, lock);
    }
}

#[test]
fn the_lock_of_a_git_at_work_stays() {
    let linked = "git worktree add -q --detach ../../linked";
    // As `worktree.useRelativePaths` has it, which older versions of git do not know.
    let relative = "realpath --relative-to .git/worktrees/linked ../../linked/.git > gitdir; mv gitdir .git/worktrees/linked/gitdir";
    for (prepare, tree, gitdir) in [
        ("true", "", "none"),
        (linked, "../../linked", "absolute"),
        (&format!("{linked}; {relative}"), "../../linked", "relative"),
    ] {
        let world = synced();
        world.guest(prepare);
        if gitdir != "none" {
            let path = std::fs::read_to_string(world.workdir().join(".git/worktrees/linked/gitdir")).unwrap();
            assert_eq!(path.starts_with('/'), gitdir == "absolute", "{path}");
        }
        // A git of an editor's, say, that waits for its input with a lock held.
        let cmd = Cmd::new("git")
            .args(["hash-object", "--stdin"])
            .cwd(world.workdir().join(tree));
        let mut command = cmd.to_std();
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null());
        let mut child = cmd.spawn(&mut command).unwrap();
        world.guest(": > .git/HEAD.lock");
        world.local("git commit -q --allow-empty -m two; git checkout -qb other");
        let heard = world.warned();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            heard.iter().any(|line| line.contains("HEAD.lock")),
            "{gitdir}: {heard:?}"
        );
        world.guest("test -e .git/HEAD.lock");
        follows(&world, "once it is gone");
        world.guest("test ! -e .git/HEAD.lock");
    }
}

#[test]
fn a_git_that_leads_elsewhere_is_moved_away_and_where_it_led_all_is_as_it_was() {
    let world = synced();
    world.guest(
        "git init -q -b work ../../other; cd ../../other; echo x > x; git add x; \
         git -c user.name=g -c user.email=g@g commit -qm other; echo y > y; git add y; mkdir .git/modules; echo m > .git/modules/m; \
         git worktree add -q -b tree ../linked",
    );
    let picture = "cd ../../other; (cat .git/HEAD .git/config .git/modules/m; git rev-parse HEAD; git ls-files -s; git for-each-ref; \
                   git worktree list; cd ../linked; git status)";
    world.guest(&format!("({picture}) > ../../before"));
    for link in [
        "ln -s ../../other/.git .git",
        "ln -s $(realpath ../../other/.git) .git",
        "echo gitdir: ../../other/.git > .git",
        "mkdir .git; cp ../../other/.git/HEAD .git; for i in config objects refs; do ln -s $(realpath ../../other/.git/$i) .git/$i; done",
    ] {
        world.guest(&format!("rm -rf .git; {link}"));
        world.local("git commit -q --allow-empty -m more");
        follows(&world, link);
        world.guest(&format!(
            "({picture}) > ../../after; cmp ../../before ../../after"
        ));
    }
}

#[test]
fn submodules_of_the_guest_s_outlive_the_repository_that_they_came_with() {
    let world = World::new();
    world.local("echo 1 > a; git add -A; git commit -qm one; git checkout -qb topic");
    follows(&world, "first");
    world.guest("git init -q --bare .git/modules/sub; git worktree add -q -b tree ../../linked");
    world.guest("git config core.repositoryformatversion 1; git config extensions.nosuch true");
    world.local("git commit -q --allow-empty -m two");
    follows(&world, "made again");
    world.guest("git --git-dir=.git/modules/sub rev-parse --is-bare-repository; git gc -q; git fsck");
}

#[test]
fn a_branch_that_a_worktree_of_the_guest_s_has_checked_out_stays() {
    let world = synced();
    world.guest("git worktree add -q -b topic ../../linked");
    world.local("git checkout -qb topic/sub");
    let heard = world.warned();
    assert!(
        heard.iter().any(|line| line.contains("refs/heads/topic")),
        "{heard:?}"
    );
    world.guest("cd ../../linked; test \"$(git log --format=%s -1)\" = one");
    // One that is gone holds no branch.
    world.guest("rm -rf ../../linked");
    follows(&world, "once it is gone");
}

#[test]
fn what_is_replaced_here_is_whole_there() {
    for replace in [
        "git replace --graft HEAD",
        "echo 3 > a; git commit -qam other; o=$(git rev-parse HEAD); git reset -q --hard HEAD~; git replace HEAD $o; git reset -q --hard",
    ] {
        let world = synced();
        world.local("echo 2 > b; git add b; git commit -qm two");
        world.local(replace);
        assert_eq!(world.warned(), Vec::<String>::new(), "{replace}");
        world.local("git rev-parse HEAD > ../here");
        world.guest("git fsck --full --no-dangling; test $(git rev-parse HEAD) = $(cat ../../../here); git ls-tree HEAD");
    }
}

#[test]
fn a_repository_of_another_user_in_the_lease_is_told_with_what_git_advises() {
    let world = synced();
    world.guest("chown -R 4321:4321 .git .");
    world.local("echo 2 > a; git commit -qam two");
    let heard = world.warned();
    let command = heard.iter().find_map(|line| {
        let (_, command) = line.split_once("run in the lease: `git config --global --add safe.directory ")?;
        command.strip_suffix('`')
    });
    assert_eq!(command, Some(world.workdir().to_str().unwrap()), "{heard:?}");
}
