//! Brings changes of a lease back into the working tree: `crabbox pull`.
//!
//! A local file is replaced only if it is the one that was sent, which is checked again at the moment of the
//! exchange; contents that git does not have are kept aside. Nothing is written through a link, and no link
//! is created.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_agent_protocol::Request;
use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::beneath::{Beneath, BeneathError};
use crabbox_host::budget::{Budget, OverBudget};
use crabbox_host::entry_path::EntryPath;
use crabbox_ssh::agent_client::{AgentClient, AgentError};
use crabbox_sync::Entry;
use crabbox_sync::manifest::{Manifest, ManifestError};
use crabbox_sync::pull::{self, Change, PullError as PlanError};
pub use crabbox_sync::pull::{Left, Only, Plan, PullAction};
use rustix::fs::{AtFlags, RenameFlags};

use crate::files::{self, FetchError, FetchRequest, Fetched};
use crate::owner::{Owner, far_hints};
use crate::stream::{Arriving, Unplaced, budget};
use crate::sync::{self, Destination, Repo};
use crabbox_ssh::target::Target;

/// How long listing may take.
pub(crate) const LIST_LIMIT: Duration = Duration::from_mins(10);

/// Why nothing, or not everything, was brought back.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The local tree could not be listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The lease could not be asked.
    #[error("cannot get the list of changes from the lease")]
    Agent(#[source] AgentError),
    /// It sent a path that cannot be below the tree.
    #[error("the lease has {name:?}, which is not a path below the tree; nothing was changed here")]
    Name {
        /// The path.
        name: String,
    },
    /// The lease could not do it.
    #[error("cannot {attempt} in the lease: {said}")]
    Remote {
        /// What was tried.
        attempt: &'static str,
        /// What the lease said.
        said: String,
    },
    /// It sent more than may be kept here.
    #[error("the lease sent {name:?}, which cannot be kept; nothing was changed here")]
    Over {
        /// The file.
        name: String,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// The user interrupted while the files were received.
    #[error("interrupted; nothing was changed here")]
    Interrupted,
    /// A local file cannot be reached, or something is in its way.
    #[error(transparent)]
    Beneath(#[from] BeneathError),
    /// A local file could not be written.
    #[error("cannot write {}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file was changed locally at the same moment.
    #[error("{} was changed here meanwhile and was left as it is", path.display())]
    Raced {
        /// The file.
        path: PathBuf,
    },
}

impl Fault for PullError {
    fn kind(&self) -> Kind {
        match self {
            Self::Plan(_) | Self::Manifest(_) | Self::Raced { .. } => Kind::Sync,
            Self::Agent(_) | Self::Name { .. } | Self::Remote { .. } | Self::Over { .. } => Kind::Remote,
            Self::Local { .. } | Self::Beneath(_) => Kind::Usage,
            Self::Interrupted => Kind::Passthrough(130),
        }
    }

    fn hints(&self) -> Vec<String> {
        far_hints(self)
    }
}

/// Compares the changes in the lease with the local tree.
pub fn plan(
    owner: &mut Owner,
    destination: &Destination,
    repo: &Repo,
    settings: &SyncSettings,
    only: &Only,
) -> Result<Plan, PullError> {
    let list = listed(owner, "list what has changed", |far| {
        far.ask(&Request::Changes {
            lease_dir: destination.lease_dir(),
            name: destination.name.clone(),
        })
    })?;
    let scope = sync::scope(settings);
    let manifest = Manifest::build(repo, &scope)?;
    pull::plan(&manifest, &scope, &list, only, |paths| {
        listed(owner, "compare what has changed", |far| {
            far.ask(&Request::Digest {
                dir: destination.workdir(),
            })?;
            far.send_list(&files::list(paths))
        })
    })
}

/// Asks the lease for a list.
fn listed(
    owner: &mut Owner,
    attempt: &'static str,
    ask: impl FnOnce(&mut AgentClient) -> Result<(), AgentError>,
) -> Result<Vec<u8>, PullError> {
    let far = owner.far();
    far.limit(Some(LIST_LIMIT));
    let listed = ask(far).and_then(|()| far.list());
    far.limit(None);
    let (list, _) = listed.map_err(|error| failed(attempt, error))?;
    Ok(list)
}

fn failed(attempt: &'static str, error: AgentError) -> PullError {
    match error {
        AgentError::Cancelled => PullError::Interrupted,
        AgentError::Failed { why } => PullError::Remote { attempt, said: why },
        error => PullError::Agent(error),
    }
}

/// The result of bringing changes back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// How many were brought back.
    pub count: usize,
    /// Whether anything that git does not have was kept aside.
    pub any_kept: bool,
    /// Files that the lease could not read, with reasons.
    pub unread: Vec<String>,
}

/// Brings the changes back. `kept` is a new directory below the root, on its file system, for contents that
/// git does not have. A file that the lease cannot read stays as it is here, and does not affect the others.
pub fn apply(
    owner: &mut Owner,
    target: &Target,
    workdir: &str,
    root: &Path,
    changes: &[Change],
    kept: &EntryPath,
) -> Result<Brought, PullError> {
    let tree = Beneath::open(root)?;
    let aside = tree.make_dirs(Some(kept), PRIVATE)?;
    let new = entry(b"new")?;
    let stage = Stage {
        dir: aside.make_dirs(Some(&new), PRIVATE)?,
    };
    let brought: Vec<&Change> = changes
        .iter()
        .filter(|change| !matches!(change.act, PullAction::Remove(_)))
        .collect();
    let unread = fetch(owner, target, workdir, &brought, &stage.dir)?;
    let mut place = Workspace {
        tree,
        stage: &stage.dir,
        aside,
        any_kept: false,
    };
    let came = brought.iter().enumerate();
    for (number, change) in came.filter(|(number, _)| !unread.contains_key(number)) {
        place.put(change, &numbered("", number)?)?;
    }
    for (number, change) in changes.iter().enumerate() {
        if let PullAction::Remove(entry) = &change.act {
            place.remove(change, entry, &numbered("gone-", number)?)?;
        }
    }
    let any_kept = place.any_kept;
    drop(stage);
    if !any_kept {
        // It should be empty; otherwise it stays.
        std::fs::remove_dir(root.join(kept.as_path())).ok();
    }
    Ok(Brought {
        count: changes.len() - unread.len(),
        any_kept,
        unread: unread.into_values().collect(),
    })
}

/// Permission bits of directories that only their owner may enter.
const PRIVATE: u32 = 0o700;
/// Permission bits of new directories and files of the tree, less the umask.
const DIRECTORY: u32 = 0o777;
const FILE: u32 = 0o666;

/// The staging directory for files until all of them have arrived; removed on drop with everything in it.
struct Stage {
    dir: Beneath,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // If this fails, the leftover is private, in its own directory, and its name says what it is.
        crabbox_host::files::remove_tree(self.dir.path()).ok();
    }
}

