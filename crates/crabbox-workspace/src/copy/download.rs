//! Copies out of a lease. The data comes from a machine that may be hostile.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_agent_protocol::Request;
use crabbox_host::beneath::Beneath;
use crabbox_host::budget::Budget;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use crabbox_host::place::{Access, Place};
use crabbox_host::{clock, files as host_files, random};
use crabbox_ssh::agent_client::AgentClient;
use crabbox_ssh::target::Target;
use rustix::fs::{FileType, RenameFlags};

use super::{COPY, CopyError, LINK, checked, failed, name_of, remote_path, split};
use crate::files::{self, FetchError, FetchRequest, Fetched};
use crate::stream::{Arriving, Unplaced, budget};

/// Permission bits of new files and directories, less the umask; an executable file also gets execute bits.
const FILE: u32 = 0o666;
const DIRECTORY: u32 = 0o777;
/// Permission bits of the staging directory.
const PRIVATE: u32 = 0o700;

/// The most names in a copy: each name from a hostile lease costs this host memory and an inode.
const NAMES_LIMIT: usize = 1_000_000;
/// The most components of a path in the copy: each costs a descriptor when the tree is put in place or
/// removed.
const DEPTH_LIMIT: usize = 256;
/// The least disk space that budgets count for a file or directory, in bytes: even an empty one has an inode.
const ENTRY: u64 = 4096;

/// Copies `remote` to `local`, following symbolic links of the lease if `follow`; otherwise a link is
/// refused. The copy goes into an existing directory under its own name; if that is a directory too, the
/// files are merged into it. Below `repository`, local links are not followed. Modes are those of new local
/// files, but an executable file stays executable. Stops when `cancel` becomes readable.
///
/// Returns the sockets, which are not copied.
pub fn download(
    target: &Target,
    remote: &str,
    local: &Path,
    repository: &Path,
    follow: bool,
    cancel: BorrowedFd<'_>,
) -> Result<Vec<PathBuf>, CopyError> {
    let to = destination(checked(remote)?, local)?;
    let place = Place::new(repository, &to, Access::Shared)?;
    let path = remote_path(remote);
    let mut far = AgentClient::open(target, Some(cancel)).map_err(|error| failed(error, "from", remote))?;
    let listed = far
        .ask(&Request::Tree {
            path: path.clone(),
            follow,
        })
        .and_then(|()| far.list());
    // All or nothing: a path that could not be read fails the whole copy instead of being a listed problem.
    let (list, _) = listed.map_err(|error| failed(error, "from", remote))?;
    let tree = Tree::parse(&list, split(&path).1)?;
    drop(list);
    // Nothing is created here before it is known that there is something to copy.
    let (dir, leaf) = place.directory()?;
    let write = |source| CopyError::Local {
        attempt: "write to",
        path: dir.path().to_owned(),
        source,
    };
    let stage = Stage::new(&dir)?;
    let wish = Wish {
        path: &path,
        remote,
        follow,
        cancel,
    };
    let copied = budget(target, &dir)
        .map_err(write)
        .and_then(|budget| take(&mut far, &wish, &tree, &stage.dir, budget))
        .and_then(|()| {
            // Nothing else is requested, so do not wait for the agent to end.
            far.leave();
            let copy = entry(COPY.as_bytes())?;
            // Everything is checked first, so that a conflict leaves everything as it was.
            fits(&stage.dir, &copy, &dir, &leaf)?;
            put(&stage.dir, &copy, &dir, &leaf)
        });
    stage.end(copied)?;
    Ok(tree
        .sockets
        .iter()
        .map(|socket| socket.as_path().to_owned())
        .collect())
}

/// The path of the copy.
fn destination(remote: &str, local: &Path) -> Result<PathBuf, CopyError> {
    let inside = local.as_os_str().as_bytes().ends_with(b"/") || local.is_dir();
    if inside {
        Ok(local.join(name_of(remote)?))
    } else {
        Ok(local.to_owned())
    }
}

/// A private staging directory beside the destination; removed with everything in it.
struct Stage {
    dir: Beneath,
    is_gone: bool,
}

