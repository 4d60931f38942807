//! Finds machines among the processes of this host by the socket path in a lease directory.
//!
//! It is for leases whose record does not name their process, or names one that is gone: the Go program
//! starts its VMM with the lease's socket as its only mark. Nothing here may end a process.

use std::path::{Path, PathBuf};

use crabbox_core::id::LeaseId;
use crabbox_core::process::ProcessId;
use crabbox_host::process::{self, ProcessError, ProcessInfo};

/// The Firecracker option for its API socket.
const SOCKET_OPTION: &str = "--api-sock";

/// The lease below `leases` whose socket `candidate` uses. Processes of other users are never accepted,
/// because they can choose their arguments freely.
pub(crate) fn lease_of(candidate: &ProcessInfo, leases: &Path) -> Option<LeaseId> {
    if candidate.uid != rustix::process::geteuid().as_raw() {
        return None;
    }
    let socket = socket_of(candidate)?;
    // The socket's path may have been given through symbolic links.
    let real = std::fs::canonicalize(leases).ok();
    let inside = [Some(leases), real.as_deref()]
        .into_iter()
        .flatten()
        .find_map(|base| socket.strip_prefix(base).ok())?;
    let name = inside.components().next()?.as_os_str().to_str()?;
    LeaseId::parse(name).ok()
}

/// The machines that use a socket in the directory of lease `id` below `leases`.
pub(crate) fn running_on(leases: &Path, id: &LeaseId) -> Result<Vec<ProcessId>, ProcessError> {
    let processes = process::list()?.into_iter();
    Ok(processes
        .filter(|candidate| lease_of(candidate, leases).as_ref() == Some(id))
        .map(|candidate| candidate.id)
        .collect())
}

fn socket_of(candidate: &ProcessInfo) -> Option<PathBuf> {
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
