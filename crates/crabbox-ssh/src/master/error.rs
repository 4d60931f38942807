//! Why the shared connection was not opened or not closed, and which of the reasons a message of ssh gives.
//!
//! A text of ssh that is not known is never dropped.

use std::path::PathBuf;

use crabbox_core::fault::Connectivity;
use crabbox_host::command::CommandError;
use crabbox_host::lock::LockError;
use crabbox_host::process::ProcessError;

use crate::client_config::ClientConfig;
use crate::control::ControlError;
use crate::key_trouble::{self, KeyTrouble};
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
        matches!(
            self,
            Self::Unreachable { said, .. } if said.contains("Could not resolve hostname") || said.contains(UNKNOWN_NAME)
        )
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

/// How ssh names the remote side when a proxy of the user's configuration leads there.
const PROXIED: &str = "UNKNOWN port 65535";

/// What introduces the words of a proxy.
const PROXY_SAID: &str = "the ProxyJump or ProxyCommand of the SSH configuration said";

/// How many lines of ssh a message repeats.
const WHOLE_LINES: usize = 8;

/// Phrases for a side that cannot be reached.
const UNREACHABLE: [&str; 6] = [
    "Connection refused",
    "No route to host",
    "unreachable",
    "Could not resolve hostname",
    // What a proxy says of the host behind it.
    "connect failed: ",
    UNKNOWN_NAME,
];

/// What the resolver says of a name that nobody has, wherever it was asked.
const UNKNOWN_NAME: &str = "Name or service not known";

/// Phrases for a side that gave no answer.
const TIMED_OUT: [&str; 2] = ["timed out", "Timeout"];

/// Classifies the messages of ssh about the host itself. The phrases are those of OpenSSH 8.4 to 10, which have
/// been stable for decades; unknown messages are passed on.
pub(crate) fn classify(target: &Target, text: &str) -> ConnectError {
    let destination = target.destination();
    let lines = telling_lines(text);
    if last_with(
        &lines,
        &["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"],
    )
    .is_some()
    {
        let known_hosts = target.known_hosts.clone();
        return ConnectError::HostKeyMismatch {
            destination,
            known_hosts,
        };
    }
    if let Some(said) = last_with(&lines, &[TOO_MANY_KEYS]) {
        return ConnectError::AuthDenied { destination, said };
    }
    if last_with(&lines, &["Permission denied"]).is_some() {
        return denied(target, &lines);
    }
    unanswered(target, &lines, &str::to_owned).unwrap_or_else(|| ConnectError::Failed {
        destination,
        said: if lines.is_empty() {
            "it gave no reason".to_owned()
        } else {
            // Unknown, so the user gets all of it; the last line alone often says only that ssh stops.
            lines[..lines.len().min(WHOLE_LINES)].join("; ")
        },
    })
}

/// The same for the messages of an ssh among which are those of its proxy. What a proxy says of keys is about
/// the proxy's host, never about the target.
pub(crate) fn classify_proxied(target: &Target, text: &str) -> ConnectError {
    let lines = telling_lines(text);
    let of_proxy: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| !is_of_the_end(line))
        .collect();
    let end = lines
        .iter()
        .rev()
        .find(|line| line.contains(PROXIED) && is_of_the_end(line));
    // A proxy that is given up because it is silent has said nothing about that.
    let end = end.filter(|end| !end.contains("timed out"));
    let (Some(end), false) = (end, of_proxy.is_empty()) else {
        return classify(target, text);
    };
    let told = |said: &str| format!("{PROXY_SAID}: {said}");
    if let Some(error) = unanswered(target, &of_proxy, &told) {
        return error;
    }
    let surplus = of_proxy.len().saturating_sub(WHOLE_LINES);
    let mut said = told(&of_proxy[surplus..].join("; "));
    let refusals = [
        "Permission denied",
        "Host key verification failed",
        TOO_MANY_KEYS,
        "prohibited",
    ];
    // The greeting of a bastion is no reason, and the host behind it may have cut us off.
    if last_with(&of_proxy, &refusals).is_none() && ClientConfig::of(target).has_ssh_proxy() {
        said = format!("{said}; {end}");
    }
    let destination = target.destination();
    ConnectError::Failed { destination, said }
}

/// Whether `text` says only that the proxy has ended, and nothing about why.
pub(super) fn is_only_of_the_end(text: &str) -> bool {
    text.contains(PROXIED) && telling_lines(text).into_iter().all(is_of_the_end)
}

/// Whether a line says only that the other end of the proxy's pipe was closed.
fn is_of_the_end(line: &str) -> bool {
    let ends = ["Connection closed by ", "Connection reset by ", "Connection to "];
    let starts = [
        "kex_exchange_identification: ",
        "Connection timed out during banner exchange",
    ];
    starts.iter().any(|start| line.starts_with(start))
        || ends.iter().any(|end| line.contains(&format!("{end}{PROXIED}")))
}

/// The error of a side that cannot be reached or does not answer, by the line that says so.
fn unanswered(target: &Target, lines: &[&str], told: &dyn Fn(&str) -> String) -> Option<ConnectError> {
    let (destination, port) = (target.destination(), target.port);
    if let Some(said) = last_with(lines, &TIMED_OUT) {
        let said = told(&said);
        return Some(ConnectError::TimedOut {
            destination,
            port,
            said,
        });
    }
    let said = told(&last_with(lines, &UNREACHABLE)?);
    Some(ConnectError::Unreachable {
        destination,
        port,
        said,
    })
}