fn numbered(prefix: &str, number: usize) -> Result<EntryPath, PullError> {
    entry(format!("{prefix}{number}").as_bytes())
}

/// Converts `path` to one below the tree. The plan has already skipped invalid ones.
fn entry(path: &[u8]) -> Result<EntryPath, PullError> {
    EntryPath::exact(path).map_err(|_| PullError::Name {
        name: String::from_utf8_lossy(path).into_owned(),
    })
}

/// Fetches the files as `0`, `1`, … into `stage`; returns the numbers of those that did not arrive intact,
/// with reasons. A number from the lease only selects one of them.
fn fetch(
    owner: &mut Owner,
    target: &Target,
    workdir: &str,
    wanted: &[&Change],
    stage: &Beneath,
) -> Result<BTreeMap<usize, String>, PullError> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let names: Vec<Vec<u8>> = wanted.iter().map(|change| change.path.clone()).collect();
    let budget = budget(target, stage).map_err(|source| PullError::Local {
        path: stage.path().to_owned(),
        source,
    })?;
    let mut taking = Taking {
        wanted,
        stage,
        budget,
        open: None,
        came: HashSet::new(),
        unread: BTreeMap::new(),
        error: None,
    };
    let asked = FetchRequest {
        dir: workdir,
        names: &names,
        follow: false,
        within: false,
        limit: None,
    };
    let fetched = files::fetch(owner.far(), &asked, &mut |event| {
        taking.take(event).map_err(|error| {
            taking.error = Some(error);
            io::ErrorKind::Other.into()
        })
    });
    match fetched {
        Err(FetchError::Agent(error)) => return Err(failed("read the changed files", error)),
        // The reason for an early stop is in `taking`.
        Ok(()) | Err(FetchError::Sink(_)) => {}
    }
    if let Some(error) = taking.error.take() {
        return Err(error);
    }
    taking.end()?;
    let has_answer = |number| taking.came.contains(&number) || taking.unread.contains_key(&number);
    if (0..wanted.len()).all(has_answer) {
        return Ok(taking.unread);
    }
    Err(PullError::Remote {
        attempt: "read the changed files",
        said: "not all of them came".to_owned(),
    })
}

