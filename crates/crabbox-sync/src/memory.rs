//! What the last look at a working tree saw, so that the next one need not ask git about everything again.
//!
//! It is kept outside the tree, one file for a root. It must never make a manifest another one than git would give: it is
//! believed only if every entry, every directory in which a new file could appear, every file of ignore rules, the index,
//! the commit and git's configuration are what they were, by times that no later change can carry; else git is asked.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_host::files;
use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat};
use sha2::{Digest as _, Sha256};

use crate::directories::directories;
use crate::entry::{Entry, Eye, Scan, hex};
use crate::git::git;
use crate::listing::Status;
use crate::manifest::{IGNORE_FILE, Manifest, Scope, Since};
use crate::repo::Repo;

mod codec;

/// More changed entries than this are not worth a question about each.
const FEW: usize = 1000;

/// How long a tree is remembered after the last look at it.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(30 * 24);

/// Names of files whose content decides about other files.
const RULES: [&[u8]; 3] = [b".gitignore", b".gitattributes", b".gitmodules"];

/// File systems that change a directory's times whenever a name in it comes or goes; their numbers are of statfs(2).
const HONEST: [u32; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
    0x794C_7630, // overlayfs
];

/// What became of an entry.
enum Look {
    Same,
    Other(Option<Entry>),
}

/// Where the last look at a working tree is kept.
#[derive(Debug, Clone)]
pub struct Memory {
    file: PathBuf,
    ignore_files: Vec<PathBuf>,
}

/// A look as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Stands for the root, the scope and the commit; without the same, nothing else counts.
    key: [u8; 32],
    /// Of everything that git says of its configuration.
    config: [u8; 32],
    /// Whether it may be believed; if not, it can still tell what has changed since.
    whole: bool,
    fingerprint: String,
    entries: Vec<Entry>,
    deleted: Vec<Vec<u8>>,
    protected_tracked: Vec<(Vec<u8>, Vec<u8>)>,
    nested: Vec<Vec<u8>>,
    staged: Vec<crate::listing::Staged>,
    /// What else the manifest depends on: a path, absolute or below the root, and its identity; zero when it was absent.
    places: Vec<(Vec<u8>, u64)>,
}

impl Memory {
    /// The memory of the tree at `root` in `dir`, which is made when it is needed. `ignore_files` are those that git may read
    /// for every repository of this user (`core.excludesFile` and its default).
    pub fn of(dir: &Path, root: &Path, ignore_files: Vec<PathBuf>) -> Self {
        let name = hex(&Sha256::digest(root.as_os_str().as_bytes())[..16]);
        Self {
            file: dir.join(name),
            ignore_files,
        }
    }

    /// What was kept of a look at this commit with this scope; none when there is none, or it is damaged.
    pub(crate) fn recall(&self, repo: &Repo, scope: &Scope) -> Option<Seen> {
        let seen = codec::decode(&std::fs::read(&self.file).ok()?)?;
        (seen.key == self.key(repo, scope)).then_some(seen)
    }

