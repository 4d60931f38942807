//! Changes of a lease brought back into the working tree: `crabbox pull`.
//!
//! A file here gives way only when it is the one that was sent, which is looked at once more in the moment of the exchange;
//! what git does not have is kept beside. Nothing is written through a link, and no link is made.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::archive::{ArchiveError, MemberKind, Reader};
use crabbox_host::beneath::{Beneath, BeneathError, Existing};
use crabbox_host::budget::{Budget, OverBudget};
use crabbox_host::entry_path::EntryPath;
use crabbox_ssh::capture;
use crabbox_ssh::exec::{ExecError, RemoteStatus, Stdin};
use crabbox_ssh::quote;
use crabbox_sync::Entry;
use crabbox_sync::manifest::{Manifest, ManifestError};
use crabbox_sync::pull::{self, Change, PullError as PlanError};
pub use crabbox_sync::pull::{Act, Left, Plan};
use rustix::fs::{AtFlags, RenameFlags};

use crate::stream::{budget, stream};
use crate::sync::{self, Destination, Repo};
use crabbox_ssh::target::Target;

/// How long listing may take.
const LIST_LIMIT: Duration = Duration::from_mins(10);

/// Why nothing, or not everything, was brought.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The tree here could not be listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The lease could not be asked.
    #[error("cannot ask the lease what has changed")]
    Exec(#[from] ExecError),
    /// It had no answer.
    #[error("cannot {attempt} in the lease: {said}")]
    Remote {
        /// What was tried.
        attempt: &'static str,
        /// What the lease said.
        said: String,
    },
    /// It sent something else than was asked for.
    #[error("the lease sent {name:?}, which was not asked for; nothing was changed here")]
    Unasked {
        /// The name in the archive.
        name: String,
    },
    /// The archive is broken.
    #[error("what the lease sent is no archive; nothing was changed here")]
    Garbled(#[source] ArchiveError),
    /// It sent more than may be kept here.
    #[error("the lease sent {name:?}, which cannot be kept; nothing was changed here")]
    Over {
        /// The file.
        name: String,
        /// The limit.
        #[source]
        over: OverBudget,
    },
    /// The user interrupted while the files came.
    #[error("interrupted; nothing was changed here")]
    Interrupted,
    /// A file here cannot be reached, or something is in its way.
    #[error(transparent)]
    Beneath(#[from] BeneathError),
    /// A file here could not be written.
    #[error("cannot write {}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file was changed in the very moment.
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
            Self::Exec(_)
            | Self::Remote { .. }
            | Self::Unasked { .. }
            | Self::Garbled(_)
            | Self::Over { .. } => Kind::Remote,
            Self::Local { .. } | Self::Beneath(_) => Kind::Usage,
            Self::Interrupted => Kind::Passthrough(130),
        }
    }
}

/// What has changed in the lease, held against the tree here. The workdir must be ours. Stops when `cancel` becomes readable.
pub fn plan(
    target: &Target,
    destination: &Destination,
    repo: &Repo,
    settings: &SyncSettings,
    only: &[String],
    cancel: BorrowedFd<'_>,
) -> Result<Plan, PullError> {
    let script = pull::script(destination);
    let listed = capture::capture_until(target, &script, Stdin::Null, Some(LIST_LIMIT), Some(cancel))?;
    if matches!(listed.status, RemoteStatus::Cancelled { .. }) {
        return Err(PullError::Interrupted);
    }
    if !listed.success() || listed.stdout.len() == capture::CAPTURE_LIMIT {
        return Err(PullError::Remote {
            attempt: "list what has changed",
            said: listed.stderr_text(),
        });
    }
    let scope = sync::scope(settings);
    let manifest = Manifest::build(repo, &scope)?;
    Ok(pull::plan(&manifest, &scope, &listed.stdout, only)?)
}

