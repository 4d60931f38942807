//! `pull`: changes in a lease come back, and local work is preserved.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;

use crate::remote::Entered;
use crate::run::entered;

/// A lease whose tree is in sync with a repository of committed and dirty files.
fn synced() -> (Entered, PathBuf) {
    let lease = entered();
    let script = "printf '*.tmp\\n' > .gitignore; for f in clean dirty gone both mine; do echo $f > $f; done; mkdir -p d; echo x > d/exe; \
                  ln -s clean link; git add -A; git -c user.name=t -c user.email=t@t commit -qm one; echo work > dirty; echo new > untracked";
    Cmd::new("sh")
        .args(["-ec", script])
        .cwd(lease.place.path("repo"))
        .env("HOME", lease.place.path("home"))
        .run()
        .unwrap();
    // A file touched just before the scan is not recognised by its metadata.
    poll_until(std::time::Duration::from_millis(300), || None::<()>);
    let done = lease.place.run(&["run", "--id", "jade-krill", "--sync-only"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let there = PathBuf::from(done.out.strip_prefix("synced ").unwrap().trim_end());
    (lease, there)
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn changes_in_a_submodule_come_back_by_its_rules_and_other_repositories_stay() {
    let lease = entered();
    let commit = "-c user.name=t -c user.email=t@t commit -q --allow-empty -m x";
    let script = format!(
        "mkdir -p sub/d nested; echo 1 > sub/d/a; printf '*.o\\n' > sub/.gitignore; for r in sub nested; do git init -q $r; git -C $r add -A; git -C $r {commit}; done; \
         printf '*.top\\n' > .gitignore; git add sub .gitignore; git {commit}"
    );
    let shell = |script: &str, dir: PathBuf| {
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(dir)
            .env("HOME", lease.place.path("home"))
            .run()
            .unwrap();
    };
    shell(&script, lease.place.path("repo"));
    poll_until(std::time::Duration::from_millis(300), || None::<()>);
    let done = lease.place.run(&["run", "--id", "jade-krill", "--sync-only"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(
        done.err
            .contains("warning: repositories inside this one are not synced: nested;"),
        "{}",
        done.err
    );
    let there = PathBuf::from(done.out.strip_prefix("synced ").unwrap().trim_end());
    shell(
        "echo 2 > sub/d/a; echo n > sub/new; echo o > sub/x.o; echo t > sub/x.top; echo t > x.top; mkdir nested; echo evil > nested/x",
        there,
    );
    let pulled = lease.place.run(&["pull", "--id", "jade-krill"]);
    assert_eq!(
        (pulled.code, pulled.out.as_str()),
        (0, "M sub/d/a\nA sub/new\nA sub/x.top\n"),
        "{}",
        pulled.err
    );
    assert_eq!(
        pulled.err,
        "skipped: nested/x: in a repository of its own, which is not synced\npulled 3 file(s)\n"
    );
    let repo = |name: &str| lease.place.path("repo").join(name);
    assert_eq!(read(repo("sub/d/a")), "2\n");
    assert!(!repo("nested/x").exists() && !repo("sub/x.o").exists());
}

#[test]
fn a_path_is_known_in_every_spelling_and_one_that_is_nowhere_is_told() {
    let (lease, there) = synced();
    let repo = |name: &str| lease.place.path("repo").join(name);
    let script = "echo formatted > clean; echo y >> d/exe";
    Cmd::new("sh").args(["-ec", script]).cwd(&there).run().unwrap();
    let narrowed = |path: &str| {
        let words = ["pull", "--id", "jade-krill", "--dry-run", path];
        let answer = lease.place.run(&words);
        (answer.code, answer.out, answer.err)
    };
    let root = repo("");
    let name = root.file_name().unwrap().to_str().unwrap();
    for path in [
        root.join("d").display().to_string(),
        format!("../{name}/d"),
        "./x/../d/".to_owned(),
    ] {
        assert_eq!(
            narrowed(&path),
            (0, "M d/exe\n".to_owned(), String::new()),
            "{path}"
        );
    }
    for all in [".", root.to_str().unwrap()] {
        let (code, out, _) = narrowed(all);
        assert_eq!((code, out.as_str()), (0, "M clean\nM d/exe\n"), "{all}");
    }
    // A flag behind a path is still a flag, and an empty path is not everything.
    let dry = lease.place.run(&["pull", "d", "--id", "jade-krill", "--dry-run"]);
    assert_eq!((dry.code, dry.out.as_str()), (0, "M d/exe\n"), "{}", dry.err);
    assert_eq!(read(repo("d/exe")), "x\n");
    let (code, out, err) = narrowed("");
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.starts_with("a path is empty; "), "{err}");
    let told = "warning: \"nope\" exists neither here nor in the lease; paths are relative to the root of the repository\n";
    assert_eq!(narrowed("nope"), (0, String::new(), told.to_owned()));
    assert_eq!(narrowed("mine"), (0, String::new(), String::new()));
    let refused = format!(
        "\"../other\" is not below {}\nhint: paths are relative to the root of the repository\n",
        root.display().to_string().trim_end_matches('/')
    );
    assert_eq!(narrowed("../other"), (2, String::new(), refused));
}

#[test]
fn what_changed_there_comes_back_and_what_git_lacks_is_kept() {
    let (lease, there) = synced();
    let repo = |name: &str| lease.place.path("repo").join(name);
    let quiet = lease.place.run(&["pull", "--id", "jade-krill"]);
    assert_eq!((quiet.code, quiet.out.as_str(), quiet.err.as_str()), (0, "", ""));
    let script = "echo formatted > clean; echo formatted > dirty; rm gone untracked; chmod +x d/exe; echo y >> d/exe; mkdir -p new/deep; \
                  echo made > new/deep/file; echo no > x.tmp; mkdir -p node_modules; echo no > node_modules/x; mkdir -p .crabbox; echo no > .crabbox/x; \
                  ln -s /etc/passwd evil; mkdir -p .git/hooks; echo x > .git/hooks/post-checkout";
    Cmd::new("sh").args(["-ec", script]).cwd(&there).run().unwrap();
    let listed = "M clean\nM d/exe\nM dirty\nD gone\nA new/deep/file\nD untracked\n";
    let dry = lease.place.run(&["pull", "--id", "jade-krill", "--dry-run"]);
    assert_eq!((dry.code, dry.out.as_str()), (0, listed), "{}", dry.err);
    assert_eq!(dry.err, "skipped: evil: a link or special file\n");
    assert!(repo("gone").exists() && read(repo("clean")) == "clean\n");
    let part = lease.place.run(&["pull", "--id", "jade-krill", "new"]);
    assert_eq!(
        (part.code, part.out.as_str()),
        (0, "A new/deep/file\n"),
        "{}",
        part.err
    );
    assert!(read(repo("clean")) == "clean\n" && read(repo("new/deep/file")) == "made\n");
    let pulled = lease
        .place
        .run(&["pull", "--id", "jade-krill", "--skip-conflicts"]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert_eq!(
        (read(repo("clean")), read(repo("dirty")), read(repo("d/exe"))),
        ("formatted\n".into(), "formatted\n".into(), "x\ny\n".into())
    );
    assert_eq!(
        repo("d/exe").metadata().unwrap().permissions().mode() & 0o111,
        0o111
    );
    for absent in [
        "gone",
        "untracked",
        "evil",
        "x.tmp",
        "node_modules",
        ".crabbox/x",
        ".git/hooks/post-checkout",
    ] {
        assert!(repo(absent).symlink_metadata().is_err(), "{absent}");
    }
    // Uncommitted content was backed up, and nothing else.
    let mut kept = fs::read_dir(repo(".crabbox/runs"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let before = kept.next().unwrap().join("before");
    assert!(kept.next().is_none());
    assert_eq!(
        (read(before.join("dirty")), read(before.join("untracked"))),
        ("work\n".into(), "new\n".into())
    );
    assert!(!before.join("clean").exists() && !before.join("gone").exists());
    // Content that is now equal on both sides is neither a conflict nor brought again.
    symlink("/etc/passwd", repo("evil")).unwrap();
    let again = lease.place.run(&["pull", "--id", "jade-krill"]);
    assert_eq!((again.code, again.out.as_str(), again.err.as_str()), (0, "", ""));
    fs::remove_file(repo("evil")).unwrap();
    // The next run syncs the very same tree to the lease.
    let next = lease.place.run(&[
        "run",
        "--id",
        "jade-krill",
        "--shell",
        "--",
        "cat clean new/deep/file; ls",
    ]);
    assert_eq!(
        (next.code, next.out.contains("formatted\nmade\n")),
        (0, true),
        "{}",
        next.err
    );
}

#[test]
fn local_work_is_never_written_over() {
    let (lease, there) = synced();
    let repo = |name: &str| lease.place.path("repo").join(name);
    let script = "echo theirs > both; echo theirs > mine; echo theirs > fresh; rm gone; echo theirs > clean; echo theirs > d/exe; echo theirs > d/new";
    Cmd::new("sh").args(["-ec", script]).cwd(&there).run().unwrap();
    fs::write(repo("both"), "ours\n").unwrap();
    fs::remove_file(repo("mine")).unwrap();
    fs::write(repo("fresh"), "ours\n").unwrap();
    fs::write(repo("gone"), "ours\n").unwrap();
    // Nothing is written through a symlink in place of a directory.
    fs::rename(repo("d"), lease.place.path("outside/d")).unwrap();
    symlink(lease.place.path("outside/d"), repo("d")).unwrap();
    let refused = lease.place.run(&["pull", "--id", "jade-krill"]);
    assert_eq!(refused.code, 6, "{}", refused.err);
    assert_eq!(refused.out, "M clean\n", "{}", refused.err);
    for line in [
        "conflict: both: changed on both sides",
        "conflict: mine: changed in the lease, removed here",
        "conflict: fresh: new in the lease, and here already",
        "conflict: gone: removed in the lease, changed here",
        "conflict: d/exe: changed in the lease, removed here",
        "conflict: d/new: new in the lease, below what is no directory here",
        "6 file(s) changed on both sides; nothing was pulled",
    ] {
        assert!(
            refused.err.lines().any(|said| said == line),
            "{line}: {}",
            refused.err
        );
    }
    assert_eq!(read(repo("clean")), "clean\n");
    let rest = lease
        .place
        .run(&["pull", "--id", "jade-krill", "--skip-conflicts"]);
    assert_eq!(
        (rest.code, read(repo("clean"))),
        (0, "theirs\n".into()),
        "{}",
        rest.err
    );
    for name in ["both", "fresh", "gone"] {
        assert_eq!(read(repo(name)), "ours\n", "{name}");
    }
    assert!(!repo("mine").exists());
    assert_eq!(read(lease.place.path("outside/d/exe")), "x\n");
}

#[test]
fn what_the_lease_cannot_read_stays_as_it_is_here_and_the_rest_comes() {
    let (place, _sshd) = crate::odd_host::odd(crate::odd_host::MORTAL);
    let repo = |name: &str| place.path("repo").join(name);
    for name in ["shut/f", "closed", "open"] {
        fs::create_dir_all(repo(name).parent().unwrap()).unwrap();
        fs::write(repo(name), "ours\n").unwrap();
    }
    poll_until(std::time::Duration::from_millis(300), || None::<()>);
    let script = "echo theirs > closed; echo theirs > open; chmod 0 closed shut";
    let done = place.run(&["run", "--keep", "--shell", "--", script]);
    assert_eq!(done.code, 0, "{}", done.err);
    let pulled = place.run(&["pull", "--id", "127.0.0.1"]);
    assert_eq!(
        (pulled.code, pulled.out.as_str()),
        (7, "M closed\nM open\n"),
        "{}",
        pulled.err
    );
    for told in [
        "skipped: shut/f: cannot be read in the lease",
        "pulled 1 file(s)",
        "not brought: closed: Permission denied",
        "1 file(s) could not be read in the lease; the local copies are unchanged",
    ] {
        assert!(
            pulled.err.lines().any(|line| line == told),
            "{told}: {}",
            pulled.err
        );
    }
    for (name, content) in [("shut/f", "ours\n"), ("closed", "ours\n"), ("open", "theirs\n")] {
        assert_eq!(read(repo(name)), content, "{name}");
    }
}

#[test]
fn there_is_nothing_to_pull_from_a_tree_that_was_never_synced() {
    let lease = entered();
    let never = lease.place.run(&["pull", "--id", "jade-krill"]);
    assert_eq!(never.code, 6, "{}", never.err);
    assert!(
        never.err.starts_with("the lease has no record of a sync"),
        "{}",
        never.err
    );
    assert_eq!(lease.place.run(&["pull"]).code, 2);
}