    fn key(&self, repo: &Repo, scope: &Scope) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(repo.root.as_os_str().as_bytes());
        add(repo.head.as_deref().unwrap_or_default().as_bytes());
        for list in [&scope.exclude, &scope.include] {
            add(&(list.len() as u64).to_le_bytes());
            for rule in list {
                add(rule.as_bytes());
            }
        }
        for path in &self.ignore_files {
            add(path.as_os_str().as_bytes());
        }
        hash.finalize().into()
    }

    /// Keeps a look. What cannot be kept is not: the next look asks git. Nothing waits for the disk: what a power cut leaves of
    /// it is known by its checksum.
    pub(crate) fn keep(&self, seen: &Seen) {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        if !self.file.exists() {
            files::create_private_dir(dir).ok();
            forget_old(dir);
        }
        let new = self.file.with_extension(std::process::id().to_string());
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&new)
            .and_then(|mut file| file.write_all(&codec::encode(seen)))
            .and_then(|()| std::fs::rename(&new, &self.file));
        if written.is_err() {
            // Nothing may have been made at all.
            std::fs::remove_file(&new).ok();
        }
    }

    /// A look that was just made, with everything that the next one needs to believe it.
    pub(crate) fn seen(
        &self,
        scan: &Scan,
        manifest: &Manifest,
        scope: &Scope,
        config: Option<[u8; 32]>,
    ) -> Seen {
        let places = self.places(scan, manifest, scope);
        Seen {
            key: self.key(&manifest.repo, scope),
            whole: places.is_some() && config.is_some(),
            config: config.unwrap_or_default(),
            fingerprint: manifest.fingerprint.clone(),
            entries: manifest.entries.clone(),
            deleted: manifest.deleted.clone(),
            protected_tracked: manifest.protected_tracked.clone(),
            nested: manifest.nested.clone(),
            staged: manifest.staged.clone(),
            places: places.unwrap_or_default(),
        }
    }

    /// All that a new file or another rule would change, with its identity; none when one of them cannot be believed.
    fn places(&self, scan: &Scan, manifest: &Manifest, scope: &Scope) -> Option<Vec<(Vec<u8>, u64)>> {
        let root = manifest.root.as_path();
        let file_system = rustix::fs::statfs(root).ok()?.f_type;
        let device = rustix::fs::stat(root).ok()?.st_dev;
        // The number has 32 bits, in a type that is wider on some machines.
        if !HONEST.iter().any(|honest| i64::from(*honest) == file_system) {
            return None;
        }
        let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
        let dirs = directories(manifest, scope).ok()?;
        let nested = manifest
            .nested
            .iter()
            .map(|path| root.join(OsStr::from_bytes(path)));
        for dir in dirs.iter().cloned().chain(nested) {
            if let Ok(stat) = rustix::fs::lstat(&dir)
                && stat.st_dev != device
            {
                return None;
            }
            wanted.insert(dir.join(".gitignore").into_os_string().into_encoded_bytes());
            wanted.insert(dir.into_os_string().into_encoded_bytes());
        }
        let files = lines(
            root,
            &[
                "rev-parse",
                "--git-path",
                "index",
                "--git-path",
                "info/exclude",
                "--git-path",
                "info/attributes",
                "--git-path",
                "info/sparse-checkout",
            ],
        )?;
        // These may not be set.
        let of_config = ["core.excludesFile", "core.attributesFile"]
            .into_iter()
            .filter_map(|name| lines(root, &["config", "--type=path", "--get", name]))
            .flatten();
        let of_user = self
            .ignore_files
            .iter()
            .cloned()
            .chain([PathBuf::from(IGNORE_FILE)]);
        for path in files.into_iter().chain(of_config).chain(of_user) {
            wanted.insert(root.join(path).into_os_string().into_encoded_bytes());
        }
        wanted
            .into_iter()
            .map(|path| Some((identity(scan, &path)?, path)))
            .map(|found| found.map(|(identity, path)| (path, identity)))
            .collect()
    }
}

/// What git prints for these words, as paths; none when it fails.
fn lines(root: &Path, args: &[&str]) -> Option<Vec<PathBuf>> {
    let out = git(root).args(args).capture().ok()?;
    let lines = out.stdout.split(|byte| *byte == b'\n');
    out.status.success().then(|| {
        lines
            .filter(|line| !line.is_empty())
            .map(|line| PathBuf::from(OsStr::from_bytes(line)))
            .collect()
    })
}

