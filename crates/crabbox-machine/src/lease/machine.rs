//! Finds machines among the processes of this host by the socket path in a lease directory.
//!
//! It is for leases whose record does not name their process, or names one that is gone: the Go program
//! starts its VMM with the lease's socket as its only mark. Nothing here may end a process.

use std::path::{Path, PathBuf};

use crabbox_core::id::LeaseId;
use crabbox_core::process::ProcessId;
use crabbox_core::record::LeaseRecord;
use crabbox_host::process::{self, ProcessError, ProcessInfo};

/// The Firecracker option for its API socket.
const SOCKET_OPTION: &str = "--api-sock";

/// The lease below `leases` whose directory `candidate` has its socket in, however the path is spelled.
/// Processes of other users are never accepted, because they can choose their arguments freely.
pub(crate) fn lease_of(candidate: &ProcessInfo, leases: &Path) -> Option<LeaseId> {
    let socket = socket_of(candidate)?;
    let named = |name: &Path| LeaseId::parse(name.components().next()?.as_os_str().to_str()?).ok();
    let Some(socket_at) = process::whereabouts_for(candidate, &socket) else {
        // Its root cannot be looked into, so only the name is left.
        return named(socket.strip_prefix(leases).ok()?);
    };
    let leases_at = process::whereabouts(leases)?;
    if let Some(missing) = socket_at.below(&leases_at) {
        // The lease's directory has been removed.
        return named(Path::new(missing.first()?));
    }
    let entries = std::fs::read_dir(leases).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let id = LeaseId::parse(entry.file_name().to_str()?).ok()?;
        socket_at
            .is_inside(&process::whereabouts(&entry.path())?)
            .then_some(id)
    })
}

/// Whether `candidate` is a machine of lease `id` below `leases`: its socket is in the lease's directory, or
/// is the one that the lease's record names.
pub(crate) fn is_of(
    candidate: &ProcessInfo,
    leases: &Path,
    id: &LeaseId,
    record: Option<&LeaseRecord>,
) -> bool {
    match lease_of(candidate, leases) {
        Some(lease) => lease == *id,
        // A record never makes another lease's machine this one's.
        None => record.is_some_and(|record| is_on(candidate, Path::new(&record.socket_path))),
    }
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

/// Whether `candidate` has its socket exactly at this path of the host.
fn is_on(candidate: &ProcessInfo, path: &Path) -> bool {
    let of_candidate = || process::whereabouts_for(candidate, &socket_of(candidate)?);
    path.is_absolute() && path.file_name().is_some() && {
        let at = process::whereabouts(path);
        at.is_some() && of_candidate() == at
    }
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
