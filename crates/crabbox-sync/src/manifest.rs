//! The manifest: which files of the working tree the lease must have, which tracked paths are gone, and which
//! files are dirty.
//!
//! git reports what is tracked, ignored and changed (two parallel processes in each repository); one `lstat`
//! per path reports what exists. It must never write to the repository, follow a symbolic link out of it, or
//! take a path for deleted that git merely hides.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crabbox_host::command::{CAPTURE_LIMIT, CommandError};
use crabbox_host::small::{SmallError, read_small};

use self::submodules::{Look, Submodules, Tree};

use crate::entry::{Entry, Scan, Standing};
use crate::filter::{Filter, Verdict};
use crate::git::{Configuration, ConfigurationError};
use crate::listing::{self, Index, Status, Tracked};
use crate::mark::{ASSUMED, INTENDED, Mark, SKIPPED};
use crate::memory::Memory;
use crate::redirect::Redirect;
use crate::repo::Repo;

mod rules;
mod submodules;

pub(crate) use self::submodules::ask_git;

/// The name of the file in the root with more exclude rules.
pub(crate) const IGNORE_FILE: &str = ".crabboxignore";

/// Longest ignore file in bytes; a hand-written one has a few KiB.
const IGNORE_LIMIT: u64 = 1 << 20;

/// The part of the configuration that shapes a manifest.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// `sync.exclude`, in order.
    pub exclude: Vec<String>,
    /// `sync.include`; empty means everything.
    pub include: Vec<String>,
}

/// Everything a sync needs to know about the working tree, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The root that the paths are relative to.
    pub root: PathBuf,
    /// The files and symbolic links in scope, sorted by path bytes, no path twice.
    pub entries: Vec<Entry>,
    /// Tracked paths in scope that are missing from the working tree, sorted.
    pub deleted: Vec<Vec<u8>>,
    /// Files that a built-in exclude would have dropped if they were not tracked, with that rule.
    pub protected_tracked: Vec<(Vec<u8>, Vec<u8>)>,
    /// Submodules whose files are included, sorted.
    pub submodules: Vec<Vec<u8>>,
    /// Submodules that are not checked out, so that they have no files.
    pub absent: Vec<Vec<u8>>,
    /// Nested repositories that are not submodules, which are left out.
    pub nested: Vec<Vec<u8>>,
    /// Staged changes against `HEAD`, for the repository in the guest.
    pub staged: Vec<listing::Staged>,
    /// Flags for entries of the index in the guest, sorted.
    pub marks: Vec<Mark>,
    /// The settings that decide whether git finds a file unchanged, as a configuration file.
    pub settings: Vec<u8>,
    /// The attributes that only this clone has.
    pub attributes: Vec<u8>,
    /// What git ignores only in this clone, or for this user, as a file of rules.
    pub excludes: Vec<u8>,
    /// The commit `HEAD` stands on, the branch it names, and the origin, for the repository in the guest.
    pub repo: Repo,
    /// SHA-256 over the identity of every entry and the deleted list, as hex: equal means nothing changed
    /// here.
    pub fingerprint: String,
    /// How it differs from the previous manifest, if that is still known.
    pub since: Option<ChangesSince>,
}

/// What changed since an earlier manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangesSince {
    /// That manifest's fingerprint.
    pub fingerprint: String,
    /// Indexes of entries that are new, have another identity, or had none that could be trusted.
    pub changed: Vec<usize>,
    /// Paths that were entries, sorted.
    pub removed: Vec<Vec<u8>>,
}

/// A number of files and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Volume {
    /// How many files.
    pub files: u64,
    /// Their sizes, added up.
    pub bytes: u64,
}

