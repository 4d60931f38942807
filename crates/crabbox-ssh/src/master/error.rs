//! Why the shared connection was not opened or not closed, and which of the reasons a message of ssh gives.
//!
//! A text of ssh that is not known is never dropped.

use std::path::PathBuf;

use crabbox_core::fault::Connectivity;
use crabbox_host::command::CommandError;
use crabbox_host::lock::LockError;
use crabbox_host::process::ProcessError;

use crate::control::ControlError;
use crate::key_trouble::KeyTrouble;
use crate::mux::MuxError;
use crate::target::Target;

/// What sshd says after `MaxAuthTries` keys; one more line says only that the connection has ended.
const TOO_MANY_KEYS: &str = "Too many authentication failures";

/// Why no connection was opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens on the port, or there is no route to it.
    #[error("cannot reach {destination} port {port} by SSH: {said}")]
    Unreachable {
        /// `user@host`.
        destination: String,
        /// The port.
        port: u16,
        /// What ssh said.
        said: String,
    },
    /// The other side did not answer in time.
    #[error("{destination} port {port} did not answer by SSH in time: {said}")]
    TimedOut {
        /// `user@host`.
        destination: String,
        /// The port.
        port: u16,
        /// What ssh said.
        said: String,
    },
    /// The server does not accept our key.
    #[error("{destination} refused the SSH key: {said}")]
    AuthDenied {
        /// `user@host`.
        destination: String,
        /// What ssh said.
        said: String,
    },
    /// The key was not offered or could not be used: there is something wrong with its file.
    #[error("cannot log in to {destination}: {trouble}")]
    KeyUnusable {
        /// `user@host`.
        destination: String,
        /// What is wrong with it.
        trouble: KeyTrouble,
    },
    /// The server does not have this lease's host key: it is another machine, or there is a machine in the
    /// middle.
    #[error(
        "the host key of {destination} is not the one pinned in {}: this is another machine or somebody is in \
         between; if it is a microVM, stop this lease and take a new one", known_hosts.display()
    )]
    HostKeyMismatch {
        /// `user@host`.
        destination: String,
        /// The file with the expected key.
        known_hosts: PathBuf,
    },
    /// The connection failed for another reason; the text is that of ssh.
    #[error("cannot open an SSH connection to {destination}: {said}")]
    Failed {
        /// `user@host`.
        destination: String,
        /// What ssh said.
        said: String,
    },
    /// The caller cancelled it.
    #[error("interrupted while connecting to {destination}")]
    Cancelled {
        /// `user@host`.
        destination: String,
    },
    /// `ssh` itself could not be run.
    #[error("cannot run the ssh client of OpenSSH")]
    Client {
        /// What went wrong.
        #[source]
        source: CommandError,
    },
    /// The lock that keeps two masters apart could not be taken.
    #[error("cannot lock the shared SSH connection")]
    Lock {
        /// What went wrong.
        #[source]
        source: LockError,
    },
    /// The file for ssh's messages could not be created.
    #[error("cannot create a file for the messages of ssh")]
    Messages {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ConnectError {
    /// Whether the same attempt may succeed a moment later: true while a machine boots, false for a wrong
    /// host key or a missing client. A refused key counts as passing, because a guest may accept logins
    /// before its keys are in place.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::AuthDenied { .. } | Self::Failed { .. }
        )
    }

    /// Whether the host name could not be resolved.
    pub fn is_of_the_name(&self) -> bool {
        matches!(self, Self::Unreachable { said, .. } if said.contains("Could not resolve hostname"))
    }

    /// Whether the server closed the connection, as an sshd does with too many concurrent logins. Other texts
    /// of ssh are its own refusals: an unknown option, or a configuration file that others may write.
    pub fn is_cut_off(&self) -> bool {
        const PHRASES: [&str; 4] = [
            "Connection closed",
            "Connection reset",
            "exchange_identification",
            "Broken pipe",
        ];
        matches!(self, Self::Failed { said, .. } if PHRASES.iter().any(|phrase| said.contains(phrase)))
    }

    /// What the error says about the connection; `None` if it is about this machine or this process.
    pub fn connectivity(&self) -> Option<Connectivity> {
        match self {
            Self::TimedOut { .. } => Some(Connectivity::TimedOut),
            Self::Unreachable { .. } if !self.is_of_the_name() => Some(Connectivity::Unreached),
            Self::Failed { .. } if self.is_cut_off() => Some(Connectivity::Unreached),
            Self::Unreachable { .. }
            | Self::Failed { .. }
            | Self::AuthDenied { .. }
            | Self::KeyUnusable { .. }
            | Self::HostKeyMismatch { .. } => Some(Connectivity::Hopeless),
            Self::Cancelled { .. } | Self::Client { .. } | Self::Lock { .. } | Self::Messages { .. } => None,
        }
    }

    /// Whether ssh had more keys to offer than the server lets it try: the right one may be among them.
    pub fn is_of_too_many_keys(&self) -> bool {
        matches!(self, Self::AuthDenied { said, .. } if said.contains(TOO_MANY_KEYS))
    }

    /// Whether the server refused a login for which a key is not enough or no use: the remaining methods,
    /// which ssh lists in brackets, do not include `publickey`.
    pub fn wants_more_than_a_key(&self) -> bool {
        let Self::AuthDenied { said, .. } = self else {
            return false;
        };
        let methods = said.rsplit_once("Permission denied (");
        let methods = methods.and_then(|(_, rest)| rest.split_once(')'));
        methods.is_some_and(|(methods, _)| !methods.split(',').any(|method| method == "publickey"))
    }
}

