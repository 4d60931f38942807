//! Why a lease does not get a volume, and what its user can do about it.
//!
//! A hint that would remove a volume must say so.

use std::path::PathBuf;

use crabbox_core::admission::Refusal;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::command::CommandError;
use crabbox_host::files::FileError;
use crabbox_host::process::ProcessError;
use crabbox_image::disk::DiskError;
use crabbox_store::volumes::VolumesError;

use crate::resource::disk;

/// Why a lease does not get a volume, or a volume is not given back or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Another lease has it.
    #[error("lease {lease} has it")]
    Busy {
        /// The lease.
        lease: String,
    },
    /// A process that belongs to no lease may write to its image.
    #[error("process {pid} has its image open for writing")]
    Open {
        /// The process.
        pid: u32,
    },
    /// Only crabbox's own images mount volumes, and only when they boot.
    #[error("only crabbox's own images have volumes")]
    Foreign,
    /// There is no disk space for the size that it may grow to.
    #[error(transparent)]
    NoRoom(#[from] Refusal),
    /// Its files cannot be used.
    #[error(transparent)]
    Store(#[from] VolumesError),
    /// Its file system cannot be made, checked or grown.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is damaged, and an earlier damaged image has not been removed by the user yet.
    #[error("it is damaged ({why}), and {} already holds a previously damaged one", path.display())]
    DamagedAgain {
        /// The image that was set aside before.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The guest does not know volumes.
    #[error("the guest's image is too old to mount volumes")]
    TooOld,
    /// The guest could not mount it.
    #[error("the guest could not mount it; its console says why")]
    NotMounted,
    /// The processes of this host cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The journal names a directory that no volume can have: it is not touched.
    #[error("the journal names {}, which is not a place of volumes", path.display())]
    Outside {
        /// The directory.
        path: PathBuf,
    },
}

impl From<FileError> for VolumeError {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

impl Fault for VolumeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } | Self::Open { .. } => Kind::Unavailable,
            Self::NoRoom(refusal) => refusal.kind(),
            Self::Store(error) => error.kind(),
            Self::Disk(_)
            | Self::Foreign
            | Self::DamagedAgain { .. }
            | Self::TooOld
            | Self::NotMounted
            | Self::Process(_)
            | Self::Outside { .. } => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Busy { lease } => vec![format!("stop that lease: `crabbox stop {lease}`"), without()],
            Self::Open { .. } => vec!["`crabbox cleanup --provider firecracker` ends machines that belong to no lease".to_owned()],
            Self::NoRoom(refusal) => refusal.hints(),
            Self::Store(error) => error.hints(),
            Self::Disk(_) if disk::is_out_of_space(self) => {
                vec!["free some space on the state directory's file system".to_owned()]
            }
            Self::Foreign => vec![
                "leave firecracker.kernel and firecracker.rootfs unset, and name an image of `crabbox image build`".to_owned(),
                without(),
            ],
            Self::NotMounted => vec![
                "choose another path, or remove the volume if an image with a newer kernel has changed it".to_owned(),
                without(),
            ],
            Self::TooOld => vec![
                "build the image again with `crabbox image build`, or fetch a newer one".to_owned(),
                without(),
            ],
            Self::DamagedAgain { path, .. } => vec![
                format!("move {} away, so that the damaged one can be set aside in its place", path.display()),
                "`crabbox cache volumes --remove NAME --force` removes both".to_owned(),
            ],
            Self::Disk(_) | Self::Process(_) | Self::Outside { .. } => Vec::new(),
        }
    }
}

impl VolumeError {
    /// Whether the cause is that the requester gave up.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Store(VolumesError::Cancelled)
                | Self::Disk(DiskError::Tool {
                    source: CommandError::Cancelled { .. },
                    ..
                })
        )
    }
}

/// The hint that an optional volume would only cause a warning.
fn without() -> String {
    "a volume that is not required is left out with a warning instead".to_owned()
}