impl Stage {
    fn new(beside: &Beneath) -> Result<Self, CopyError> {
        let failed = |source| CopyError::Local {
            attempt: "write to",
            path: beside.path().to_owned(),
            source,
        };
        let word = u64::from_ne_bytes(random::bytes::<8>().map_err(failed)?);
        let name = entry(format!(".crabbox-cp-{word:016x}").as_bytes())?;
        let dir = beside.make_dirs(Some(&name), PRIVATE)?;
        Ok(Self { dir, is_gone: false })
    }

    /// Removes it, whatever the result of the copy. A leftover is reported, because it may be inside a
    /// repository.
    fn end(mut self, copied: Result<(), CopyError>) -> Result<(), CopyError> {
        self.is_gone = true;
        match (host_files::remove_tree(self.dir.path()), copied) {
            (Ok(()), copied) => copied,
            (Err(why), copied) => Err(CopyError::Leftover {
                path: self.dir.path().to_owned(),
                why,
                error: copied.err().map(Box::new),
            }),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only after a panic. If this fails, the leftover is private and its name says what it is.
        if !self.is_gone {
            host_files::remove_tree(self.dir.path()).ok();
        }
    }
}

fn entry(path: &[u8]) -> Result<EntryPath, CopyError> {
    EntryPath::exact(path).map_err(|why| CopyError::Refused {
        name: String::from_utf8_lossy(path).into_owned(),
        what: why.to_string(),
    })
}

/// The lease's list of what is to be copied; all names are below one directory.
#[derive(Debug, PartialEq, Eq)]
struct Tree {
    /// Whether it is one file; then there is nothing else.
    is_file: bool,
    /// The directories, without the top.
    dirs: Vec<EntryPath>,
    /// The files; for a single file, its name in the lease.
    files: Vec<EntryPath>,
    /// The sockets, which are not copied.
    sockets: Vec<EntryPath>,
}

impl Tree {
    /// Parses `<kind><path>` records, of which the first is the top. `top` is its name in messages.
    fn parse(list: &[u8], top: &str) -> Result<Self, CopyError> {
        let refused = |path: &[u8], what: &str| CopyError::Refused {
            name: match path {
                b"" => format!("./{top}"),
                path => format!("./{}", String::from_utf8_lossy(path)),
            },
            what: what.to_owned(),
        };
        let mut tree: Option<Self> = None;
        // The names so far, and whether each is a directory.
        let mut kinds: HashMap<&[u8], bool> = HashMap::new();
        for record in list.strip_suffix(b"\0").unwrap_or(list).split(|byte| *byte == 0) {
            let (kind, path) = record.split_first().unwrap_or((&b'?', b""));
            let below = match EntryPath::exact(path) {
                Ok(below) => Some(below),
                Err(EntryPathError::Empty) => None,
                Err(why) => return Err(refused(path, &why.to_string())),
            };
            if below.is_some() && tree.is_some() {
                if kinds.len() >= NAMES_LIMIT {
                    return Err(refused(path, &format!("one of more than {NAMES_LIMIT} names")));
                }
                if path.split(|byte| *byte == b'/').count() > DEPTH_LIMIT {
                    return Err(refused(
                        path,
                        &format!("more than {DEPTH_LIMIT} directories deep"),
                    ));
                }
                let parent = path.iter().rposition(|byte| *byte == b'/');
                if parent.is_some_and(|at| kinds.get(&path[..at]) != Some(&true)) {
                    return Err(refused(path, "below a directory that it did not name before"));
                }
                if kinds.insert(path, *kind == b'd').is_some() {
                    return Err(refused(path, "named twice"));
                }
            }
            match (*kind, &mut tree, below) {
                (b'd' | b'f', None, None) => {
                    tree = Some(Self {
                        is_file: *kind == b'f',
                        dirs: Vec::new(),
                        files: Vec::new(),
                        sockets: Vec::new(),
                    });
                }
                (b'd', Some(tree), Some(below)) if !tree.is_file => tree.dirs.push(below),
                (b'f', Some(tree), Some(below)) if !tree.is_file => tree.files.push(below),
                // A socket is useless without the program behind it.
                (b's', Some(tree), Some(below)) if !tree.is_file => tree.sockets.push(below),
                (b'd' | b'f', ..) => return Err(refused(path, "not where it belongs")),
                (b'l', ..) => return Err(refused(path, LINK)),
                (b'p', ..) => return Err(refused(path, "a named pipe")),
                (b'b' | b'c', ..) => return Err(refused(path, "a device")),
                (b's', ..) => return Err(refused(path, "a socket")),
                _ => return Err(refused(path, "neither a file nor a directory")),
            }
        }
        match tree {
            Some(mut tree) if tree.is_file => {
                tree.files.push(entry(top.as_bytes())?);
                Ok(tree)
            }
            Some(tree) => Ok(tree),
            None => Err(refused(b"", "neither a file nor a directory")),
        }
    }
}

/// What to copy from the lease.
struct Wish<'a> {
    /// The path in the form that the agent expects.
    path: &'a str,
    /// The path as given by the user.
    remote: &'a str,
    follow: bool,
    /// Becomes readable when the user interrupts.
    cancel: BorrowedFd<'a>,
}

