//! Which KVM host is meant, and how it is entered.
//!
//! A host is named by its user; it must never be one that only a repository chose, which the types of the configuration see to.

use std::fmt;
use std::path::{Path, PathBuf};

use crabbox_core::config::Settings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::target::{Target, TargetError};

/// How a claim's scope begins that names a host.
const SCHEME: &str = "ssh://";

/// The port of SSH.
const PORT: u16 = 22;

/// The longest name of a scheduler's, in bytes (`HOST_NAME_MAX` of Linux).
const NAME: usize = 64;

/// Whether `text` is a name of the scheduler's that is never more than one word, one host, or a value.
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A KVM host that is reached over SSH, itself or through the gateway of its fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvmHost {
    user: String,
    address: String,
    port: u16,
    /// The scheduler's name of the host behind a gateway, which is what the rest names then.
    node: Option<String>,
}

/// Why a text names no KVM host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It is not written as one.
    #[error("firecracker.host must be user@host or user@host:port, found {text:?}")]
    Form {
        /// The text.
        text: String,
    },
    /// It names one host behind a gateway, and the scheduler chooses.
    #[error("firecracker.host names the gateway of a fleet and not one host behind it, found {text:?}")]
    Behind {
        /// The text.
        text: String,
    },
    /// User or host would be read as something else.
    #[error("firecracker.host cannot be used")]
    Target(#[from] TargetError),
    /// What is asked for is this machine's, and leases are made on another one.
    #[error("leases are made on {host}, and `{command}` is about the machine that it runs on")]
    Elsewhere {
        /// The host.
        host: KvmHost,
        /// The command.
        command: &'static str,
    },
    /// The key that was chosen is not there.
    #[error("ssh.key {} is not a file", path.display())]
    Key {
        /// The key.
        path: PathBuf,
    },
}

impl Fault for HostError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec![match self {
            Self::Form { .. } | Self::Target(_) => {
                "for example --firecracker-host crabbox@kvm1, or unset it to lease on this machine".to_owned()
            }
            Self::Behind { .. } => "leave out what is behind the slash".to_owned(),
            Self::Elsewhere { host, .. } => {
                format!("run it on {host}, or for this machine with --firecracker-host ''")
            }
            Self::Key { .. } => "set ssh.key or CRABBOX_SSH_KEY to your private key".to_owned(),
        }]
    }
}

/// The key that opens a KVM host, and where its host key is remembered: as for a host that exists already.
#[derive(Debug, Clone)]
pub struct Access {
    /// `None` leaves the choice to OpenSSH.
    pub key: Option<PathBuf>,
    /// The user's file.
    pub known_hosts: PathBuf,
    /// Whether only hosts are entered whose keys are there already.
    pub pinned: bool,
}

impl Access {
    /// By the user's settings.
    pub fn of(settings: &Settings) -> Result<Self, HostError> {
        let key = &settings.ssh.key;
        let known_hosts = key.value.with_file_name("known_hosts");
        match key.value.is_file() {
            true => Ok(Self {
                key: Some(key.value.clone()),
                known_hosts,
                pinned: false,
            }),
            false if key.is_default() => Ok(Self {
                key: None,
                known_hosts,
                pinned: false,
            }),
            false => Err(HostError::Key {
                path: key.value.clone(),
            }),
        }
    }
}