/// Why the list of files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The ignore file is not a small regular file.
    #[error(transparent)]
    IgnoreFile(#[from] SmallError),
    /// There is no git repository. The wording is the Go program's.
    #[error(
        "{} is not a Git repository: crabbox builds its sync manifest from Git; run `git init` here to sync files, \
         or pass --no-sync to run without syncing local files", root.display()
    )]
    NotARepository {
        /// The directory.
        root: PathBuf,
    },
    /// A bare repository or the inside of `.git`.
    #[error(
        "{} has no working tree (a bare Git repository, or the inside of one): run crabbox from a checkout, \
         or pass --no-sync to run without syncing local files", root.display()
    )]
    Bare {
        /// The directory.
        root: PathBuf,
    },
    /// A Jujutsu workspace without git.
    #[error(
        "{} is a native Jujutsu workspace without a colocated Git repository: crabbox builds its sync manifest from Git; \
         run `jj git init --colocate`, or pass --no-sync to run without syncing local files", root.display()
    )]
    JujutsuOnly {
        /// The directory.
        root: PathBuf,
    },
    /// The repository refers to another one.
    #[error("{} is not synced: {redirect}", root.display())]
    Redirected {
        /// The current directory.
        root: PathBuf,
        /// How.
        redirect: Redirect,
    },
    /// git refuses to work here or broke off. The wording is the Go program's.
    #[error("git ls-files in {} failed: {said}", root.display())]
    GitRefused {
        /// The root.
        root: PathBuf,
        /// Its whole message, including advice.
        said: String,
    },
    /// The configuration of the repository cannot be made harmless.
    #[error("cannot list the files of {}", root.display())]
    Configuration {
        /// The root.
        root: PathBuf,
        /// Why.
        #[source]
        source: ConfigurationError,
    },
    /// git could not be run.
    #[error("cannot list the files of {}", root.display())]
    Git {
        /// The root.
        root: PathBuf,
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// git listed more than fits in memory bounds.
    #[error("git lists more than {} MiB of file names in {}: narrow the sync with sync.include", CAPTURE_LIMIT >> 20, root.display())]
    TooLong {
        /// The root.
        root: PathBuf,
    },
    /// A submodule is checked out but git cannot work in it.
    #[error(
        "the submodule {path} cannot be listed (`git submodule update --init` may mend it, sync.exclude leaves it out): {said}"
    )]
    Submodule {
        /// Its path.
        path: String,
        /// All that git said.
        said: String,
    },
    /// git's answer is not in its documented format.
    #[error("git in {} printed a file list that crabbox cannot read: {line}", root.display())]
    Unreadable {
        /// The root.
        root: PathBuf,
        /// The record that does not parse.
        line: String,
    },
    /// A tracked path is hidden by a sparse checkout.
    #[error(
        "{path} is tracked but not checked out (sparse checkout or skip-worktree), and {count} such path(s) are in scope: \
         run `git sparse-checkout disable`, or leave them out with sync.exclude or sync.include"
    )]
    Hidden {
        /// The first of them.
        path: String,
        /// How many there are.
        count: usize,
    },
    /// Something that is neither a file nor a link.
    #[error("{path} is a {kind}, which cannot be synced: remove it, or leave it out with sync.exclude")]
    Special {
        /// The path.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file the user may not read.
    #[error("{path} cannot be read: change its permissions, or leave it out with sync.exclude")]
    Denied {
        /// The path.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A path could not be examined.
    #[error("cannot inspect {path}")]
    Look {
        /// The path.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Manifest {
    /// Builds the manifest of `repo` from its working tree.
    pub fn build(repo: &Repo, scope: &Scope) -> Result<Self, ManifestError> {
        repo.check_syncable()?;
        Ok(Self::ask_git(repo, scope, &[])?.0)
    }

    /// The same, but reuses the last manifest as far as it is still valid, and remembers this one.
    pub fn build_remembering(repo: &Repo, scope: &Scope, memory: &Memory) -> Result<Self, ManifestError> {
        repo.check_syncable()?;
        let root = repo.root.as_path();
        let seen = memory.recall(repo, scope);
        let scan = Scan::start(root)?;
        let changed = seen
            .as_ref()
            .and_then(|seen| seen.still(&scan, || Configuration::read(root).ok()));
        let seen = match (seen, changed) {
            (Some(mut seen), Some(changed)) => {
                let since = ChangesSince {
                    fingerprint: seen.fingerprint().to_owned(),
                    changed: changed.iter().map(|(at, _)| *at).collect(),
                    removed: Vec::new(),
                };
                if !changed.is_empty() {
                    seen.apply(&scan, changed);
                    memory.keep(&seen);
                }
                return Ok(seen.into_manifest(repo, Some(since)));
            }
            (seen, _) => seen,
        };
        // Read before git runs: a configuration that changes meanwhile will differ at the next call.
        let config = Configuration::read(root).ok();
        let (mut manifest, scan) = Self::ask_git(repo, scope, memory.ignore_files())?;
        manifest.since = seen.map(|seen| seen.since(&manifest));
        memory.keep(&memory.seen(&scan, &manifest, scope, config.as_ref()));
        Ok(manifest)
    }

    /// `ignore_files` as in [`Memory::of`].
    fn ask_git(repo: &Repo, scope: &Scope, ignore_files: &[PathBuf]) -> Result<(Self, Scan), ManifestError> {
        let root = repo.root.as_path();
        let ignore_file = read_ignore_file(root)?;
        let filter = Filter::new(&scope.exclude, &ignore_file, &scope.include);
        // Started before the first file is examined: files touched later than this are not trusted to stay as
        // they were seen.
        let scan = Scan::start(root)?;
        let mut tree = submodules::ask(&scan, &filter, b"")?;
        let excluded = Filter::new(&scope.exclude, &ignore_file, &[]);
        let modules = submodules::add(&mut tree, &scan, &filter, &excluded)?;
        // Do not report what is excluded on purpose.
        tree.status
            .nested
            .retain(|path| excluded.judge(path, false) != Verdict::Drop);
        let Tree {
            index,
            looks,
            status,
            settings,
            names_excludes,
        } = tree;
        let mut draft = ManifestBuilder::new(scan, filter);
        draft.settings = settings;
        let own = rules::of_clone(root, names_excludes, ignore_files);
        (draft.attributes, draft.excludes) = (own.attributes, own.excludes);
        draft.fill(&index, looks, &status)?.finish(repo, modules, status)
    }

    /// The path prefix of each repository in the tree: submodules, ending in a slash, deeper ones first; then
    /// the empty prefix of the root.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Vec<u8>> {
        let submodules = self.submodules.iter().rev();
        submodules
            .map(|path| [path, &b"/"[..]].concat())
            .chain([Vec::new()])
    }

    /// All files in scope.
    pub fn candidate(&self) -> Volume {
        volume(self.entries.iter())
    }

    /// The files that differ from `HEAD`; a deleted file counts with zero bytes, as in the Go program.
    pub fn dirty(&self) -> Volume {
        let changed = volume(self.entries.iter().filter(|entry| entry.changed));
        Volume {
            files: changed.files + self.deleted.len() as u64,
            ..changed
        }
    }
}

fn volume<'a>(entries: impl Iterator<Item = &'a Entry>) -> Volume {
    entries.fold(Volume::default(), |sum, entry| Volume {
        files: sum.files + 1,
        bytes: sum.bytes + entry.size,
    })
}