/// Receives files into the stage.
struct Taking<'a> {
    wanted: &'a [&'a Change],
    stage: &'a Beneath,
    budget: Budget,
    open: Option<(usize, Arriving)>,
    /// The files that have arrived.
    came: HashSet<usize>,
    /// The files that have not arrived, or not intact, with reasons.
    unread: BTreeMap<usize, String>,
    error: Option<PullError>,
}

impl From<Unplaced> for PullError {
    fn from(unplaced: Unplaced) -> Self {
        match unplaced {
            Unplaced::Over { name, over } => Self::Over { name, over },
            Unplaced::Local { path, source } => Self::Local { path, source },
            Unplaced::Beneath(error) => error.into(),
        }
    }
}

impl Taking<'_> {
    fn take(&mut self, event: Fetched<'_>) -> Result<(), PullError> {
        match event {
            Fetched::Begins(coming) => {
                self.end()?;
                let change = self.wanted[coming.number];
                let name = String::from_utf8_lossy(&change.path).into_owned();
                let over = |over| PullError::Over {
                    name: name.clone(),
                    over,
                };
                self.budget.allows(coming.size).map_err(over)?;
                let placing = self.stage.begin(&numbered("", coming.number)?, FILE)?;
                let arriving = Arriving::new(placing, &self.budget, change.executable, name);
                self.open = Some((coming.number, arriving));
                Ok(())
            }
            Fetched::Piece(piece) => match &mut self.open {
                Some((_, open)) => Ok(open.take(&mut self.budget, piece)?),
                None => Ok(()),
            },
            Fetched::Problem { number, text, .. } => {
                self.unread.entry(number).or_insert_with(|| text.to_owned());
                Ok(())
            }
        }
    }

    /// Moves the open file to its place.
    fn end(&mut self) -> Result<(), PullError> {
        if let Some((number, open)) = self.open.take() {
            open.end()?;
            self.came.insert(number);
        }
        Ok(())
    }
}

/// The working tree that files are moved into.
struct Workspace<'a> {
    tree: Beneath,
    /// Where they come from, and where replaced files go first.
    stage: &'a Beneath,
    /// The directory for what git does not have.
    aside: Beneath,
    any_kept: bool,
}

impl Workspace<'_> {
    fn put(&mut self, change: &Change, new: &EntryPath) -> Result<(), PullError> {
        let path = entry(&change.path)?;
        let (dir, leaf) = self.tree.parent_of(&path, DIRECTORY)?;
        let PullAction::Replace(sent) = &change.act else {
            return self
                .stage
                .rename(new, &dir, &leaf, RenameFlags::NOREPLACE)
                .map_err(|error| self.raced(error, &path));
        };
        // The old file is checked after the exchange, before it is given up.
        let exchange = || self.stage.rename(new, &dir, &leaf, RenameFlags::EXCHANGE);
        exchange()?;
        if is_as_sent(self.stage, new, sent) {
            self.keep(&path, sent, new)
        } else {
            exchange()?;
            Err(PullError::Raced {
                path: self.tree.full(&path),
            })
        }
    }

    fn remove(&mut self, change: &Change, sent: &Entry, gone: &EntryPath) -> Result<(), PullError> {
        let path = entry(&change.path)?;
        let (dir, leaf) = self.tree.parent_of(&path, DIRECTORY)?;
        dir.rename(&leaf, self.stage, gone, RenameFlags::NOREPLACE)?;
        if is_as_sent(self.stage, gone, sent) {
            self.keep(&path, sent, gone)
        } else {
            self.stage.rename(gone, &dir, &leaf, RenameFlags::NOREPLACE)?;
            Err(PullError::Raced {
                path: self.tree.full(&path),
            })
        }
    }

    /// Reports a file that was created since the plan was made.
    fn raced(&self, error: BeneathError, path: &EntryPath) -> PullError {
        match error {
            BeneathError::Exists { .. } => PullError::Raced {
                path: self.tree.full(path),
            },
            error => error.into(),
        }
    }

    /// Keeps an old file aside if git does not have it.
    fn keep(&mut self, path: &EntryPath, sent: &Entry, old: &EntryPath) -> Result<(), PullError> {
        if !sent.changed {
            return Ok(());
        }
        let before = self.aside.make_dirs(Some(&entry(b"before")?), PRIVATE)?;
        let (dir, leaf) = before.parent_of(path, PRIVATE)?;
        self.stage.rename(old, &dir, &leaf, RenameFlags::NOREPLACE)?;
        self.any_kept = true;
        Ok(())
    }
}

