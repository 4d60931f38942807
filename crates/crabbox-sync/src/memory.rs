//! Remembers the last manifest of a working tree, so that the next one need not ask git about everything
//! again.
//!
//! It is stored outside the tree, one file per root. It must never yield another manifest than git would: it
//! is trusted only if every entry, every directory in which a new file could appear, every file of ignore
//! rules, the index, the commit and git's configuration are unchanged, judged by times that no later change
//! can have; otherwise git is asked.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::id::hex;
use crabbox_host::files;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::entry::{Entry, Examiner, Scan, Standing};
use crate::filtered;
use crate::git::{Configuration, Filters, comparing_git};
use crate::listing::Status;
use crate::manifest::{ChangesSince, IGNORE_FILE, Manifest, Scope};
use crate::mark::Mark;
use crate::repo::Repo;

mod codec;
mod places;

use places::Place;

/// If more entries than this have changed, git is asked about everything.
const FEW: usize = 1000;

/// The length of a memory file's name.
const NAME: usize = 32;

/// How long a tree is remembered after its last use.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(30 * 24);

/// Names of files whose content affects other files.
const RULES: [&[u8]; 3] = [b".gitignore", b".gitattributes", b".gitmodules"];

/// The result of examining a remembered entry.
enum Look {
    Same,
    Other(Option<Entry>),
}

/// The file in which the last manifest of a working tree is kept.
#[derive(Debug, Clone)]
pub struct Memory {
    file: PathBuf,
    ignore_files: Vec<PathBuf>,
}

/// A remembered manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RememberedManifest {
    /// Identifies the root, the scope and the commit; if it differs, nothing else counts.
    key: [u8; 32],
    /// Hash of git's whole configuration.
    config: [u8; 32],
    /// Whether it may be trusted; if not, it still shows what has changed since.
    whole: bool,
    fingerprint: String,
    entries: Vec<Entry>,
    deleted: Vec<Vec<u8>>,
    protected_tracked: Vec<(Vec<u8>, Vec<u8>)>,
    absent: Vec<Vec<u8>>,
    nested: Vec<Vec<u8>>,
    staged: Vec<crate::listing::Staged>,
    marks: Vec<Mark>,
    settings: Vec<u8>,
    attributes: Vec<u8>,
    excludes: Vec<u8>,
    /// What else the manifest depends on.
    places: Vec<Place>,
}

impl Memory {
    /// The memory of the tree at `root` in `dir`, which is created when needed. `ignore_files` are those that
    /// git may read for every repository of this user (`core.excludesFile` and its default).
    pub fn of(dir: &Path, root: &Path, ignore_files: Vec<PathBuf>) -> Self {
        let name = hex(&Sha256::digest(root.as_os_str().as_bytes())[..NAME / 2]);
        Self {
            file: dir.join(name),
            ignore_files,
        }
    }

    /// The files given to [`Memory::of`].
    pub(crate) fn ignore_files(&self) -> &[PathBuf] {
        &self.ignore_files
    }

