//! Why an existing host is unavailable. The texts are the Go program's, where it has one.

use std::path::PathBuf;

use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_core::id::SlugError;
use crabbox_host::lock::LockError;
use crabbox_machine::lease::find::NameError;
use crabbox_ssh::control::ControlError;
use crabbox_ssh::exec::RemoteStatus;
use crabbox_ssh::master::{ConnectError, ExitError};
use crabbox_ssh::ready::ReadyError;
use crabbox_ssh::target::TargetError;
use crabbox_store::claims::ClaimError;

use crate::provider::error::LeaseError;

/// The hint for a session that fails after the login.
pub(super) const STARTS: &str = "look there for a start-up file of the login shell (.bashrc, .profile, .zshenv), or a ForceCommand, that ends the session or \
     does not come to an end";

/// Why an existing host is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    /// No host is configured.
    #[error("provider=ssh requires static.host or CRABBOX_STATIC_HOST")]
    NoHost {
        /// The file in which the user can configure it.
        user_file: PathBuf,
    },
    /// The id is not a valid name for a claim.
    #[error("static.id {id:?} cannot name a lease")]
    Id {
        /// The id.
        id: String,
    },
    /// The requested slug is not valid.
    #[error(transparent)]
    Slug(SlugError),
    /// The configured key does not exist.
    #[error("ssh.key {} is not a file", path.display())]
    Key {
        /// The key.
        path: PathBuf,
    },
    /// The work root is not an absolute path.
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
    /// The user or the address is not valid.
    #[error(transparent)]
    Address(#[from] TargetError),
    /// The users of the lease cannot be determined.
    #[error("cannot lock the lease for this command")]
    Users(#[source] LockError),
    /// The socket of the shared connection has no place.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The name matches no host, or several claims.
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
    /// A claim with this id is for another host.
    #[error("lease {id} is claimed for another host than {host}")]
    OtherHost {
        /// The lease.
        id: String,
        /// The requested host.
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
    /// The shared connection could not be closed.
    #[error("cannot end the shared SSH connection to {host}")]
    Close {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: ExitError,
    },
    /// The host is not ours to clean up.
    #[error("machine cleanup is not supported for provider=ssh")]
    Cleanup,
}

impl Fault for StaticError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name(_) | Self::NotClaimed { .. } | Self::OtherHost { .. } => Kind::NotFound,
            Self::Login { .. } | Self::Ready(_) => Kind::Unavailable,
            // 128 plus the number of SIGINT, as in shells.
            Self::Interrupted { .. } => Kind::Passthrough(130),
            Self::Close { .. } => Kind::Remote,
            _ => Kind::Usage,
        }
    }

    fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::Login { source, .. } => source.connectivity(),
            Self::Ready(error) => error.connectivity(),
            _ => None,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoHost { user_file } => format!(
                "put static.host, and what belongs to it, into {}, or give --static-host",
                user_file.display()
            ),
            Self::Name(NameError::NotFound { .. }) => {
                "`crabbox list --provider ssh` shows the host".to_owned()
            }
            Self::NotClaimed { id, .. } => format!("`crabbox ssh {id}` claims it for this repository"),
            Self::OtherHost { id, .. } => {
                format!("`crabbox stop {id}` releases it; another static.id keeps both")
            }
            Self::Key { .. } => "set ssh.key or CRABBOX_SSH_KEY to your private key".to_owned(),
            Self::Login {
                source: source @ ConnectError::AuthDenied { .. },
                ..
            } => of_refusal(source).to_owned(),
            Self::Login {
                source: ConnectError::HostKeyMismatch { known_hosts, .. },
                ..
            } => format!(
                "if the host was reinstalled, remove its old key from {}; otherwise this may be a man-in-the-middle attack",
                known_hosts.display()
            ),
            Self::Control(error) => return error.hints(),
            Self::Ready(error) => match error.of_the_check() {
                Some(RemoteStatus::Exited(_)) => "the host must have git".to_owned(),
                Some(_) => STARTS.to_owned(),
                None => return Vec::new(),
            },
            _ => return Vec::new(),
        };
        vec![hint]
    }
}

/// The hint for a refused login.
pub(super) fn of_refusal(error: &ConnectError) -> &'static str {
    if error.is_of_too_many_keys() {
        return "ssh offers more keys than the host lets it try (MaxAuthTries), most of them from ssh-agent: set ssh.key to the one for this host, or \
                IdentityFile and IdentitiesOnly for it in ~/.ssh/config";
    }
    if error.wants_more_than_a_key() {
        return "the host takes no key for this user, or wants more than one (PubkeyAuthentication and AuthenticationMethods in its sshd_config), and \
                crabbox has nothing else to give: let a key alone do there, by `AuthenticationMethods publickey` in a Match block for this user";
    }
    "the user is static.user or ssh.user, the key ssh.key; its public half must stand in the host's authorized_keys, and the user's login shell must \
     be there (if it is not, only the log of the host's sshd says so)"
}

impl From<StaticError> for LeaseError {
    fn from(error: StaticError) -> Self {
        Self::new(error)
    }
}