/// Creates the directories of a copy in `into`. Each counts towards the budget, and the user can interrupt.
fn make_dirs(
    into: &Beneath,
    dirs: &[EntryPath],
    budget: &mut Budget,
    cancel: BorrowedFd<'_>,
) -> Result<(), CopyError> {
    for dir in dirs {
        if clock::is_readable(cancel, Duration::ZERO) {
            return Err(CopyError::Interrupted);
        }
        budget.take(ENTRY).map_err(|over| CopyError::Over {
            name: format!("./{}", dir.as_path().display()),
            over,
        })?;
        into.make_dirs(Some(dir), DIRECTORY)?;
    }
    Ok(())
}

/// Fetches what `tree` names as [`COPY`] in `stage`, which is empty.
fn take(
    far: &mut AgentClient,
    wish: &Wish<'_>,
    tree: &Tree,
    stage: &Beneath,
    budget: Budget,
) -> Result<(), CopyError> {
    let Wish {
        path, remote, follow, ..
    } = *wish;
    let top = entry(COPY.as_bytes())?;
    let mut taking = Taking {
        into: None,
        stage,
        top,
        files: &tree.files,
        budget,
        open: None,
        count: 0,
        problem: None,
        error: None,
    };
    if !tree.is_file {
        taking.into = Some(stage.make_dirs(Some(&taking.top), DIRECTORY)?);
    }
    if let Some(into) = &taking.into {
        make_dirs(into, &tree.dirs, &mut taking.budget, wish.cancel)?;
    }
    if tree.files.is_empty() {
        return Ok(());
    }
    let names: Vec<Vec<u8>> = tree
        .files
        .iter()
        .map(|file| file.as_path().as_os_str().as_bytes().to_vec())
        .collect();
    let wanted = FetchRequest {
        dir: if tree.is_file { split(path).0 } else { path },
        names: &names,
        follow,
        within: false,
        limit: None,
    };
    let fetched = files::fetch(far, &wanted, &mut |event| {
        taking.take(event).map_err(|error| {
            taking.error = Some(error);
            io::ErrorKind::Other.into()
        })
    });
    match fetched {
        Err(FetchError::Agent(error)) => return Err(failed(error, "from", remote)),
        // The reason for an early stop is in `taking`.
        Ok(()) | Err(FetchError::Sink(_)) => {}
    }
    if let Some(error) = taking.error.take() {
        return Err(error);
    }
    taking.end()?;
    let said = match taking.problem.take() {
        Some(said) => said,
        None if taking.count == names.len() => return Ok(()),
        None => "not all of it came".to_owned(),
    };
    Err(CopyError::Remote {
        attempt: "from",
        path: remote.to_owned(),
        said,
    })
}