/// Brings the changes. `kept` is a new directory below the root, on its file system, for what git does not have; returns
/// whether anything is in it. Stops before anything here is changed when `cancel` becomes readable.
pub fn apply(
    target: &Target,
    workdir: &str,
    root: &Path,
    changes: &[Change],
    kept: &EntryPath,
    cancel: BorrowedFd<'_>,
) -> Result<bool, PullError> {
    let tree = Beneath::open(root)?;
    let aside = tree.make_dirs(Some(kept), PRIVATE)?;
    let new = entry(b"new")?;
    let stage = Stage {
        dir: aside.make_dirs(Some(&new), PRIVATE)?,
    };
    let brought: Vec<&Change> = changes
        .iter()
        .filter(|change| !matches!(change.act, Act::Remove(_)))
        .collect();
    fetch(target, workdir, &brought, &stage.dir, cancel)?;
    let mut place = Workspace {
        tree,
        stage: &stage.dir,
        aside,
        any_kept: false,
    };
    for (number, change) in brought.iter().enumerate() {
        place.put(change, &numbered("", number)?)?;
    }
    for (number, change) in changes.iter().enumerate() {
        if let Act::Remove(entry) = &change.act {
            place.remove(change, entry, &numbered("gone-", number)?)?;
        }
    }
    let any_kept = place.any_kept;
    drop(stage);
    if !any_kept {
        // It is empty now; if it is not, it stays.
        std::fs::remove_dir(root.join(kept.as_path())).ok();
    }
    Ok(any_kept)
}

/// Permission bits of directories that only their owner may enter.
const PRIVATE: u32 = 0o700;
/// Permission bits of new directories and files of the tree, less the umask.
const DIRECTORY: u32 = 0o777;
const FILE: u32 = 0o666;

/// Where the files are until all of them are there; it goes with all that is left in it.
struct Stage {
    dir: Beneath,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What stays is private, in a directory of its own, and has a name that says what it is.
        crabbox_host::files::remove_tree(self.dir.path()).ok();
    }
}

fn numbered(prefix: &str, number: usize) -> Result<EntryPath, PullError> {
    entry(format!("{prefix}{number}").as_bytes())
}

/// `path` as one below the tree. What is none has been skipped by the plan already.
fn entry(path: &[u8]) -> Result<EntryPath, PullError> {
    EntryPath::exact(path).map_err(|_| PullError::Unasked {
        name: String::from_utf8_lossy(path).into_owned(),
    })
}

/// Fetches the files as `0`, `1`, … in `stage`. A name from the lease only selects which of them it is.
fn fetch(
    target: &Target,
    workdir: &str,
    wanted: &[&Change],
    stage: &Beneath,
    cancel: BorrowedFd<'_>,
) -> Result<(), PullError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let (mut names, mut numbers) = (Vec::new(), HashMap::new());
    for (number, change) in wanted.iter().enumerate() {
        names.extend_from_slice(b"./");
        names.extend_from_slice(&change.path);
        names.push(0);
        numbers.insert(change.path.clone(), number);
    }
    let script = format!(
        "cd {} && exec tar -c --no-recursion --hard-dereference --null -T - -f -",
        quote::single(workdir)
    );
    let local = |source| PullError::Local {
        path: stage.path().to_owned(),
        source,
    };
    let budget = budget(target, stage).map_err(local)?;
    let streamed = stream(target, script, Stdin::Bytes(&names), Some(cancel), |pipe| {
        take(pipe, &numbers, wanted, stage, budget)
    })
    .map_err(local)?;
    if matches!(streamed.status, Ok(RemoteStatus::Cancelled { .. })) {
        return Err(PullError::Interrupted);
    }
    let count = streamed.taken?;
    if streamed.status? != RemoteStatus::Exited(0) || count != wanted.len() {
        return Err(PullError::Remote {
            attempt: "read the changed files",
            said: streamed.said.text(),
        });
    }
    Ok(())
}

/// Unpacks; returns how many files came.
fn take(
    pipe: PipeReader,
    numbers: &HashMap<Vec<u8>, usize>,
    wanted: &[&Change],
    stage: &Beneath,
    mut budget: Budget,
) -> Result<usize, PullError> {
    let mut archive = Reader::new(io::BufReader::with_capacity(64 * 1024, pipe));
    let mut count = 0;
    while let Some(member) = archive.next_member().map_err(PullError::Garbled)? {
        let number = member
            .path
            .strip_prefix(b"./")
            .and_then(|name| numbers.get(name).copied());
        let number = number
            .filter(|_| member.kind == MemberKind::File)
            .ok_or_else(|| PullError::Unasked {
                name: String::from_utf8_lossy(&member.path).into_owned(),
            })?;
        let mut placing = stage.begin(&numbered("", number)?, FILE)?;
        let path = placing.path();
        archive
            .extract(&member, placing.file(), &mut budget)
            .map_err(|error| blame(error, &path))?;
        if wanted[number].executable {
            placing.make_executable()?;
        }
        placing.commit(Existing::Refuse)?;
        count += 1;
    }
    archive.finish().map_err(PullError::Garbled)?;
    Ok(count)
}

