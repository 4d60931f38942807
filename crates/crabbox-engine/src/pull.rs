//! Changes of a lease brought back into the working tree: `crabbox pull`.
//!
//! A file here gives way only when it is the one that was sent, which is looked at once more in the moment of the exchange;
//! what git does not have is kept beside. Nothing is written through a link, and no link is made.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::config::settings::SyncSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::capture;
use crabbox_ssh::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
use crabbox_ssh::quote;
use crabbox_sync::Entry;
use crabbox_sync::manifest::{Manifest, ManifestError};
use crabbox_sync::pull::{self, Change, PullError as PlanError};
pub use crabbox_sync::pull::{Act, Left, Plan};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::lease::Target;
use crate::run::{self, Destination, Repo};

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
    Garbled(#[source] io::Error),
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
            Self::Exec(_) | Self::Remote { .. } | Self::Unasked { .. } | Self::Garbled(_) => Kind::Remote,
            Self::Local { .. } => Kind::Usage,
        }
    }
}

/// What has changed in the lease, held against the tree here. The workdir must be ours.
pub fn plan(
    target: &Target,
    destination: &Destination,
    repo: &Repo,
    settings: &SyncSettings,
    only: &[String],
) -> Result<Plan, PullError> {
    let listed = capture::capture(target, &pull::script(destination), Stdin::Null, Some(LIST_LIMIT))?;
    if !listed.success() || listed.stdout.len() == capture::CAPTURE_LIMIT {
        return Err(PullError::Remote {
            attempt: "list what has changed",
            said: listed.stderr_text(),
        });
    }
    let scope = run::scope(settings);
    let manifest = Manifest::build(repo, &scope)?;
    Ok(pull::plan(&manifest, &scope, &listed.stdout, only)?)
}

/// Brings the changes. `kept` is a new directory below the root, on its file system, for what git does not have; answers
/// whether anything is in it.
pub fn apply(
    target: &Target,
    workdir: &str,
    root: &Path,
    changes: &[Change],
    kept: &Path,
) -> Result<bool, PullError> {
    let failed = |source| local(kept, source);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(kept)
        .map_err(failed)?;
    let stage = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(kept)
        .map_err(failed)?;
    let brought: Vec<&Change> = changes
        .iter()
        .filter(|change| !matches!(change.act, Act::Remove(_)))
        .collect();
    fetch(target, workdir, &brought, stage.path())?;
    let handle = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| local(root, source.into()))?;
    let mut place = Place {
        root,
        handle,
        kept,
        any_kept: false,
    };
    for (number, change) in brought.iter().enumerate() {
        place.put(change, &stage.path().join(number.to_string()))?;
    }
    for (number, change) in changes.iter().enumerate() {
        if let Act::Remove(entry) = &change.act {
            place.remove(change, entry, &stage.path().join(format!("gone-{number}")))?;
        }
    }
    drop(stage);
    if !place.any_kept {
        // It is empty now; if it is not, it stays.
        std::fs::remove_dir(kept).ok();
    }
    Ok(place.any_kept)
}

fn local(path: &Path, source: io::Error) -> PullError {
    PullError::Local {
        path: path.to_owned(),
        source,
    }
}

/// Fetches the files as `0`, `1`, … in `stage`. A name from the lease only selects which of them it is.
fn fetch(target: &Target, workdir: &str, wanted: &[&Change], stage: &Path) -> Result<(), PullError> {
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
    let (reader, mut writer) = io::pipe().map_err(|source| local(stage, source))?;
    let mut said = Vec::new();
    let script = format!(
        "cd {} && exec tar -c --no-recursion --hard-dereference --null -T - -f -",
        quote::single(workdir)
    );
    let (taken, status) = std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(reader, &numbers, wanted, stage));
        let status = exec::run(
            target,
            Exec {
                script,
                stdin: Stdin::Bytes(&names),
                stdout: Sink::Writer(&mut writer),
                stderr: Sink::Writer(&mut said),
                cancel: None,
                limit: None,
            },
        );
        drop(writer);
        let taken = taking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (taken, status)
    });
    let count = taken?;
    if status? != RemoteStatus::Exited(0) || count != wanted.len() {
        return Err(PullError::Remote {
            attempt: "read the changed files",
            said: String::from_utf8_lossy(&said).trim().to_owned(),
        });
    }
    Ok(())
}

/// Unpacks; answers how many files came.
fn take(
    pipe: io::PipeReader,
    numbers: &HashMap<Vec<u8>, usize>,
    wanted: &[&Change],
    stage: &Path,
) -> Result<usize, PullError> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(64 * 1024, pipe));
    let mut count = 0;
    for entry in archive.entries().map_err(PullError::Garbled)? {
        let mut entry = entry.map_err(PullError::Garbled)?;
        let name = entry.path_bytes().into_owned();
        let number = name
            .strip_prefix(b"./")
            .and_then(|name| numbers.get(name).copied());
        let number = number
            .filter(|_| entry.header().entry_type() == tar::EntryType::Regular)
            .ok_or_else(|| PullError::Unasked {
                name: String::from_utf8_lossy(&name).into_owned(),
            })?;
        let path = stage.join(number.to_string());
        let mode = if wanted[number].executable { 0o755 } else { 0o644 };
        let made: io::Result<File> = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        let mut file = made.map_err(|source| local(&path, source))?;
        copy(&mut entry, &mut file, &path)?;
        count += 1;
    }
    Ok(count)
}

/// Copies a file of the archive to `path`, and keeps apart whose fault it is when that fails.
fn copy(from: &mut impl Read, to: &mut impl Write, path: &Path) -> Result<(), PullError> {
    let mut block = vec![0; 64 * 1024];
    loop {
        match from.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => to
                .write_all(&block[..count])
                .map_err(|source| local(path, source))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PullError::Garbled(error)),
        }
    }
}

