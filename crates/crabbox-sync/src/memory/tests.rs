use super::*;
use crabbox_host::clock::nap;
use crabbox_host::command::Cmd;

struct Tree {
    dir: tempfile::TempDir,
    memory: Memory,
}

impl Tree {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("w");
        std::fs::create_dir(&root).unwrap();
        let memory = Memory::of(&dir.path().join("kept"), &root, vec![dir.path().join("ignore")]);
        let tree = Self { dir, memory };
        tree.sh("git init -q -b main .; printf '[user]\nname=t\nemail=t@t\n' >> .git/config");
        tree.sh(script);
        tree
    }

    fn sh(&self, script: &str) {
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(self.dir.path().join("w"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .run()
            .unwrap();
    }

    fn repo(&self) -> Repo {
        Repo::discover(&self.dir.path().join("w")).unwrap()
    }

    fn look(&self) -> Manifest {
        Manifest::build_remembering(&self.repo(), &Scope::default(), &self.memory).unwrap()
    }

    /// The manifest from memory alone, if it is trusted.
    fn remembered(&self) -> Option<Manifest> {
        let (repo, scope) = (self.repo(), Scope::default());
        let mut seen = self.memory.recall(&repo, &scope)?;
        let scan = Scan::start(&repo.root).unwrap();
        let changed = seen.still(&scan, || Configuration::read(&repo.root).ok())?;
        seen.apply(&scan, changed);
        Some(seen.into_manifest(&repo, None))
    }

    fn asked(&self) -> Manifest {
        let empty = tempfile::tempdir().unwrap();
        let memory = Memory {
            file: empty.path().join("none"),
            ..self.memory.clone()
        };
        Manifest::build_remembering(&self.repo(), &Scope::default(), &memory).unwrap()
    }
}

/// Waits until all changes are old enough to be trusted.
fn settle() {
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(130) {
        nap(Duration::from_millis(50));
    }
}

const TREE: &str = "mkdir -p src/deep empty objs; printf '*.o\nout/\n' > .gitignore; echo a > src/a; echo b > src/deep/b; \
    echo c > objs/c.o; mkdir out; echo x > out/x; git init -q nested; mkdir -p bogus/.git bogus/in; \
    mkdir shelf box; ln -s x shelf/dist; git update-index --add --cacheinfo 160000,$(printf %040d 1),box/gone; \
    git add .gitignore src shelf; git commit -qm x; \
    echo u > untracked; echo s > src/s; git add src/s; ln -s a src/link; echo r > .crabboxignore; echo .crabboxignore >> .git/info/exclude";

#[test]
fn nothing_changed_is_remembered_and_ignored_files_do_not_count() {
    let tree = Tree::new(TREE);
    settle();
    let first = tree.look();
    assert_eq!(
        tree.remembered(),
        Some(Manifest {
            since: None,
            ..first.clone()
        })
    );
    // In an ignored directory and in a nested repository, changes do not matter.
    tree.sh("echo y > out/y; echo n > nested/.git/n");
    assert!(tree.remembered().is_some());
    let again = tree.look();
    assert_eq!(again.fingerprint, first.fingerprint);
    let since = again.since.unwrap();
    assert_eq!((since.changed, since.removed), (vec![], vec![]));
}

#[test]
fn an_edit_is_told_by_asking_about_it_alone() {
    let tree = Tree::new(TREE);
    settle();
    tree.look();
    tree.sh("echo more >> src/a; echo more >> untracked; chmod 755 src/deep/b");
    settle();
    assert_eq!(tree.remembered(), Some(tree.asked()));
    let manifest = tree.look();
    let paths: Vec<&[u8]> = manifest
        .since
        .iter()
        .flat_map(|since| &since.changed)
        .map(|at| manifest.entries[*at].path.as_slice())
        .collect();
    assert_eq!(paths, [&b"src/a"[..], b"src/deep/b", b"untracked"]);
    // The edit is remembered, too: after reverting it, the file counts as clean again.
    tree.sh("git checkout -q src/a");
    settle();
    assert_eq!(tree.look().entries, tree.asked().entries);
}

#[test]
fn whatever_else_could_change_the_list_is_noticed() {
    for change in [
        "echo n > new",
        "echo n > src/deep/new",
        "echo n > empty/new",
        "echo n > objs/new",
        // Directories whose only contents are a link out of scope, a missing submodule, or an invalid `.git`.
        "echo n > shelf/new",
        "echo n > box/new",
        "echo n > bogus/new",
        "echo n > bogus/in/new",
        "mkdir src/dir; echo n > src/dir/new",
        "rm src/a",
        "rm untracked",
        "mv src/a src/z",
        "rm src/a; mkdir src/a",
        "mv src elsewhere; ln -s elsewhere src",
        "printf '*.o\nou/\n' > .gitignore",
        "echo untracked >> .git/info/exclude",
        "echo s > .crabboxignore",
        "echo 'src/a text eol=crlf' > .git/info/attributes",
        "echo untracked > ../ignore",
        "git config core.excludesFile ../w/src/a",
        "git config core.fileMode false",
        "git add untracked",
        "git rm -q --cached src/s",
        "git commit -qm y",
        "rm -rf nested/.git; echo n > nested/n",
        "git update-index --skip-worktree src/a",
    ] {
        let tree = Tree::new(TREE);
        settle();
        tree.look();
        assert!(tree.remembered().is_some(), "{change}");
        tree.sh(change);
        settle();
        assert_eq!(tree.remembered(), None, "{change}");
        assert_eq!(
            Manifest {
                since: None,
                ..tree.look()
            },
            tree.asked(),
            "{change}"
        );
    }
}

#[test]
fn an_excludes_file_of_the_configuration_is_watched() {
    let tree =
        Tree::new("git config core.excludesFile ../rules; echo a > a; echo 'b' > ../rules; echo b > b");
    settle();
    assert_eq!(tree.look().entries.len(), 1);
    assert!(tree.remembered().is_some());
    tree.sh("echo c > ../rules");
    settle();
    assert_eq!(tree.remembered(), None);
    assert_eq!(tree.look().entries.len(), 2);
}

#[test]
fn a_directory_that_was_just_touched_is_not_believed() {
    let tree = Tree::new("mkdir d; echo a > d/a; git add d");
    settle();
    let (repo, scope) = (tree.repo(), Scope::default());
    let keep = |scan: &Scan| {
        let config = Configuration::read(&repo.root).ok();
        let seen = tree.memory.seen(scan, &tree.asked(), &scope, config.as_ref());
        tree.memory.keep(&seen);
    };
    keep(&Scan::start(&repo.root).unwrap());
    assert!(tree.remembered().is_some(), "it was touched long before");
    // The scan begins before the touch, so the touch is too recent however slow this machine is.
    let scan = Scan::start(&repo.root).unwrap();
    tree.sh("touch d");
    keep(&scan);
    assert_eq!(tree.remembered(), None);
}

#[test]
fn damage_and_other_people_s_trees_are_forgotten() {
    let tree = Tree::new("echo a > a");
    settle();
    tree.look();
    let mut bytes = std::fs::read(&tree.memory.file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&tree.memory.file, bytes).unwrap();
    assert_eq!(tree.remembered(), None);
    assert_eq!(tree.look().entries, tree.asked().entries);
    assert!(tree.remembered().is_some());
}

#[test]
fn old_trees_are_forgotten_and_what_is_not_ours_stays() {
    let tree = Tree::new("echo a > a");
    let kept = tree.memory.file.parent().unwrap().to_owned();
    std::fs::create_dir(&kept).unwrap();
    let (old, foreign) = (kept.join("0123456789abcdef0123456789abcdef"), kept.join("letter"));
    let half = old.with_extension("77");
    for path in [&old, &half, &foreign] {
        std::fs::write(path, "x").unwrap();
        let past = std::time::SystemTime::now() - FORGOTTEN_AFTER - Duration::from_mins(1);
        std::fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(past)
            .unwrap();
    }
    tree.look();
    assert!(foreign.exists() && !old.exists() && !half.exists());
}

#[test]
fn a_directory_that_is_not_ours_is_not_touched() {
    let tree = Tree::new("echo a > a");
    let elsewhere = tree.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, tree.memory.file.parent().unwrap()).unwrap();
    assert_eq!(tree.look().entries.len(), 1);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
}