impl KvmHost {
    /// Reads `user@host`, `user@host:port` or `user@[address]:port`, and any of them with `/node` behind it.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let form = || HostError::Form {
            text: text.to_owned(),
        };
        let (text, node) = match text.trim().split_once('/') {
            Some((gateway, node)) if is_name(node) => (gateway, Some(node.to_owned())),
            Some(_) => return Err(form()),
            None => (text.trim(), None),
        };
        let (user, rest) = text.split_once('@').ok_or_else(form)?;
        let (address, port) = match rest.strip_prefix('[').map(|inside| inside.split_once(']')) {
            Some(Some((address, ""))) => (address, None),
            Some(Some((address, port))) => (address, Some(port.strip_prefix(':').ok_or_else(form)?)),
            Some(None) => return Err(form()),
            None => match rest.split_once(':') {
                // An address of IPv6 without brackets.
                Some((_, port)) if port.contains(':') => (rest, None),
                Some((address, port)) => (address, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port > 0));
        let host = Self {
            user: user.to_owned(),
            address: address.to_owned(),
            port: port.ok_or_else(form)?,
            node,
        };
        Target::new(&host.user, &host.address, host.port, Path::new(""))?;
        Ok(host)
    }

    /// The host of the settings; `None` where leases are made on this machine.
    pub fn configured(settings: &Settings) -> Result<Option<Self>, HostError> {
        match settings.firecracker.host.value.as_str().trim() {
            "" => Ok(None),
            text => match Self::parse(text)? {
                Self { node: Some(_), .. } => Err(HostError::Behind {
                    text: text.to_owned(),
                }),
                host => Ok(Some(host)),
            },
        }
    }

    /// Makes sure that leases are made on this machine, which is all that `command` knows of.
    pub fn none_for(settings: &Settings, command: &'static str) -> Result<(), HostError> {
        match Self::configured(settings)? {
            None => Ok(()),
            Some(host) => Err(HostError::Elsewhere { host, command }),
        }
    }

    /// The scheduler's name of the host, where it lies behind a gateway.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The host `node` of the fleet of this gateway.
    pub(crate) fn behind(&self, node: &str) -> Self {
        Self {
            node: Some(node.to_owned()),
            ..self.clone()
        }
    }

    /// What is entered over SSH: the host itself, or its gateway.
    pub(crate) fn gateway(&self) -> Self {
        Self {
            node: None,
            ..self.clone()
        }
    }

    /// The host that a claim's scope names.
    pub(crate) fn of_scope(scope: &str) -> Option<Self> {
        Self::parse(scope.strip_prefix(SCHEME)?).ok()
    }

    /// As claims have it.
    pub(crate) fn scope(&self) -> String {
        format!("{SCHEME}{}{}", self.with_port(), self.with_node())
    }

    /// The command that a user types to enter it: OpenSSH takes no port behind a colon.
    pub(crate) fn by_hand(&self) -> String {
        let Self {
            user, address, port, ..
        } = self;
        if *port == PORT {
            format!("ssh {user}@{address}")
        } else {
            format!("ssh -p {port} {user}@{address}")
        }
    }

    fn with_port(&self) -> String {
        let Self {
            user, address, port, ..
        } = self;
        if address.contains(':') {
            format!("{user}@[{address}]:{port}")
        } else {
            format!("{user}@{address}:{port}")
        }
    }

    fn with_node(&self) -> String {
        self.node
            .as_ref()
            .map_or_else(String::new, |node| format!("/{node}"))
    }

    /// How it is entered, without a shared connection. The user set it up, so their `ssh_config` counts.
    pub(crate) fn target(&self, access: &Access) -> Result<Target, HostError> {
        let mut target = Target::new(&self.user, &self.address, self.port, &access.known_hosts)?;
        target.key.clone_from(&access.key);
        target.host_key_pinned = access.pinned;
        target.user_config = true;
        // What runs at its other end is ended by that: one try is enough, and its failure is told.
        target.connection_attempts = 1;
        Ok(target)
    }
}

impl fmt::Display for KvmHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port == PORT {
            write!(out, "{}@{}{}", self.user, self.address, self.with_node())
        } else {
            write!(out, "{}{}", self.with_port(), self.with_node())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_shown_and_found_again_by_its_scope() {
        for (text, shown) in [
            ("crabbox@kvm1", "crabbox@kvm1"),
            (" crabbox@kvm1:22 ", "crabbox@kvm1"),
            ("root@192.0.2.1:2222", "root@192.0.2.1:2222"),
            ("a@[2001:db8::1]:2222", "a@[2001:db8::1]:2222"),
            ("a@2001:db8::1", "a@2001:db8::1"),
            ("crabbox@gw:22/h1", "crabbox@gw/h1"),
            ("crabbox@gw:2222/h-2.a", "crabbox@gw:2222/h-2.a"),
            ("a@[2001:db8::1]:2222/h1", "a@[2001:db8::1]:2222/h1"),
        ] {
            let host = KvmHost::parse(text).unwrap();
            assert_eq!(host.to_string(), shown);
            assert_eq!(KvmHost::of_scope(&host.scope()), Some(host), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_or_would_be_an_option_is_refused() {
        for text in [
            "kvm1",
            "@kvm1",
            "a@",
            "a@h:0",
            "a@h:x",
            "a@h:70000",
            "-oProxyCommand=x@h",
            "a@-oProxyCommand=x",
            "a@[::1",
            "a@[::1]22",
            "a b@h",
            "a@h\nx",
            "a@h/",
            "a@h/-x",
            "a@h/h1/h2",
            "a@h/h 1",
            "a/h1@h",
        ] {
            let error = KvmHost::parse(text).unwrap_err();
            assert!(
                error.kind() == Kind::Usage && !error.hints().is_empty(),
                "{text:?}"
            );
        }
        assert_eq!(KvmHost::of_scope("aws:eu-1"), None);
    }
}