/// Why a shared connection may still be there.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The lock that keeps two masters apart could not be taken or removed.
    #[error("cannot lock the shared SSH connection")]
    Lock {
        /// What went wrong.
        #[source]
        source: LockError,
    },
    /// Something listens on the socket but does not answer like a master.
    #[error("cannot request the end of the shared SSH connection")]
    Ask {
        /// What went wrong.
        #[source]
        source: MuxError,
    },
    /// The master would not end.
    #[error("cannot end the ssh process {pid} of the shared connection")]
    Process {
        /// Its pid.
        pid: u32,
        /// What went wrong.
        #[source]
        source: ProcessError,
    },
    /// A record names a socket that is not one of ours.
    #[error("the shared SSH connection of the lease was not closed")]
    Recorded {
        /// Why.
        #[source]
        source: ControlError,
    },
    /// The socket is still there.
    #[error("cannot remove the control socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Classifies the messages of ssh. The phrases are those of OpenSSH 8.4 to 10, which have been stable for
/// decades; unknown messages are passed on.
pub(crate) fn classify(target: &Target, text: &str) -> ConnectError {
    let destination = target.destination();
    let port = target.port;
    let said = text.lines().last().unwrap_or("it gave no reason").to_owned();
    let holds = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    if holds(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]) {
        let known_hosts = target.known_hosts.clone();
        return ConnectError::HostKeyMismatch {
            destination,
            known_hosts,
        };
    }
    if let Some(said) = text.lines().find(|line| line.contains(TOO_MANY_KEYS)) {
        let said = said.to_owned();
        return ConnectError::AuthDenied { destination, said };
    }
    if holds(&["Permission denied"]) {
        return match target.key.as_deref().and_then(KeyTrouble::of) {
            Some(trouble) => ConnectError::KeyUnusable { destination, trouble },
            None => ConnectError::AuthDenied { destination, said },
        };
    }
    if holds(&["timed out", "Timeout"]) {
        return ConnectError::TimedOut {
            destination,
            port,
            said,
        };
    }
    if holds(&[
        "Connection refused",
        "No route to host",
        "unreachable",
        "Could not resolve hostname",
    ]) {
        return ConnectError::Unreachable {
            destination,
            port,
            said,
        };
    }
    // Unknown, so the user gets all of it; the last line alone often says only that ssh stops.
    let said = if text.trim().is_empty() {
        said
    } else {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("Warning: Permanently added"));
        lines.take(WHOLE_LINES).collect::<Vec<_>>().join("; ")
    };
    ConnectError::Failed { destination, said }
}

/// How many lines of ssh a message repeats.
const WHOLE_LINES: usize = 8;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn too_many_keys_are_told_by_the_line_that_says_so() {
        let target = Target::new("u", "h", 22, Path::new("/k/known_hosts")).unwrap();
        let text = "Received disconnect from 127.0.0.1 port 22:2: Too many authentication failures\nDisconnected from 127.0.0.1 port 22\n";
        let error = classify(&target, text);
        assert!(
            error.is_of_too_many_keys() && !error.wants_more_than_a_key(),
            "{error:?}"
        );
        assert!(error.to_string().ends_with(TOO_MANY_KEYS), "{error}");
        let refused = classify(&target, "u@h: Permission denied (publickey).\n");
        assert!(!refused.is_of_too_many_keys(), "{refused:?}");
    }
}
