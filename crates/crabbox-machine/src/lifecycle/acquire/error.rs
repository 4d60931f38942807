//! Why a lease could not be acquired, and what follows from the error.
//!
//! Facts and kinds only: the caller decides what to do about an error. Nothing here may look at the host.

use crabbox_core::admission::Asker;
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
use crate::resource::volume::VolumeError;

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
    /// A required volume is unavailable.
    #[error("cannot attach the required cache volume {name:?}")]
    Volume {
        /// The volume's name.
        name: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// Its network could not be made.
    #[error("cannot make the lease's network")]
    Network(#[from] NetworkError),
    /// Firecracker did not start the machine.
    #[error("firecracker did not start the machine")]
    Vmm(#[from] VmmError),
    /// The guest did not become ready.
    #[error("the guest did not become ready")]
    Ready(#[from] ReadyError),
    /// The guest of a template did not take this lease's identity, or did not park.
    #[error("the guest did not accept its identity")]
    Identity(#[from] IdentityError),
    /// The network of this host gives each guest its own tap and address, so a snapshot with one is useless
    /// with another.
    #[error("a template needs a network whose CNI chain does not make the guest's tap")]
    TapGiven,
    /// The disk has no room for a snapshot of the machine.
    #[error(transparent)]
    NoRoom(#[from] NoRoomForTemplate),
    /// Its SSH connection cannot be named or shared.
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
    /// The lease is a pool member that is being ended.
    #[error("the lease is being released")]
    Ending,
    /// The client asked for another lease than this pool member.
    #[error("this supervisor holds lease {id}, but another lease was requested")]
    OtherLease {
        /// The lease.
        id: String,
    },
    /// It waits for a lock that another process holds.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease directory does not belong to this user.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// It was being made for a pool, and gave way to another lease.
    #[error("the lease was ended to make room for a requested one")]
    GaveWay,
    /// The command line that asked for the lease is gone, or was interrupted.
    #[error("the command that requested the lease gave up")]
    Abandoned,
}

impl Fault for AcquireError {
    fn kind(&self) -> Kind {
        match self {
            Self::Allocate(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::Volume { source, .. } => source.kind(),
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
            Self::Volume { source, .. } => source.hints(),
            Self::Network(error) => error.hints(),
            Self::Vmm(error) => error.hints(),
            Self::Ready(error) => error.hints(),
            Self::NoRoom(_) => vec![
                "free some space: `crabbox image gc` removes images that no lease uses and templates that no longer fit".to_owned(),
            ],
            Self::GaveWay => vec![
                "fill the pool when there is more room, or raise the limit that was reached (firecracker.maxLeases, reserveMemoryMiB, reserveDiskMiB, uidCount)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

impl AcquireError {
    /// What the requester can do about it.
    pub(crate) fn hints_for(&self, asker: Asker) -> Vec<String> {
        match self {
            Self::Allocate(error) => error.hints_for(asker),
            _ => self.hints(),
        }
    }

    /// Whether a restore from a template failed where an ordinary boot might succeed.
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

    /// Whether the template is the cause, and not the host's disk, load or programs.
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
