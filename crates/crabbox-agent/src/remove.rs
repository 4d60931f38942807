//! Removes files and directories of the tree, always through handles of directories that are not links.
//!
//! It must never follow a link out of the tree, even if the tree changes meanwhile.

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::is_below;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::bytes::path;
use crate::failure::{At as _, Failure};
use crate::rows::{Rows, unread};
use crate::seen::Dirs;

const DIR: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory, without following a link.
fn open(within: impl std::os::fd::AsFd, leaf: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(within, leaf, DIR, Mode::empty())
}

/// A path for an open directory, for calls that do not accept `O_PATH` handles.
fn name(handle: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

fn set_mode(handle: &OwnedFd, mode: u32, shown: &Path) -> Result<(), Failure> {
    std::fs::set_permissions(name(handle), std::fs::Permissions::from_mode(mode)).at(shown)
}

/// Calls `act` with the directory made writable for the duration; `shown` is the path for messages.
fn changed_in(
    handle: &OwnedFd,
    shown: &Path,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mode = rustix::fs::fstat(handle).at(shown)?.st_mode & 0o7777;
    if mode & 0o300 == 0o300 {
        return act();
    }
    set_mode(handle, mode | 0o700, shown)?;
    let done = act();
    done.and(set_mode(handle, mode, shown))
}

/// Removes `leaf` of an open directory, recursively.
pub(crate) fn remove_tree(within: &OwnedFd, leaf: &Path) -> Result<(), Failure> {
    let stat = match rustix::fs::statat(within, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).at(leaf),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(within, leaf, AtFlags::empty()).at(leaf);
    }
    let handle = open(within, leaf).at(leaf)?;
    if stat.st_mode & 0o700 != 0o700 {
        set_mode(&handle, 0o700, leaf)?;
    }
    let all = std::fs::read_dir(name(&handle)).at(leaf)?;
    // Read all names first: reading a directory while it changes may skip entries.
    let names: Vec<_> = all
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .at(leaf)?;
    for child in names {
        remove_tree(&handle, Path::new(&child))?;
    }
    drop(handle);
    rustix::fs::unlinkat(within, leaf, AtFlags::REMOVEDIR).at(leaf)
}

/// Handles of the workdir and of the directories above a path, down to the first that is not a directory.
fn way_to(parts: &[&[u8]]) -> Result<Vec<OwnedFd>, Failure> {
    let mut handles = vec![open(CWD, Path::new(".")).at(Path::new("."))?];
    for part in &parts[..parts.len() - 1] {
        let within = handles[handles.len() - 1].as_fd();
        match open(within, path(part)) {
            Ok(handle) => handles.push(handle),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => break,
            Err(errno) => return Err(errno).at(path(part)),
        }
    }
    Ok(handles)
}

fn parts(name: &[u8]) -> Vec<&[u8]> {
    name.split(|byte| *byte == b'/').collect()
}

/// Removes a file that an earlier sync brought, and then the directories that are empty without it. A
/// directory in place of the file belongs to the guest, and so does everything beyond a link.
pub(crate) fn prune(name: &[u8]) -> Result<(), Failure> {
    let parts = parts(name);
    let mut handles = way_to(&parts)?;
    if handles.len() == parts.len() {
        let (within, leaf) = (&handles[handles.len() - 1], path(parts[parts.len() - 1]));
        match rustix::fs::statat(within, leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                changed_in(within, path(name), || {
                    rustix::fs::unlinkat(within, leaf, AtFlags::empty()).at(path(name))
                })?;
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at(path(name)),
        }
    }
    while handles.len() > 1 {
        drop(handles.pop());
        let (within, leaf) = (&handles[handles.len() - 1], path(parts[handles.len() - 1]));
        let removed = changed_in(within, leaf, || {
            rustix::fs::unlinkat(within, leaf, AtFlags::REMOVEDIR).at(leaf)
        });
        if removed.is_err() {
            // The directory is not empty.
            return Ok(());
        }
    }
    Ok(())
}

/// Removes whatever is at `name`, because the manifest needs the place for something else.
fn clear(name: &[u8]) -> Result<(), Failure> {
    let parts = parts(name);
    let handles = way_to(&parts)?;
    if handles.len() < parts.len() {
        return Ok(());
    }
    let within = &handles[handles.len() - 1];
    changed_in(within, path(name), || {
        remove_tree(within, path(parts[parts.len() - 1]))
    })
}

/// Removes what is in the way of the manifest rows with these numbers: at their paths and above them,
/// anything of another kind than needed.
pub(crate) fn make_way(rows: &mut Rows, numbers: &[u32]) -> Result<(), Failure> {
    let (mut dirs, mut free) = (Dirs::default(), None);
    for number in numbers {
        let number = usize::try_from(*number).unwrap_or(usize::MAX);
        let row = rows.get(number)?.ok_or_else(unread)?;
        match dirs.stat(row.path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => clear(row.path)?,
            Ok(_) => {}
            Err(errno) => {
                // Below a directory that does not exist, nothing is in the way.
                let above = dirs.none().filter(|none| is_below(row.path, none));
                match above {
                    Some(none) if free.as_deref() == Some(none) => {}
                    Some(none) => {
                        let none = none.to_vec();
                        clear_above(&none)?;
                        free = Some(none);
                    }
                    // A directory that the guest has made inaccessible is opened later, before anything is
                    // put there.
                    None if matches!(errno, Errno::NOENT | Errno::ACCESS) => {}
                    None => return Err(errno).at(path(row.path)),
                }
            }
        }
    }
    Ok(())
}

/// Removes a non-directory that is in the place of a directory, if its own parent is a directory.
fn clear_above(name: &[u8]) -> Result<(), Failure> {
    match path(name).symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => clear(name),
        Err(error) if crate::bytes::is_absent(&error) || error.kind() == ErrorKind::PermissionDenied => {
            Ok(())
        }
        Err(error) => Err(error).at(path(name)),
    }
}
