//! The doctor's probe of an existing host: whether it lets us in and has what a sync needs.
//!
//! It must leave no trace on either side: the connection ends with the probe, and a newly seen host key is
//! not kept.

use std::time::Duration;

use crabbox_core::config::Settings;
use crabbox_ssh::capture;
use crabbox_ssh::exec::{ExecError, RemoteStatus};
use crabbox_ssh::master::ConnectError;
use crabbox_ssh::ready::READY_STATIC;
use crabbox_store::places::Places;

use super::error::{STARTS, StaticError, of_refusal};
use super::host::Host;
use super::reach;

/// The time limit for the host to answer; the Go program's.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a host failed the probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The settings do not describe a host.
    #[error(transparent)]
    Settings(#[from] StaticError),
    /// It does not let us in.
    #[error("cannot log in to {host}")]
    Login {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// The login works, but the host ends the session.
    #[error("{host} accepts the login but ends the session at once")]
    CutOff {
        /// The host.
        host: String,
    },
    /// The login works, but there is no answer.
    #[error("{host} gave no answer in {} s", LIMIT.as_secs())]
    Silent {
        /// The host.
        host: String,
    },
    /// It lacks git.
    #[error("{host} lacks git: {said}")]
    Lacking {
        /// The host.
        host: String,
        /// Its output.
        said: String,
    },
    /// The known host keys cannot be copied for the probe.
    #[error("cannot prepare the question to {host}")]
    Local {
        /// The host.
        host: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl ProbeError {
    /// The class of the problem, in the Go program's words.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Settings(_) => "config",
            Self::Login { source, .. } => match source {
                ExecError::Connect { source } => match source {
                    ConnectError::AuthDenied { .. }
                    | ConnectError::KeyUnusable { .. }
                    | ConnectError::HostKeyMismatch { .. } => "auth",
                    ConnectError::TimedOut { .. } => "timeout",
                    ConnectError::Unreachable { .. } | ConnectError::Failed { .. } => "network",
                    ConnectError::Client { .. } => "tool",
                    _ => "provider",
                },
                _ => "provider",
            },
            Self::Silent { .. } => "timeout",
            Self::Lacking { .. } => "tool",
            Self::CutOff { .. } | Self::Local { .. } => "provider",
        }
    }

    /// How to fix it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::CutOff { .. }
            | Self::Login {
                source: ExecError::NotStarted { .. },
                ..
            } => return STARTS,
            Self::Login {
                source:
                    ExecError::Connect {
                        source: source @ ConnectError::AuthDenied { .. },
                    },
                ..
            } => return of_refusal(source),
            _ => {}
        }
        match self.class() {
            "config" => "crabbox config explain static.host",
            "auth" => {
                "put the public half of ssh.key into the host's authorized_keys, and look whether it is still the same host"
            }
            "tool" => "install git on the host, and OpenSSH here",
            _ => "start sshd on the host, or correct static.host, static.port and the route to it",
        }
    }
}

/// Probes the configured host.
pub fn probe(settings: &Settings, places: &Places) -> Result<(), ProbeError> {
    let mut host = Host::new(settings, places, None)?;
    reach::choose_port(&mut host);
    let address = host.address.clone();
    let name = || address.clone();
    let local = |source| ProbeError::Local { host: name(), source };
    let scratch = tempfile::tempdir().map_err(local)?;
    let known = scratch.path().join("known_hosts");
    match std::fs::read(&host.known_hosts) {
        Ok(keys) => std::fs::write(&known, keys).map_err(local)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(local(error)),
    }
    host.known_hosts = known;
    let mut target = host.target()?;
    target.connect_timeout = LIMIT;
    target.connection_attempts = 1;
    let answer = capture::capture_check(&target, READY_STATIC, LIMIT, None);
    let answer = answer.map_err(|source| ProbeError::Login { host: name(), source })?;
    match answer.status {
        RemoteStatus::Exited(0) => Ok(()),
        RemoteStatus::Exited(_) => Err(ProbeError::Lacking {
            host: name(),
            said: String::from_utf8_lossy(&answer.stderr)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        }),
        RemoteStatus::Killed | RemoteStatus::ConnectionLost => Err(ProbeError::CutOff { host: name() }),
        _ => Err(ProbeError::Silent { host: name() }),
    }
}