/// Whose fault it is that a file of the archive is not at `path`.
fn blame(error: ArchiveError, path: &Path) -> PullError {
    match error {
        ArchiveError::Write { source, .. } => PullError::Local {
            path: path.to_owned(),
            source,
        },
        ArchiveError::Over { path, over } => PullError::Over {
            name: String::from_utf8_lossy(&path).into_owned(),
            over,
        },
        error => PullError::Garbled(error),
    }
}

/// The working tree that files are put into.
struct Workspace<'a> {
    tree: Beneath,
    /// Where they come from, and where what gives way goes first.
    stage: &'a Beneath,
    /// The directory for what git does not have.
    aside: Beneath,
    any_kept: bool,
}

impl Workspace<'_> {
    fn put(&mut self, change: &Change, new: &EntryPath) -> Result<(), PullError> {
        let path = entry(&change.path)?;
        let (dir, leaf) = self.tree.parent_of(&path, DIRECTORY)?;
        let Act::Replace(sent) = &change.act else {
            return self
                .stage
                .rename(new, &dir, &leaf, RenameFlags::NOREPLACE)
                .map_err(|error| self.raced(error, &path));
        };
        // What comes out is looked at before it is given up.
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

    /// A file that came into being since the look.
    fn raced(&self, error: BeneathError, path: &EntryPath) -> PullError {
        match error {
            BeneathError::Exists { .. } => PullError::Raced {
                path: self.tree.full(path),
            },
            error => error.into(),
        }
    }

    /// Keeps what git does not have.
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

/// Whether this is still the file that the plan was made for. Its change time is that of the exchange.
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

    fn change(path: &str, act: Act) -> Change {
        Change {
            path: path.as_bytes().to_vec(),
            act,
            executable: false,
        }
    }

    #[test]
    fn a_full_disk_here_is_not_blamed_on_the_lease() {
        let path = Path::new("/stage/0");
        let full = ArchiveError::Write {
            path: b"./f".to_vec(),
            source: io::ErrorKind::StorageFull.into(),
        };
        assert!(matches!(blame(full, path), PullError::Local { .. }));
        let cut = ArchiveError::Read(io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(blame(cut, path), PullError::Garbled(_)));
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
            place.put(&change("file", Act::Replace(sent.clone())), &new("1")),
            place.remove(&change("file", Act::Remove(sent.clone())), &sent, &gone),
            place.put(&change("file", Act::Add), &new("2")),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(PullError::Raced { .. })), "{outcome:?}");
            assert_eq!(fs::read(at("root/file")).unwrap(), b"mine, later");
        }
        // Nothing goes through a link, whichever side it is on.
        std::os::unix::fs::symlink(at("kept"), at("root/link")).unwrap();
        let through = place.put(&change("link/file", Act::Add), &new("3"));
        assert!(
            matches!(through, Err(PullError::Beneath(BeneathError::Link { .. }))),
            "{through:?}"
        );
        assert!(fs::read_dir(at("kept")).unwrap().next().is_none());
        // The one that was sent gives way, and is kept because git does not have it.
        let now = found(&at("root/file"));
        place.put(&change("file", Act::Replace(now)), &new("4")).unwrap();
        assert_eq!(fs::read(at("root/file")).unwrap(), b"theirs");
        assert_eq!(fs::read(at("kept/before/file")).unwrap(), b"mine, later");
        assert!(place.any_kept);
    }

    #[test]
    fn a_file_that_is_larger_than_there_is_room_for_is_refused_by_its_name() {
        use crabbox_host::budget::Bound;
        let dir = tempfile::tempdir().unwrap();
        let stage = Beneath::open(dir.path()).unwrap();
        let wanted = change("big", Act::Add);
        let numbers = HashMap::from([(b"big".to_vec(), 0)]);
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..5].copy_from_slice(b"./big");
        header.set_size(1 << 40);
        header.set_cksum();
        let (reader, mut writer) = io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, header.as_bytes()).unwrap();
        drop(writer);
        let budget = Budget::of(1 << 20, Bound::FreeSpace);
        let error = take(reader, &numbers, &[&wanted], &stage, budget).unwrap_err();
        assert!(
            matches!(&error, PullError::Over { name, .. } if name == "./big"),
            "{error}"
        );
        assert!(stage.names().unwrap().is_empty());
    }
}
