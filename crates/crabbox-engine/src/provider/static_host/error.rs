//! Why a host that exists already is not to be had. The wordings are the Go program's where it has one.

use std::path::PathBuf;

use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_core::id::SlugError;
use crabbox_host::lock::LockError;
use crabbox_machine::lease::find::NameError;
use crabbox_ssh::control::ControlError;
use crabbox_ssh::master::{ConnectError, ExitError};
use crabbox_ssh::ready::ReadyError;
use crabbox_ssh::target::TargetError;
use crabbox_store::claims::ClaimError;

use crate::provider::error::LeaseError;

/// Why a host that exists already is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    /// Nobody said which host.
    #[error("provider=ssh requires static.host or CRABBOX_STATIC_HOST")]
    NoHost {
        /// The file in which the user can say it.
        user_file: PathBuf,
    },
    /// Another system than this program knows.
    #[error("provider=ssh supports target=linux only in this program, found {target:?}")]
    Target {
        /// The target as configured.
        target: String,
    },
    /// The id cannot name a claim.
    #[error("static.id {id:?} cannot name a lease")]
    Id {
        /// The id.
        id: String,
    },
    /// The slug asked for is none.
    #[error(transparent)]
    Slug(SlugError),
    /// The key that was chosen is not there.
    #[error("ssh.key {} is not a file", path.display())]
    Key {
        /// The key.
        path: PathBuf,
    },
    /// The work root is not one.
    #[error("provider=ssh requires static.workRoot to be an absolute POSIX path, found {path:?}")]
    WorkRoot {
        /// The path as configured.
        path: String,
    },
    /// A claim's port is not a number.
    #[error("the claim of lease {id} has the SSH port {port:?}")]
    Port {
        /// The lease.
        id: String,
        /// The port as recorded.
        port: String,
    },
    /// User or host cannot be used.
    #[error(transparent)]
    Address(#[from] TargetError),
    /// Who uses the lease cannot be found out.
    #[error("cannot lock the lease for this command")]
    Users(#[source] LockError),
    /// There is no place for the socket of the shared connection.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The name is that of no host, or of several claims.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no claim of this lease for this host.
    #[error("lease {id} is not claimed for provider=ssh host={host}")]
    NotClaimed {
        /// The lease.
        id: String,
        /// The host.
        host: String,
    },
    /// The id is taken by a claim for something else.
    #[error("lease {id} is claimed for another host than {host}")]
    OtherHost {
        /// The lease.
        id: String,
        /// The host that was wanted.
        host: String,
    },
    /// The host does not let us in.
    #[error("cannot log in to {host}")]
    Login {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// It did not become ready.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// The user interrupted.
    #[error("interrupted while waiting for {host}")]
    Interrupted {
        /// The host.
        host: String,
    },
    /// A claim cannot be read or changed.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// The shared connection is still there.
    #[error("cannot end the shared SSH connection to {host}")]
    Close {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: ExitError,
    },
    /// Clean-up of a host that is not ours.
    #[error("machine cleanup is not supported for provider=ssh")]
    Cleanup,
}

impl Fault for StaticError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name(_) | Self::NotClaimed { .. } | Self::OtherHost { .. } => Kind::NotFound,
            Self::Login { .. } | Self::Ready(_) => Kind::Unavailable,
            // 128 and the number of SIGINT, as shells have it.
            Self::Interrupted { .. } => Kind::Passthrough(130),
            Self::Close { .. } => Kind::Remote,
            _ => Kind::Usage,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        let timed_out = matches!(self, Self::Ready(ReadyError::TimedOut { .. }));
        timed_out.then_some(Connectivity::TimedOut)
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoHost { user_file } => format!(
                "put static.host, and what belongs to it, into {}, or give --static-host",
                user_file.display()
            ),
            Self::Name(NameError::NotFound { .. }) => "`crabbox list --provider ssh` shows the host".to_owned(),
            Self::NotClaimed { id, .. } => format!("`crabbox ssh {id}` claims it for this repository"),
            Self::OtherHost { id, .. } => {
                format!("`crabbox stop {id}` gives it back; another static.id keeps both")
            }
            Self::Key { .. } => "set ssh.key or CRABBOX_SSH_KEY to your private key".to_owned(),
            Self::Login {
                source: ConnectError::AuthDenied { .. },
                ..
            } => "the user is static.user or ssh.user, the key ssh.key; its public half must stand in the host's authorized_keys"
                .to_owned(),
            Self::Login {
                source: ConnectError::HostKeyMismatch { known_hosts, .. },
                ..
            } => format!(
                "if the host was set up anew, take its old key out of {}",
                known_hosts.display()
            ),
            Self::Control(error) => return error.hints(),
            Self::Ready(error) if error.is_of_the_check() => "the host must have git".to_owned(),
            _ => return Vec::new(),
        };
        vec![hint]
    }
}

impl From<StaticError> for LeaseError {
    fn from(error: StaticError) -> Self {
        Self::new(error)
    }
}