/// Receives files into the stage.
struct Taking<'a> {
    /// The directory being copied; `None` for a single file.
    into: Option<Beneath>,
    stage: &'a Beneath,
    top: EntryPath,
    files: &'a [EntryPath],
    budget: Budget,
    open: Option<Arriving>,
    count: usize,
    /// The first file that could not be copied.
    problem: Option<String>,
    error: Option<CopyError>,
}

impl From<Unplaced> for CopyError {
    fn from(unplaced: Unplaced) -> Self {
        match unplaced {
            Unplaced::Over { name, over } => Self::Over { name, over },
            Unplaced::Local { path, source } => Self::Local {
                attempt: "write",
                path,
                source,
            },
            Unplaced::Beneath(error) => error.into(),
        }
    }
}

impl Taking<'_> {
    fn take(&mut self, event: Fetched<'_>) -> Result<(), CopyError> {
        match event {
            Fetched::Begins(coming) => {
                self.end()?;
                let file = &self.files[coming.number];
                let name = format!("./{}", file.as_path().display());
                let over = |over| CopyError::Over {
                    name: name.clone(),
                    over,
                };
                self.budget.take(ENTRY).map_err(over)?;
                self.budget.allows(coming.size).map_err(over)?;
                let placing = match &self.into {
                    Some(into) => into.begin(file, FILE)?,
                    None => self.stage.begin(&self.top, FILE)?,
                };
                let is_program = coming.mode & 0o111 != 0;
                self.open = Some(Arriving::new(placing, &self.budget, is_program, name));
                Ok(())
            }
            Fetched::Piece(piece) => match &mut self.open {
                Some(open) => Ok(open.take(&mut self.budget, piece)?),
                None => Ok(()),
            },
            Fetched::Problem { text, lost, .. } => {
                // A file that was still being written arrived as it was.
                if lost {
                    self.problem.get_or_insert_with(|| text.to_owned());
                }
                Ok(())
            }
        }
    }

    /// Finishes the open file in the stage.
    fn end(&mut self) -> Result<(), CopyError> {
        if let Some(open) = self.open.take() {
            open.end()?;
            self.count += 1;
        }
        Ok(())
    }
}

/// Checks that nothing is in the way of [`put`].
fn fits(from: &Beneath, name: &EntryPath, dir: &Beneath, leaf: &EntryPath) -> Result<(), CopyError> {
    let in_the_way = |what| {
        Err(CopyError::InTheWay {
            path: dir.full(leaf),
            what,
        })
    };
    let is_directory = from.kind(name)? == Some(FileType::Directory);
    match (is_directory, dir.kind(leaf)?) {
        (_, None) | (false, Some(FileType::RegularFile | FileType::Symlink)) => Ok(()),
        (true, Some(FileType::Directory)) => {
            // A rename cannot cross file systems, and half of the copy would be in place by then.
            if dir.is_mounted_on(leaf)? {
                return in_the_way("where another file system is mounted; copy into it by its own path");
            }
            let (from, dir) = (from.dir(name)?, dir.dir(leaf)?);
            for child in from.names()? {
                fits(&from, &child, &dir, &child)?;
            }
            Ok(())
        }
        (true, Some(_)) => in_the_way("not a directory"),
        (false, Some(FileType::Directory)) => in_the_way("a directory"),
        (false, Some(_)) => in_the_way("not a regular file"),
    }
}

/// Moves the copy to its place. Directories are merged; a file replaces a file or a link; anything else is
/// never replaced.
fn put(from: &Beneath, name: &EntryPath, dir: &Beneath, leaf: &EntryPath) -> Result<(), CopyError> {
    match dir.kind(leaf)? {
        None => Ok(from.rename(name, dir, leaf, RenameFlags::NOREPLACE)?),
        Some(FileType::Directory) => {
            let (from, dir) = (from.dir(name)?, dir.dir(leaf)?);
            for child in from.names()? {
                put(&from, &child, &dir, &child)?;
            }
            Ok(())
        }
        Some(_) => Ok(from.rename(name, dir, leaf, RenameFlags::empty())?),
    }
}

#[cfg(test)]
mod tests;