pub(crate) fn read_ignore_file(root: &Path) -> Result<Vec<u8>, ManifestError> {
    // The file is as untrusted as the repository: it may be a link to a device, or a pipe that blocks.
    match read_small(root, Path::new(IGNORE_FILE), IGNORE_LIMIT) {
        Ok(bytes) => Ok(bytes),
        Err(SmallError::Absent { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// A manifest being built.
struct ManifestBuilder {
    scan: Scan,
    filter: Filter,
    entries: Vec<Entry>,
    deleted: Vec<Vec<u8>>,
    hidden: Vec<Vec<u8>>,
    protected_tracked: Vec<(Vec<u8>, Vec<u8>)>,
    marks: Vec<Mark>,
    settings: Vec<u8>,
    attributes: Vec<u8>,
    excludes: Vec<u8>,
}

impl ManifestBuilder {
    fn new(scan: Scan, filter: Filter) -> Self {
        Self {
            scan,
            filter,
            entries: Vec::new(),
            deleted: Vec::new(),
            hidden: Vec::new(),
            protected_tracked: Vec::new(),
            marks: Vec::new(),
            settings: Vec::new(),
            attributes: Vec::new(),
            excludes: Vec::new(),
        }
    }

    fn fill(mut self, index: &Index, looks: Vec<Look>, status: &Status) -> Result<Self, ManifestError> {
        // For each index entry, which git sorts by path: `None` if out of scope, else whether the file
        // exists.
        let mut exists: Vec<Option<bool>> = Vec::with_capacity(looks.len());
        self.entries.reserve(looks.len());
        for (tracked, look) in index.paths.iter().zip(looks) {
            let Look::InScope { entry, spared } = look else {
                // The file is not synced; mark it so that git does not take it for deleted.
                self.mark(tracked, SKIPPED);
                exists.push(None);
                continue;
            };
            self.mark(tracked, 0);
            exists.push(Some(entry.is_some()));
            match entry {
                Some(mut entry) => {
                    entry.changed = status.changed.contains(&tracked.path);
                    entry.standing = match status.unlike.contains(&tracked.path) {
                        // It belongs to the index of a submodule.
                        _ if tracked.below => Standing::Untracked,
                        true => Standing::Unlike,
                        // git may have examined it before this change.
                        false if self.scan.is_younger(&entry) => Standing::Unlike,
                        false => Standing::Same,
                    };
                    self.protected_tracked
                        .extend(spared.map(|rule| (tracked.path.clone(), rule)));
                    self.entries.push(entry);
                }
                None if tracked.hidden => self.hidden.push(tracked.path.clone()),
                None => self.deleted.push(tracked.path.clone()),
            }
        }
        let tracked = |path: &[u8]| -> Option<bool> {
            let place = index
                .paths
                .binary_search_by(|tracked| tracked.path.as_slice().cmp(path))
                .ok()?;
            exists.get(place).copied().flatten()
        };
        let mut judge = self.filter.judge_of_many();
        let untracked: Vec<&Vec<u8>> = status
            .untracked
            .iter()
            .filter(|path| judge.judge(path, false) == Verdict::Keep && tracked(path) != Some(true))
            .collect();
        let found = self
            .scan
            .all(&untracked, || (), |eye, (), path| eye.look(path, true))?;
        let brought: HashSet<&[u8]> = untracked
            .iter()
            .zip(&found)
            .filter(|(_, entry)| entry.is_some())
            .map(|(path, _)| path.as_slice())
            .collect();
        for path in &status.staged_deletions {
            if tracked(path).is_none()
                && !brought.contains(path.as_slice())
                && self.filter.judge(path, true) != Verdict::Drop
            {
                self.deleted.push(path.clone());
            }
        }
        self.entries.extend(found.into_iter().flatten());
        Ok(self)
    }

    /// Records the flags that the index in the lease must have for a path, with `more` added.
    fn mark(&mut self, tracked: &Tracked, more: u8) {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = bit(tracked.assumed, ASSUMED) | bit(tracked.hidden, SKIPPED) | more;
        if flags != 0 && !tracked.below {
            self.marks.push(Mark {
                path: tracked.path.clone(),
                flags,
            });
        }
    }

    fn finish(
        mut self,
        repo: &Repo,
        modules: Submodules,
        status: Status,
    ) -> Result<(Manifest, Scan), ManifestError> {
        if let Some(path) = self.hidden.first() {
            return Err(ManifestError::Hidden {
                path: crate::entry::show(path),
                count: self.hidden.len(),
            });
        }
        self.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.deleted.sort_unstable();
        self.deleted.dedup();
        self.marks.extend(modules.marks);
        let intended = status.staged.iter().filter(|staged| staged.intended);
        self.marks.extend(intended.map(|staged| Mark {
            path: staged.path.clone(),
            flags: INTENDED,
        }));
        self.marks.sort_by(|a, b| a.path.cmp(&b.path));
        let fingerprint = self.scan.fingerprint(&self.entries, &self.deleted);
        let manifest = Manifest {
            root: self.scan.root.clone(),
            entries: self.entries,
            deleted: self.deleted,
            protected_tracked: self.protected_tracked,
            submodules: modules.present,
            absent: modules.absent,
            nested: status.nested,
            staged: status.staged,
            marks: self.marks,
            settings: self.settings,
            attributes: self.attributes,
            excludes: self.excludes,
            repo: repo.clone(),
            fingerprint,
            since: None,
        };
        Ok((manifest, self.scan))
    }
}
