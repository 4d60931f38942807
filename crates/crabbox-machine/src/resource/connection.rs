//! The SSH connection of a lease: one target and one control socket, the same whichever process computes
//! them.
//!
//! The command line opens the connection, later commands share it, teardown closes it. It must never outlive
//! its lease.

use std::path::{Path, PathBuf};

use crabbox_core::record::LeaseRecord;
use crabbox_host::private_dir::PrivateDir;
use crabbox_ssh::control::{self, ControlError};
use crabbox_ssh::forwards;
use crabbox_ssh::master::{self, ExitError};
use crabbox_ssh::target::{Target, TargetError};
use crabbox_store::places::Places;

/// Why a lease cannot be reached by SSH.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The record names an invalid user or host.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is no usable directory for the control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The record's port is not a number.
    #[error("the record of lease {lease} has the SSH port {port:?}")]
    Port {
        /// The lease.
        lease: String,
        /// The port as recorded.
        port: String,
    },
}

/// The SSH target of a lease according to its record, without a shared connection.
pub fn target(record: &LeaseRecord, places: &Places) -> Result<Target, ConnectionError> {
    let keys = places.keys(&record.lease_id);
    let port = record.ssh_port.parse().map_err(|_| ConnectionError::Port {
        lease: record.lease_id.clone(),
        port: record.ssh_port.clone(),
    })?;
    let known_hosts = keys.join("known_hosts");
    let mut target = Target::new(&record.ssh_user, &record.guest_ip, port, &known_hosts)?;
    target.key = Some(keys.join("id_ed25519"));
    target.on_this_machine = true;
    // The Go program never writes the file in advance: its leases have one only after the first connection,
    // and no host key is pinned.
    target.host_key_pinned = Path::new(&record.state_dir).join("journal.jsonl").exists();
    Ok(target)
}

/// The directory for control sockets from a request, checked again because the request comes from another
/// process.
pub(crate) fn control_dir(dir: &Path) -> Result<PrivateDir, ConnectionError> {
    Ok(PrivateDir::open(dir).map_err(ControlError::from)?)
}

/// The control socket of `target`.
pub fn control(dir: &PrivateDir, target: &Target) -> Result<PathBuf, ConnectionError> {
    Ok(control::path(dir, target)?)
}

/// The target with its shared connection.
pub fn shared(record: &LeaseRecord, places: &Places, dir: &PrivateDir) -> Result<Target, ConnectionError> {
    let mut target = target(record, places)?;
    target.control = Some(control(dir, &target)?);
    Ok(target)
}

/// Closes every shared connection that was opened with the key of lease `id`, for a lease whose journal does
/// not name its socket.
pub(crate) fn close_all(places: &Places, id: &str) -> Result<(), ExitError> {
    for control in master::of_key(&places.keys(id).join("id_ed25519"))? {
        // The forwards have a socket of their own beside it.
        match close(&control.with_extension("")) {
            // Somebody entered the machine by hand, and shares that connection at a place of their own.
            Err(ExitError::Recorded {
                source: ControlError::Foreign { .. },
            }) => {}
            closed => closed?,
        }
    }
    Ok(())
}

/// Closes the shared connection at `control`, which may come from a damaged record, and the forwards of its
/// lease; succeeds if there is none.
pub fn close(control: &Path) -> Result<(), ExitError> {
    let recorded = control::recorded(control).map_err(|source| ExitError::Recorded { source })?;
    let Some(control) = recorded else {
        forwards::end_unheard(control)?;
        return master::end_unheard(control);
    };
    let forwards = forwards::forget(&control);
    master::exit(&control)?;
    forwards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_removes_no_file_and_makes_no_directory() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = PrivateDir::create(&tmp.path().join("private")).unwrap();
        let users = tmp.path().join("0123456789abcdef");
        std::fs::write(&users, "kept").unwrap();
        let inside = dir.join("0123456789abcdef");
        std::fs::write(&inside, "kept").unwrap();
        let named = dir.join("passwd");
        std::fs::write(&named, "kept").unwrap();
        std::fs::write(named.with_extension("ports"), "kept").unwrap();
        for path in [&users, &inside, &named] {
            drop(close(path).unwrap_err());
            assert_eq!(std::fs::read_to_string(path).unwrap(), "kept");
        }
        assert!(named.with_extension("ports").exists());
        drop(close(Path::new("0123456789abcdef")).unwrap_err());
        // After a reboot the directory is gone, and with it whatever was open.
        close(&tmp.path().join("gone/0123456789abcdef")).unwrap();
        assert!(!tmp.path().join("gone").exists());
        let mut left: Vec<_> = std::fs::read_dir(tmp.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort_unstable();
        assert_eq!(left, ["0123456789abcdef", "private"], "a lock was left");
    }
}