/// The error for a refused login. A key that could not be used may be the reason.
fn denied(target: &Target, lines: &[&str]) -> ConnectError {
    let destination = target.destination();
    let surplus = lines.len().saturating_sub(WHOLE_LINES);
    let mut said: Vec<String> = lines[surplus..].iter().map(ToString::to_string).collect();
    let config = ClientConfig::of(target);
    let unusable = if let Some(key) = &target.key {
        KeyTrouble::of(key, config.agent())
    } else {
        let keys = config.keys(target);
        let troubles = keys.iter().filter_map(|key| KeyTrouble::of(key, config.agent()));
        let mut troubles: Vec<KeyTrouble> = troubles.collect();
        if troubles.len() < keys.len() || key_trouble::held(config.agent()).is_some() {
            // Another key was refused, too, and either may be the one that was meant.
            said.extend(troubles.drain(..).map(|trouble| trouble.to_string()));
        }
        troubles.into_iter().next()
    };
    if let Some(trouble) = unusable {
        return ConnectError::KeyUnusable { destination, trouble };
    }
    let said = said.join("; ");
    ConnectError::AuthDenied { destination, said }
}

/// The lines of ssh that say something: no frame around a warning, and no note about a new host key.
fn telling_lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("Warning: Permanently added"));
    lines
        .filter(|line| !line.starts_with("@@@@") && !line.ends_with("Permission denied, please try again."))
        .collect()
}

/// The last line that holds one of `phrases`.
fn last_with(lines: &[&str], phrases: &[&str]) -> Option<String> {
    let holds = |line: &&&str| phrases.iter().any(|phrase| line.contains(phrase));
    lines.iter().rev().find(holds).map(ToString::to_string)
}

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

    /// The last lines of ssh when its proxy ends before the host has said anything.
    const END: &str = "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n";

    fn proxied(proxy: &str, said: &str) -> ConnectError {
        let mut target = Target::new("u", "h", 22, Path::new("/k/known_hosts")).unwrap();
        target.key = Some("/k/id".into());
        target.extra = vec![format!("ProxyCommand={proxy}")];
        classify_proxied(&target, &format!("{said}\n{END}"))
    }

    #[test]
    fn what_a_proxy_says_is_told_as_its_words_and_is_never_about_the_host() {
        let jump = "ssh -W %h:%p b";
        for said in [
            "Warning: Permanently added 'b' (ED25519) to the list of known hosts.\nPermission denied, please try again.\nu@b: Permission denied (publickey).",
            "No ED25519 host key is known for b and you have requested strict checking.\nHost key verification failed.",
            "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures",
            "channel 0: open failed: administratively prohibited: open failed\nstdio forwarding failed",
        ] {
            let error = proxied(jump, said);
            assert!(
                matches!(error, ConnectError::Failed { .. }) && !error.is_cut_off(),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains(PROXY_SAID) && text.contains(said.lines().last().unwrap()),
                "{text}"
            );
            assert!(!text.contains("UNKNOWN") && !text.contains("try again"), "{text}");
        }
        for (said, is_name) in [
            ("ssh: connect to host b port 22: Connection refused", false),
            (
                "ssh: Could not resolve hostname b: Name or service not known",
                true,
            ),
            (
                "channel 0: open failed: connect failed: No route to host\nstdio forwarding failed",
                false,
            ),
            (
                "channel 0: open failed: connect failed: Name or service not known\nstdio forwarding failed",
                true,
            ),
        ] {
            let error = proxied(jump, said);
            assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
            assert_eq!(error.is_of_the_name(), is_name, "{error:?}");
            assert!(
                error
                    .to_string()
                    .ends_with(&format!("{PROXY_SAID}: {}", said.lines().next().unwrap())),
                "{error}"
            );
        }
        let late = proxied(jump, "ssh: connect to host b port 22: Connection timed out");
        assert!(matches!(late, ConnectError::TimedOut { .. }), "{late:?}");
    }

    #[test]
    fn a_proxy_that_cannot_run_is_final_and_a_greeting_of_a_bastion_is_not() {
        let missing = proxied("nowhere %h", "/bin/bash: line 1: exec: nowhere: not found");
        assert!(
            !missing.is_cut_off() && missing.to_string().ends_with("nowhere: not found"),
            "{missing:?}"
        );
        let greeted = proxied("ssh -W %h:%p b", "Welcome to the bastion");
        assert!(
            greeted.is_cut_off() && greeted.to_string().contains("Welcome"),
            "{greeted:?}"
        );
        // A bastion that cuts us off says so in its own name.
        let busy = proxied("nc b 22", "Connection closed by 192.0.2.1 port 22");
        assert!(busy.is_cut_off(), "{busy:?}");
        let silent = proxied("nc b 22", "");
        assert!(silent.is_cut_off(), "{silent:?}");
    }

    #[test]
    fn the_host_behind_a_proxy_speaks_for_itself() {
        assert!(is_only_of_the_end(END));
        let late =
            "Connection timed out during banner exchange\nConnection to UNKNOWN port 65535 timed out\n";
        assert!(is_only_of_the_end(late));
        for said in [
            "Received disconnect from UNKNOWN port 65535:2: Too many authentication failures\nDisconnected from UNKNOWN port 65535",
            "Unable to negotiate with UNKNOWN port 65535: no matching cipher found. Their offer: aes128-ctr",
            "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 192.0.2.1 port 22",
        ] {
            assert!(!is_only_of_the_end(said), "{said}");
        }
    }
}
