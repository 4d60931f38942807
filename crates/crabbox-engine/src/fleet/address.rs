//! The address of a KVM host, and how it is entered.
//!
//! The user names the host. It must never be chosen by a repository alone, which the types of the
//! configuration ensure.

use std::fmt;
use std::path::{Path, PathBuf};

use crabbox_core::config::Settings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::target::{Target, TargetError};

/// The prefix of a claim's scope that names a host.
const SCHEME: &str = "ssh://";

/// The port of SSH.
const PORT: u16 = 22;

/// The longest name that a scheduler uses, in bytes (`HOST_NAME_MAX` of Linux).
const NAME: usize = 64;

/// Whether `text` is a safe scheduler name: it can only be read as one word, as one host or as one value.
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A KVM host reached over SSH, directly or through its fleet's gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvmHost {
    user: String,
    address: String,
    port: u16,
    /// The scheduler's name of a host behind a gateway; the other fields then name the gateway.
    node: Option<String>,
}

/// Why a text does not name a KVM host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It has the wrong form.
    #[error("firecracker.host must be user@host or user@host:port, found {text:?}")]
    Form {
        /// The text.
        text: String,
    },
    /// It names one host behind a gateway, but the scheduler chooses that.
    #[error("firecracker.host names the gateway of a fleet and not one host behind it, found {text:?}")]
    GatewayFacts {
        /// The text.
        text: String,
    },
    /// The user or the address could be misread as something else.
    #[error("firecracker.host cannot be used")]
    Target(#[from] TargetError),
    /// The command concerns this machine, but leases are made on another one.
    #[error("leases are made on {host}, and `{command}` is about the machine that it runs on")]
    Elsewhere {
        /// The host.
        host: KvmHost,
        /// The command.
        command: &'static str,
    },
    /// The configured key does not exist.
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
            Self::GatewayFacts { .. } => "omit the slash and what follows it".to_owned(),
            Self::Elsewhere { host, .. } => {
                format!("run it on {host}, or for this machine with --firecracker-host ''")
            }
            Self::Key { .. } => "set ssh.key or CRABBOX_SSH_KEY to your private key".to_owned(),
        }]
    }
}

/// The key for a KVM host, and the file for its host key, chosen as for a static host.
#[derive(Debug, Clone)]
pub struct Access {
    /// `None` leaves the choice to OpenSSH.
    pub key: Option<PathBuf>,
    /// The user's `known_hosts` file.
    pub known_hosts: PathBuf,
    /// Whether to enter only hosts whose keys are already known.
    pub pinned: bool,
}

impl Access {
    /// The access that the user's settings describe.
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
    /// Parses `user@host`, `user@host:port` or `user@[address]:port`, each optionally followed by `/node`.
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
                // An IPv6 address without brackets.
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

    /// The configured host; `None` if leases are made on this machine.
    pub fn configured(settings: &Settings) -> Result<Option<Self>, HostError> {
        match settings.firecracker.host.value.as_str().trim() {
            "" => Ok(None),
            text => match Self::parse(text)? {
                Self { node: Some(_), .. } => Err(HostError::GatewayFacts {
                    text: text.to_owned(),
                }),
                host => Ok(Some(host)),
            },
        }
    }

    /// Fails unless leases are made on this machine, the only one that `command` knows about.
    pub fn none_for(settings: &Settings, command: &'static str) -> Result<(), HostError> {
        match Self::configured(settings)? {
            None => Ok(()),
            Some(host) => Err(HostError::Elsewhere { host, command }),
        }
    }

    /// The scheduler's name of the host, if it is behind a gateway.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The host `node` behind this gateway.
    pub(crate) fn behind(&self, node: &str) -> Self {
        Self {
            node: Some(node.to_owned()),
            ..self.clone()
        }
    }

    /// What SSH connects to: the host itself, or its gateway.
    pub fn gateway(&self) -> Self {
        Self {
            node: None,
            ..self.clone()
        }
    }

    /// The host that a claim's scope names, if any.
    pub(crate) fn of_scope(scope: &str) -> Option<Self> {
        Self::parse(scope.strip_prefix(SCHEME)?).ok()
    }

    /// The host as the scope of a claim.
    pub(crate) fn scope(&self) -> String {
        format!("{SCHEME}{}{}", self.with_port(), self.with_node())
    }

    /// The command to enter it by hand, for messages: OpenSSH takes no `:port` suffix.
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

    /// How to enter it, without a shared connection. The user set the host up, so their `ssh_config` applies.
    pub(crate) fn target(&self, access: &Access) -> Result<Target, HostError> {
        let mut target = Target::new(&self.user, &self.address, self.port, &access.known_hosts)?;
        target.offer(access.key.as_deref())?;
        target.host_key_pinned = access.pinned;
        target.user_config = true;
        // Try only once and report the failure: losing this connection ends whatever runs at its other end.
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