/// The working tree that files are put into.
struct Place<'a> {
    root: &'a Path,
    handle: OwnedFd,
    kept: &'a Path,
    any_kept: bool,
}

impl Place<'_> {
    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    /// The directory of `path`, made if it is not there, and the last part of its name. A link on the way is an error.
    fn directory(&self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), PullError> {
        let failed = |source: Errno| local(&self.full(path), source.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self
            .handle
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| local(self.root, source))?;
        let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let leaf = parts.pop().unwrap_or_default().to_vec();
        for part in parts {
            match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => return Err(failed(source)),
            }
            at = rustix::fs::openat(&at, part, flags, Mode::empty()).map_err(failed)?;
        }
        Ok((at, leaf))
    }

    fn put(&mut self, change: &Change, new: &Path) -> Result<(), PullError> {
        let (dir, leaf) = self.directory(&change.path)?;
        let failed = |source: Errno| local(&self.full(&change.path), source.into());
        let Act::Replace(entry) = &change.act else {
            return match renameat_with(rustix::fs::CWD, new, &dir, &leaf[..], RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => Err(self.raced(&change.path)),
                other => other.map_err(failed),
            };
        };
        // What comes out is looked at before it is given up.
        let exchange = || renameat_with(rustix::fs::CWD, new, &dir, &leaf[..], RenameFlags::EXCHANGE);
        exchange().map_err(failed)?;
        if is_as_sent(new, entry) {
            self.keep(&change.path, entry, new)
        } else {
            exchange().map_err(failed)?;
            Err(self.raced(&change.path))
        }
    }

    fn remove(&mut self, change: &Change, entry: &Entry, gone: &Path) -> Result<(), PullError> {
        let (dir, leaf) = self.directory(&change.path)?;
        let failed = |source: Errno| local(&self.full(&change.path), source.into());
        renameat_with(&dir, &leaf[..], rustix::fs::CWD, gone, RenameFlags::NOREPLACE).map_err(failed)?;
        if is_as_sent(gone, entry) {
            self.keep(&change.path, entry, gone)
        } else {
            renameat_with(rustix::fs::CWD, gone, &dir, &leaf[..], RenameFlags::NOREPLACE).map_err(failed)?;
            Err(self.raced(&change.path))
        }
    }

    fn raced(&self, path: &[u8]) -> PullError {
        PullError::Raced {
            path: self.full(path),
        }
    }

    /// Keeps what git does not have.
    fn keep(&mut self, path: &[u8], entry: &Entry, old: &Path) -> Result<(), PullError> {
        if !entry.changed {
            return Ok(());
        }
        let to = self.kept.join("before").join(OsStr::from_bytes(path));
        let made = std::fs::create_dir_all(to.parent().unwrap_or(self.kept));
        made.and_then(|()| std::fs::rename(old, &to))
            .map_err(|source| local(&to, source))?;
        self.any_kept = true;
        Ok(())
    }
}

/// Whether this is still the file that the plan was made for. Its change time is that of the exchange.
fn is_as_sent(path: &Path, entry: &Entry) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
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

    fn entry(path: &Path) -> Entry {
        let stat = rustix::fs::stat(path).unwrap();
        Entry {
            path: b"file".to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            size: u64::try_from(stat.st_size).unwrap(),
            mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            changed: true,
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

    /// Neither can be read from nor be written to.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_here_is_not_blamed_on_the_lease() {
        let path = Path::new("/stage/0");
        let here = copy(&mut &b"text"[..], &mut Broken, path);
        assert!(matches!(here, Err(PullError::Local { .. })), "{here:?}");
        let there = copy(&mut Broken, &mut Vec::new(), path);
        assert!(matches!(there, Err(PullError::Garbled(_))), "{there:?}");
    }

    #[test]
    fn what_changed_since_the_look_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["kept", "root"] {
            fs::create_dir(at(name)).unwrap();
        }
        let (root, kept) = (at("root"), at("kept"));
        let mut place = Place {
            root: &root,
            handle: rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap(),
            kept: &kept,
            any_kept: false,
        };
        fs::write(at("root/file"), "sent").unwrap();
        let sent = entry(&at("root/file"));
        fs::write(at("root/file"), "mine, later").unwrap();
        let new = |name: &str| {
            fs::write(at(name), "theirs").unwrap();
            at(name)
        };
        let outcomes = [
            place.put(&change("file", Act::Replace(sent.clone())), &new("1")),
            place.remove(&change("file", Act::Remove(sent.clone())), &sent, &at("gone")),
            place.put(&change("file", Act::Add), &new("2")),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(PullError::Raced { .. })), "{outcome:?}");
            assert_eq!(fs::read(at("root/file")).unwrap(), b"mine, later");
        }
        // Nothing goes through a link.
        std::os::unix::fs::symlink(at("kept"), at("root/link")).unwrap();
        let through = place.put(&change("link/file", Act::Add), &new("3"));
        assert!(matches!(through, Err(PullError::Local { .. })), "{through:?}");
        assert!(fs::read_dir(at("kept")).unwrap().next().is_none());
        // The one that was sent gives way, and is kept because git does not have it.
        let now = entry(&at("root/file"));
        place.put(&change("file", Act::Replace(now)), &new("4")).unwrap();
        assert_eq!(fs::read(at("root/file")).unwrap(), b"theirs");
        assert_eq!(fs::read(at("kept/before/file")).unwrap(), b"mine, later");
        assert!(place.any_kept);
    }
}