/// Whether this is still the file that the plan was made for. Its change time cannot be compared, because the
/// exchange changed it.
fn is_as_sent(dir: &Beneath, name: &EntryPath, entry: &Entry) -> bool {
    rustix::fs::statat(dir, name.as_path(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        let mtime = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
            && mtime == entry.mtime_ns
            && u64::try_from(stat.st_size) == Ok(entry.size)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crabbox_sync::Kind as EntryKind;

    use super::*;

    fn found(path: &Path) -> Entry {
        let stat = rustix::fs::stat(path).unwrap();
        Entry {
            path: b"file".to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            size: u64::try_from(stat.st_size).unwrap(),
            mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            changed: true,
            standing: crabbox_sync::Standing::Untracked,
            identity: Some(1),
        }
    }

    fn change(path: &str, act: PullAction) -> Change {
        Change {
            path: path.as_bytes().to_vec(),
            act,
            executable: false,
        }
    }

    #[test]
    fn what_changed_since_the_look_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["kept", "root", "stage"] {
            fs::create_dir(at(name)).unwrap();
        }
        let stage = Beneath::open(&at("stage")).unwrap();
        let mut place = Workspace {
            tree: Beneath::open(&at("root")).unwrap(),
            stage: &stage,
            aside: Beneath::open(&at("kept")).unwrap(),
            any_kept: false,
        };
        fs::write(at("root/file"), "sent").unwrap();
        let sent = found(&at("root/file"));
        fs::write(at("root/file"), "mine, later").unwrap();
        let new = |name: &str| {
            fs::write(at("stage").join(name), "theirs").unwrap();
            entry(name.as_bytes()).unwrap()
        };
        let gone = entry(b"gone").unwrap();
        let outcomes = [
            place.put(&change("file", PullAction::Replace(sent.clone())), &new("1")),
            place.remove(&change("file", PullAction::Remove(sent.clone())), &sent, &gone),
            place.put(&change("file", PullAction::Add), &new("2")),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(PullError::Raced { .. })), "{outcome:?}");
            assert_eq!(fs::read(at("root/file")).unwrap(), b"mine, later");
        }
        // Nothing is written through a link, on either side.
        std::os::unix::fs::symlink(at("kept"), at("root/link")).unwrap();
        let through = place.put(&change("link/file", PullAction::Add), &new("3"));
        assert!(
            matches!(through, Err(PullError::Beneath(BeneathError::Link { .. }))),
            "{through:?}"
        );
        assert!(fs::read_dir(at("kept")).unwrap().next().is_none());
        // The file that was sent is replaced, and kept because git does not have it.
        let now = found(&at("root/file"));
        place
            .put(&change("file", PullAction::Replace(now)), &new("4"))
            .unwrap();
        assert_eq!(fs::read(at("root/file")).unwrap(), b"theirs");
        assert_eq!(fs::read(at("kept/before/file")).unwrap(), b"mine, later");
        assert!(place.any_kept);
    }

    #[test]
    fn a_file_that_is_larger_than_there_is_room_for_is_refused_by_its_name() {
        use crabbox_host::budget::Bound;

        use crate::files::Coming;
        let dir = tempfile::tempdir().unwrap();
        let stage = Beneath::open(dir.path()).unwrap();
        let wanted = change("big", PullAction::Add);
        let mut taking = Taking {
            wanted: &[&wanted],
            stage: &stage,
            budget: Budget::of(1 << 20, Bound::FreeSpace),
            open: None,
            came: HashSet::new(),
            unread: BTreeMap::new(),
            error: None,
        };
        let coming = Coming {
            number: 0,
            mode: 0o644,
            seconds: 0,
            size: 1 << 40,
        };
        let error = taking.take(Fetched::Begins(&coming)).unwrap_err();
        assert!(
            matches!(&error, PullError::Over { name, .. } if name == "big"),
            "{error}"
        );
        drop(taking);
        assert!(stage.names().unwrap().is_empty());
    }
}