    /// Loads the manifest of this commit and scope; `None` if there is none, or if it is damaged.
    pub(crate) fn recall(&self, repo: &Repo, scope: &Scope) -> Option<RememberedManifest> {
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

    /// Stores a manifest. Errors are ignored, because the next call then asks git. It does not fsync: damage
    /// after a power cut is detected by the checksum.
    pub(crate) fn keep(&self, seen: &RememberedManifest) {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        // A directory that is not our own is neither written to nor cleaned up.
        if files::create_private_dir(dir).is_err() {
            return;
        }
        if !self.file.exists() {
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
            // The file may not have been created at all.
            std::fs::remove_file(&new).ok();
        }
    }

    /// A manifest that was just made, with everything needed to check it later.
    pub(crate) fn seen(
        &self,
        scan: &Scan,
        manifest: &Manifest,
        scope: &Scope,
        config: Option<&Configuration>,
    ) -> RememberedManifest {
        let places = places::find(scan, manifest, scope, &self.ignore_files);
        RememberedManifest {
            key: self.key(&manifest.repo, scope),
            // A submodule has its own index, rules, configuration and commit; git is asked about those.
            whole: places.is_some() && config.is_some() && manifest.submodules.is_empty(),
            config: config.map(|config| config.hash).unwrap_or_default(),
            fingerprint: manifest.fingerprint.clone(),
            entries: manifest.entries.clone(),
            deleted: manifest.deleted.clone(),
            protected_tracked: manifest.protected_tracked.clone(),
            absent: manifest.absent.clone(),
            nested: manifest.nested.clone(),
            staged: manifest.staged.clone(),
            marks: manifest.marks.clone(),
            settings: manifest.settings.clone(),
            attributes: manifest.attributes.clone(),
            excludes: manifest.excludes.clone(),
            places: places.unwrap_or_default(),
        }
    }
}

/// Removes the files of trees that were not used for a long time.
fn forget_old(dir: &Path) {
    let Ok(entries) = dir.read_dir() else { return };
    for entry in entries.flatten().filter(|entry| is_ours(&entry.file_name())) {
        let age = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .map(|modified| modified.elapsed());
        if let Ok(Ok(age)) = age
            && age > FORGOTTEN_AFTER
        {
            // Another process may have removed it already.
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

/// Whether [`Memory::keep`] creates such names: that of a tree, with a pid appended while it is written.
fn is_ours(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let (tree, pid) = name.split_at(name.len().min(NAME));
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let pid = pid.strip_prefix(b".").unwrap_or(pid);
    tree.len() == NAME && tree.iter().all(hex) && pid.iter().all(u8::is_ascii_digit)
}

impl RememberedManifest {
    /// The entries that have changed, by index, if nothing else has; `config` runs in parallel.
    pub(crate) fn still(
        &self,
        scan: &Scan,
        config: impl FnOnce() -> Option<Configuration> + Send,
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
        let config = config.filter(|config| config.hash == self.config)?;
        if !changed.is_empty() {
            let status = ask_about(
                &scan.root,
                &config.filters,
                changed.iter().map(|(_, entry)| entry.path.as_slice()),
            )?;
            for (_, entry) in &mut changed {
                entry.changed =
                    status.changed.contains(&entry.path) || status.untracked.contains(&entry.path);
                entry.standing = match (entry.standing, status.unlike.contains(&entry.path)) {
                    (Standing::Untracked, _) => Standing::Untracked,
                    (_, true) => Standing::Unlike,
                    (_, false) => Standing::Same,
                };
            }
        }
        Some(changed)
    }

    /// The fingerprint of the manifest.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Applies the result of [`RememberedManifest::still`].
    pub(crate) fn apply(&mut self, scan: &Scan, changed: Vec<(usize, Entry)>) {
        for (at, entry) in changed {
            self.entries[at] = entry;
        }
        self.fingerprint = scan.fingerprint(&self.entries, &self.deleted);
    }

    /// Converts it to a manifest.
    pub(crate) fn into_manifest(self, repo: &Repo, since: Option<ChangesSince>) -> Manifest {
        Manifest {
            root: repo.root.clone(),
            entries: self.entries,
            deleted: self.deleted,
            protected_tracked: self.protected_tracked,
            // With submodules it is never trusted.
            submodules: Vec::new(),
            absent: self.absent,
            nested: self.nested,
            staged: self.staged,
            marks: self.marks,
            settings: self.settings,
            attributes: self.attributes,
            excludes: self.excludes,
            repo: repo.clone(),
            fingerprint: self.fingerprint,
            since,
        }
    }

    /// The entries that have changed, by index; `None` if anything else has changed, or too many entries
    /// have.
    fn look(&self, scan: &Scan) -> Option<Vec<(usize, Entry)>> {
        if !self.places.iter().all(places::is_same) {
            return None;
        }
        // Unchanged entries are not copied.
        let look = |eye: &mut Examiner<'_>, (): &mut (), was: &Entry| {
            Ok(match eye.see(&was.path)? {
                Some(sight) if sight.is(was) => Look::Same,
                sight => Look::Other(sight.map(|sight| Entry {
                    standing: was.standing,
                    ..sight.entry(&was.path, was.changed)
                })),
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

    /// How `manifest` differs from this one.
    pub(crate) fn since(&self, manifest: &Manifest) -> ChangesSince {
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
        ChangesSince {
            fingerprint: self.fingerprint.clone(),
            changed,
            removed,
        }
    }
}

/// git's status of these paths only.
fn ask_about<'p>(root: &Path, filters: &Filters, paths: impl Iterator<Item = &'p [u8]>) -> Option<Status> {
    let asked = comparing_git(root, filters)
        .args(["--literal-pathspecs", "status", "--porcelain=v2", "-z"])
        .args([
            "--untracked-files=all",
            "--no-renames",
            "--ignore-submodules=dirty",
        ])
        .arg("--")
        .args(paths.map(OsStr::from_bytes))
        .capture()
        .ok()
        .filter(|out| out.status.success())?;
    let mut status = Status::parse(&asked.stdout).ok()?;
    filtered::settle(root, filters, &mut status.unlike);
    Some(status)
}

#[cfg(test)]
mod tests;
