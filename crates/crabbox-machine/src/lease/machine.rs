//! Finds machines among the processes of this host by their socket: in a lease's directory, or the one that the
//! lease's record names.
//!
//! It is for leases whose record does not name their process, or names one that is gone: the Go program
//! starts its VMM with the lease's socket as its only mark. Nothing here may end a process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crabbox_core::id::LeaseId;
use crabbox_core::process::ProcessId;
use crabbox_core::record::LeaseRecord;
use crabbox_host::process::{self, ProcessError, ProcessInfo, Whereabouts};

/// The Firecracker option for its API socket.
const SOCKET_OPTION: &str = "--api-sock";

/// The lease below `leases` whose directory `candidate` has its socket in, however the path is spelled.
/// Processes of other users are never accepted, because they can choose their arguments freely.
pub(crate) fn lease_of(candidate: &ProcessInfo, leases: &Path) -> Option<LeaseId> {
    let socket = socket_of(candidate)?;
    let Some(socket_at) = process::whereabouts_for(candidate, &socket) else {
        return by_name(candidate, &socket, leases);
    };
    if let Some(id) = removed_lease(&socket_at, leases) {
        return Some(id);
    }
    let entries = std::fs::read_dir(leases).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let id = LeaseId::parse(entry.file_name().to_str()?).ok()?;
        is_in(&socket_at, leases, &id).then_some(id)
    })
}

/// The lease below `leases` whose directory has been removed, and in which a socket was.
fn removed_lease(socket_at: &Whereabouts, leases: &Path) -> Option<LeaseId> {
    let missing = socket_at.below(&process::whereabouts(leases)?)?;
    LeaseId::parse(missing.first()?.to_str()?).ok()
}

/// Whether a socket is in the directory of lease `id`.
fn is_in(socket_at: &Whereabouts, leases: &Path, id: &LeaseId) -> bool {
    let dir = leases.join(id.as_str()).metadata();
    dir.is_ok_and(|dir| socket_at.is_inside(&dir))
}

/// The lease of a process into whose root we may not look, by names alone. If its root cannot even be read, it
/// is taken for the host's: a VMM with capabilities of its own is more likely than a jail with the very path of
/// a lease of ours in it.
fn by_name(candidate: &ProcessInfo, socket: &Path, leases: &Path) -> Option<LeaseId> {
    let is_jailed = candidate.root.as_deref().is_some_and(|root| root != "/");
    named(socket, &spellings(leases)).filter(|_| !is_jailed)
}

/// A directory as it was given, and without the symbolic links of its path, as the kernel names it.
pub(crate) fn spellings(dir: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(dir).ok();
    [dir.to_owned()].into_iter().chain(real).collect()
}

/// The lease whose directory in one of these `path` is or leads into, by its name.
pub(crate) fn named(path: &Path, leases: &[PathBuf]) -> Option<LeaseId> {
    let inside = leases.iter().find_map(|base| path.strip_prefix(base).ok())?;
    let name = inside.components().next()?.as_os_str().to_str()?;
    // The kernel appends this to the path of a directory that has been removed.
    LeaseId::parse(name.trim_end_matches(" (deleted)")).ok()
}

/// Whether `candidate` is a machine of lease `id` below `leases`: its socket is in the lease's directory, or
/// is the one that the lease's record names, as after the state directory was moved.
pub(crate) fn is_of(
    candidate: &ProcessInfo,
    leases: &Path,
    id: &LeaseId,
    record: Option<&LeaseRecord>,
) -> bool {
    let Some(socket) = socket_of(candidate) else {
        return false;
    };
    let Some(socket_at) = process::whereabouts_for(candidate, &socket) else {
        return by_name(candidate, &socket, leases).as_ref() == Some(id);
    };
    if is_in(&socket_at, leases, id) || removed_lease(&socket_at, leases).as_ref() == Some(id) {
        return true;
    }
    // A record never makes another lease's machine this one's, of whichever state directory.
    let is_named = |record: &LeaseRecord| {
        let path = Path::new(&record.socket_path);
        leads_to(&socket_at, path) && !is_of_a_lease(path)
    };
    record.is_some_and(is_named) && lease_of(candidate, leases).is_none()
}

/// Whether the directory of this socket exists and is called as those of leases are.
fn is_of_a_lease(socket: &Path) -> bool {
    let Some(dir) = socket.parent() else { return false };
    let name = dir.file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| LeaseId::parse(name).is_ok()) && dir.exists()
}

/// The machines of lease `id` below `leases`.
pub(crate) fn running_on(
    leases: &Path,
    id: &LeaseId,
    record: Option<&LeaseRecord>,
) -> Result<Vec<ProcessId>, ProcessError> {
    let processes = process::list()?.into_iter();
    Ok(processes
        .filter(|candidate| is_of(candidate, leases, id, record))
        .map(|candidate| candidate.id)
        .collect())
}

/// Whether a socket is exactly at this path of the host.
fn leads_to(socket_at: &Whereabouts, path: &Path) -> bool {
    path.is_absolute()
        && path.file_name().is_some()
        && process::whereabouts(path).is_some_and(|at| at == *socket_at)
}

/// The path of its socket that `candidate` was started with, if it is a process of this user.
fn socket_of(candidate: &ProcessInfo) -> Option<PathBuf> {
    if candidate.uid != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut args = candidate.cmdline.iter();
    while let Some(arg) = args.next() {
        if arg == SOCKET_OPTION {
            return args.next().map(PathBuf::from);
        }
        let joined = arg.to_str().and_then(|arg| arg.strip_prefix(SOCKET_OPTION));
        if let Some(path) = joined.and_then(|rest| rest.strip_prefix('=')) {
            return Some(path.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_root_is_closed_is_known_by_its_path_unless_it_is_in_a_jail() {
        let place = tempfile::tempdir().unwrap();
        let leases = place.path().join("leases");
        std::fs::create_dir(&leases).unwrap();
        std::os::unix::fs::symlink(&leases, place.path().join("link")).unwrap();
        let id = LeaseId::parse("cbx_0123456789ab").unwrap();
        let socket = leases.join(id.as_str()).join("firecracker.sock");
        let mut candidate = process::list()
            .unwrap()
            .into_iter()
            .find(|found| found.id.pid == std::process::id())
            .unwrap();
        for (root, known) in [(None, true), (Some("/"), true), (Some("/srv/jail"), false)] {
            candidate.root = root.map(PathBuf::from);
            for dir in [&leases, &place.path().join("link")] {
                let found = by_name(&candidate, &socket, dir);
                assert_eq!(found.as_ref() == Some(&id), known, "{root:?} {}", dir.display());
            }
        }
        candidate.root = None;
        assert_eq!(by_name(&candidate, &place.path().join("x"), &leases), None);
    }
}
