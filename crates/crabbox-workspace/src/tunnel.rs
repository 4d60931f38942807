//! Forwards a port of this machine to a port of a lease: `crabbox tunnel`.
//!
//! Loopback at both ends. The tunnel ends with this process, however that ends.

use std::os::fd::BorrowedFd;

use crabbox_core::fault::{Fault, Kind};
pub use crabbox_ssh::tunnel::Tunnel;
use crabbox_ssh::tunnel::{self, TunnelEnd};

use crabbox_ssh::target::Target;

/// Why there is no tunnel, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] tunnel::TunnelError),
    /// It could not be watched.
    #[error("cannot watch the tunnel")]
    Watch(#[source] std::io::Error),
    /// It ended by itself.
    #[error("the tunnel to port {remote_port} ended{}", because(.said))]
    Ended {
        /// The port on the other side.
        remote_port: u16,
        /// What ssh said last.
        said: String,
    },
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

impl Fault for TunnelError {
    fn kind(&self) -> Kind {
        match self {
            Self::Open(tunnel::TunnelError::PortTaken { .. } | tunnel::TunnelError::Local { .. }) => {
                Kind::Usage
            }
            Self::Open(_) | Self::Watch(_) | Self::Ended { .. } => Kind::Unavailable,
        }
    }
}

/// Opens a tunnel from `local_port` (a free one if `None`) to `remote_port` of the lease; it accepts
/// connections when this returns. `None` if `cancel` became readable first.
pub fn open(
    target: &Target,
    local_port: Option<u16>,
    remote_port: u16,
    cancel: BorrowedFd<'_>,
) -> Result<Option<Tunnel>, TunnelError> {
    match tunnel::open(target, local_port, remote_port, Some(cancel)) {
        Ok(tunnel) => Ok(Some(tunnel)),
        Err(tunnel::TunnelError::Cancelled { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Holds the tunnel until `cancel` becomes readable; if it ends before that, that is an error. `on_refusal` is
/// called with the reason for each connection that the lease refused.
pub fn hold(
    tunnel: Tunnel,
    target: &Target,
    remote_port: u16,
    cancel: BorrowedFd<'_>,
    on_refusal: &mut dyn FnMut(&str),
) -> Result<(), TunnelError> {
    match tunnel
        .wait(target, Some(cancel), on_refusal)
        .map_err(TunnelError::Watch)?
    {
        TunnelEnd::Cancelled => Ok(()),
        TunnelEnd::Ended { said } => Err(TunnelError::Ended { remote_port, said }),
    }
}
