//! Finds machines among the processes of this host by the socket path in a lease directory.
//!
//! It is for leases whose record does not name their process, or names one that is gone: the Go program
//! starts its VMM with the lease's socket as its only mark. Nothing here may end a process.

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
    if let Some(missing) = socket_at.below(&process::whereabouts(leases)?) {
        // The lease's directory has been removed.
        return LeaseId::parse(missing.first()?.to_str()?).ok();
    }
    let entries = std::fs::read_dir(leases).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let id = LeaseId::parse(entry.file_name().to_str()?).ok()?;
        socket_at
            .is_inside_existing(&entry.path().metadata().ok()?)
            .then_some(id)
    })
}

/// The same for a process whose root cannot be looked into: only the names are left, which mean what they mean
/// here unless it is in a jail.
fn by_name(candidate: &ProcessInfo, socket: &Path, leases: &Path) -> Option<LeaseId> {
    if candidate.root.as_deref().is_some_and(|root| root != "/") {
        return None;
    }
    let real = std::fs::canonicalize(leases).ok();
    let inside = [Some(leases), real.as_deref()]
        .into_iter()
        .flatten()
        .find_map(|base| socket.strip_prefix(base).ok())?;
    LeaseId::parse(inside.components().next()?.as_os_str().to_str()?).ok()
}

/// Whether `candidate` is a machine of lease `id` below `leases`: its socket is in the lease's directory, or
/// is the one that the lease's record names.
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
    let dir = process::whereabouts(&leases.join(id.as_str()));
    if dir.is_some_and(|dir| socket_at.is_inside(&dir)) {
        return true;
    }
    // A record never makes another lease's machine this one's.
    record.is_some_and(|record| leads_to(&socket_at, Path::new(&record.socket_path)))
        && lease_of(candidate, leases).is_none()
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