/// Removes what was kept of trees that nobody has looked at for long.
fn forget_old(dir: &Path) {
    let Ok(entries) = dir.read_dir() else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .map(|modified| modified.elapsed());
        if let Ok(Ok(age)) = age
            && age > FORGOTTEN_AFTER
        {
            // Another client may have been quicker.
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

/// Of a directory or a file of rules: zero when it is absent, none when it was touched too recently to be believed.
fn identity(scan: &Scan, path: &[u8]) -> Option<u64> {
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Some(0),
        Err(_) => return None,
    };
    // Rules behind a link could change without it.
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink || scan.is_fresh(&stat) {
        return None;
    }
    Some(stands_for(&stat))
}

fn stands_for(stat: &Stat) -> u64 {
    let mut hash = DefaultHasher::new();
    (stat.st_dev, stat.st_ino, stat.st_mode).hash(&mut hash);
    (stat.st_mtime, stat.st_mtime_nsec).hash(&mut hash);
    (stat.st_ctime, stat.st_ctime_nsec).hash(&mut hash);
    hash.finish().max(1)
}

/// Everything git says of its configuration in `root`, as a hash; none when it says nothing.
pub(crate) fn config(root: &Path) -> Option<[u8; 32]> {
    let asked = git(root)
        .args(["config", "--list", "--show-origin", "-z"])
        .capture()
        .ok()?;
    asked
        .status
        .success()
        .then(|| Sha256::digest(&asked.stdout).into())
}

impl Seen {
    /// The entries that are not as they were, by their places, if nothing else has changed; `config` is asked meanwhile.
    pub(crate) fn still(
        &self,
        scan: &Scan,
        config: impl FnOnce() -> Option<[u8; 32]> + Send,
    ) -> Option<Vec<(usize, Entry)>> {
        if !self.whole {
            return None;
        }
        let (looked, config) = std::thread::scope(|threads| {
            let config = threads.spawn(config);
            let looked = self.look(scan);
            let config = config
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (looked, config)
        });
        let mut changed = looked?;
        if config? != self.config {
            return None;
        }
        if !changed.is_empty() {
            let status = ask_about(&scan.root, changed.iter().map(|(_, entry)| entry.path.as_slice()))?;
            for (_, entry) in &mut changed {
                entry.changed =
                    status.changed.contains(&entry.path) || status.untracked.contains(&entry.path);
            }
        }
        Some(changed)
    }

    /// The fingerprint of the manifest that this is of.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Takes over what [`Seen::still`] gave.
    pub(crate) fn apply(&mut self, scan: &Scan, changed: Vec<(usize, Entry)>) {
        for (at, entry) in changed {
            self.entries[at] = entry;
        }
        self.fingerprint = scan.fingerprint(&self.entries, &self.deleted);
    }

    /// The manifest that this is of.
    pub(crate) fn into_manifest(self, repo: &Repo, since: Option<Since>) -> Manifest {
        Manifest {
            root: repo.root.clone(),
            entries: self.entries,
            deleted: self.deleted,
            protected_tracked: self.protected_tracked,
            nested: self.nested,
            staged: self.staged,
            repo: repo.clone(),
            fingerprint: self.fingerprint,
            since,
        }
    }

    /// The entries that are not as they were, by their places; none when anything else is not, or too many are not.
    fn look(&self, scan: &Scan) -> Option<Vec<(usize, Entry)>> {
        let same = |(path, was): &(Vec<u8>, u64)| match rustix::fs::statat(
            CWD,
            path.as_slice(),
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => stands_for(&stat) == *was,
            Err(_) => *was == 0,
        };
        if !self.places.iter().all(same) {
            return None;
        }
        // What is as it was is not kept a second time.
        let look = |eye: &mut Eye<'_>, (): &mut (), was: &Entry| {
            let now = eye.look(&was.path, was.changed)?;
            let same = |now: &Entry| now.identity.is_some() && now.identity == was.identity;
            Ok(if now.as_ref().is_some_and(same) {
                Look::Same
            } else {
                Look::Other(now)
            })
        };
        let looks = scan.all(&self.entries, || (), look).ok()?;
        let mut changed = Vec::new();
        for (at, look) in looks.into_iter().enumerate() {
            let Look::Other(now) = look else { continue };
            let now = now?;
            let leaf = now.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            if changed.len() == FEW || RULES.contains(&leaf) || now.path == IGNORE_FILE.as_bytes() {
                return None;
            }
            changed.push((at, now));
        }
        Some(changed)
    }

    /// How `manifest` differs from this.
    pub(crate) fn since(&self, manifest: &Manifest) -> Since {
        let mut old = self.entries.iter().peekable();
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for (at, entry) in manifest.entries.iter().enumerate() {
            while let Some(gone) = old.next_if(|was| was.path < entry.path) {
                removed.push(gone.path.clone());
            }
            let was = old.next_if(|was| was.path == entry.path);
            if was.is_none_or(|was| was.identity.is_none() || was.identity != entry.identity) {
                changed.push(at);
            }
        }
        removed.extend(old.map(|gone| gone.path.clone()));
        Since {
            fingerprint: self.fingerprint.clone(),
            changed,
            removed,
        }
    }
}

/// What git says of these paths alone.
fn ask_about<'p>(root: &Path, paths: impl Iterator<Item = &'p [u8]>) -> Option<Status> {
    let asked = git(root)
        .args(["--literal-pathspecs", "status", "--porcelain=v2", "-z"])
        .args(["--untracked-files=all", "--no-renames", "--ignore-submodules=all"])
        .arg("--")
        .args(paths.map(OsStr::from_bytes))
        .capture()
        .ok()
        .filter(|out| out.status.success())?;
    Status::parse(&asked.stdout).ok()
}

#[cfg(test)]
mod tests {
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

        /// The manifest from memory alone, if it is believed.
        fn remembered(&self) -> Option<Manifest> {
            let (repo, scope) = (self.repo(), Scope::default());
            let mut seen = self.memory.recall(&repo, &scope)?;
            let scan = Scan::start(&repo.root).unwrap();
            let changed = seen.still(&scan, || config(&repo.root))?;
            seen.apply(&scan, changed);
            Some(seen.into_manifest(&repo, None))
        }

        fn asked(&self) -> Manifest {
            Manifest::build(&self.repo(), &Scope::default()).unwrap()
        }
    }

    /// Until nothing was touched a moment ago.
    fn settle() {
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(130) {
            nap(Duration::from_millis(50));
        }
    }

    const TREE: &str = "mkdir -p src/deep empty objs; printf '*.o\nout/\n' > .gitignore; echo a > src/a; echo b > src/deep/b; \
        echo c > objs/c.o; mkdir out; echo x > out/x; git init -q nested; git add .gitignore src; git commit -qm x; \
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
        // Ignored as a whole, and a repository of its own: nobody asks what is in there.
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
        // And is remembered: taken back, the file counts as clean again.
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
        tree.sh("touch d");
        tree.look();
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
}
