//! Why a lease could not be acquired, and what may be concluded from it.
//!
//! Facts and kinds only: what is done about an error is decided by who made the lease. Nothing here may look at the host.

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::console;
use crabbox_host::lock::LockError;
use crabbox_ssh::keys;
use crabbox_store::journal::JournalFileError;
use crabbox_store::leases::RecordError;

use crate::lease::admission::NoRoomForTemplate;
use crate::lease::allocate::AllocateError;
use crate::lease::ownership::OwnershipError;
use crate::request::Start;
use crate::resource::connection::ConnectionError;
use crate::resource::disk::DiskError;
use crate::resource::identity::IdentityError;
use crate::resource::network::NetworkError;
use crate::resource::ready::ReadyError;
use crate::resource::vmm::VmmError;

/// Why a lease could not be acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// It could not be allocated.
    #[error("cannot allocate a lease")]
    Allocate(#[from] AllocateError),
    /// Its SSH keys could not be made.
    #[error("cannot make the lease's SSH keys")]
    Key(#[from] keys::KeyError),
    /// Its disk could not be prepared.
    #[error("cannot prepare the lease's disk")]
    Disk(#[from] DiskError),
    /// Its network could not be made.
    #[error("cannot make the lease's network")]
    Network(#[from] NetworkError),
    /// Firecracker did not start the machine.
    #[error("firecracker did not start the machine")]
    Vmm(#[from] VmmError),
    /// The guest did not become ready.
    #[error("the guest did not become ready")]
    Ready(#[from] ReadyError),
    /// The guest of a template did not become this lease's, or did not park.
    #[error("the guest did not take its identity")]
    Identity(#[from] IdentityError),
    /// The network of this host gives each guest a tap and an address of its own, so what is frozen with one is of no use with another.
    #[error("a network whose chain makes the guest's tap cannot be frozen")]
    TapGiven,
    /// The disk does not hold what a machine that is frozen leaves.
    #[error(transparent)]
    NoRoom(#[from] NoRoomForTemplate),
    /// There is no way to name or share an SSH connection to it.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The console could not be recorded.
    #[error(transparent)]
    Console(#[from] console::ConsoleError),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lease waited in a pool, and is on its way out.
    #[error("the lease is being taken back")]
    Ending,
    /// The lease that waits here is not the one that was asked for.
    #[error("lease {id} waits here, and another one was asked for")]
    OtherLease {
        /// The lease.
        id: String,
    },
    /// It waits for somebody else's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It is not ours.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// It was to wait in a pool, and somebody wanted the room that it takes.
    #[error("the lease made room for somebody's")]
    GaveWay,
    /// The command line that asked for the lease is gone, or was interrupted.
    #[error("the lease was given up by the command that asked for it")]
    Abandoned,
}

impl Fault for AcquireError {
    fn kind(&self) -> Kind {
        match self {
            Self::Allocate(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Vmm(error) => error.kind(),
            Self::Ready(_)
            | Self::Identity(_)
            | Self::Abandoned
            | Self::GaveWay
            | Self::NoRoom(_)
            | Self::Ending
            | Self::OtherLease { .. } => Kind::Unavailable,
            Self::Key(_)
            | Self::TapGiven
            | Self::Connection(_)
            | Self::Console(_)
            | Self::Journal(_)
            | Self::Lock(_)
            | Self::Ownership(_)
            | Self::Record(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Allocate(error) => error.hints(),
            Self::Disk(error) => error.hints(),
            Self::Network(error) => error.hints(),
            Self::Vmm(error) => error.hints(),
            Self::Ready(error) => error.hints(),
            Self::NoRoom(_) => vec![
                "free some space: `crabbox image gc` removes images that no lease uses and templates that are of no use any more".to_owned(),
            ],
            Self::GaveWay => vec![
                "fill the pool when there is more room, or raise the limit that was met (firecracker.maxLeases, reserveMemoryMiB, reserveDiskMiB, uidCount)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

impl AcquireError {
    /// Whether a machine that was to go on from a template failed in what a boot does otherwise.
    pub(crate) fn is_of_restoring(&self, start: &Start) -> bool {
        let given_up = matches!(
            self,
            Self::Identity(IdentityError::Cancelled) | Self::Vmm(VmmError::Cancelled)
        );
        let differs = matches!(
            self,
            Self::Disk(_) | Self::TapGiven | Self::Vmm(_) | Self::Identity(_)
        );
        matches!(start, Start::Restore { .. }) && differs && !given_up
    }

    /// Whether it is the template's own fault, and not that of the host's disk, load or programs.
    pub(crate) fn blames_template(&self) -> bool {
        matches!(
            self,
            Self::Vmm(VmmError::Api(_) | VmmError::OtherFile { .. } | VmmError::Ended { .. })
                | Self::Identity(
                    IdentityError::Ended | IdentityError::Unexpected { .. } | IdentityError::Refused { .. }
                )
        )
    }
}
