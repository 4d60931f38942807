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

/// A KVM host that is reached over SSH.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvmHost {
    user: String,
    address: String,
    port: u16,
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
            }),
            false if key.is_default() => Ok(Self {
                key: None,
                known_hosts,
            }),
            false => Err(HostError::Key {
                path: key.value.clone(),
            }),
        }
    }
}

impl KvmHost {
    /// Reads `user@host`, `user@host:port` or `user@[address]:port`.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let form = || HostError::Form {
            text: text.to_owned(),
        };
        let (user, rest) = text.trim().split_once('@').ok_or_else(form)?;
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
        };
        Target::new(&host.user, &host.address, host.port, Path::new(""))?;
        Ok(host)
    }

    /// The host of the settings; `None` where leases are made on this machine.
    pub fn configured(settings: &Settings) -> Result<Option<Self>, HostError> {
        match settings.firecracker.host.value.as_str().trim() {
            "" => Ok(None),
            text => Self::parse(text).map(Some),
        }
    }

    /// Makes sure that leases are made on this machine, which is all that `command` knows of.
    pub fn none_for(settings: &Settings, command: &'static str) -> Result<(), HostError> {
        match Self::configured(settings)? {
            None => Ok(()),
            Some(host) => Err(HostError::Elsewhere { host, command }),
        }
    }

    /// The host that a claim's scope names.
    pub(crate) fn of_scope(scope: &str) -> Option<Self> {
        Self::parse(scope.strip_prefix(SCHEME)?).ok()
    }

    /// As claims have it.
    pub(crate) fn scope(&self) -> String {
        format!("{SCHEME}{}", self.with_port())
    }

    /// The command that a user types to enter it: OpenSSH takes no port behind a colon.
    pub(crate) fn by_hand(&self) -> String {
        let Self { user, address, port } = self;
        if *port == PORT {
            format!("ssh {user}@{address}")
        } else {
            format!("ssh -p {port} {user}@{address}")
        }
    }

    fn with_port(&self) -> String {
        let Self { user, address, port } = self;
        if address.contains(':') {
            format!("{user}@[{address}]:{port}")
        } else {
            format!("{user}@{address}:{port}")
        }
    }

    /// How it is entered, without a shared connection. The user set it up, so their `ssh_config` counts.
    pub(crate) fn target(&self, access: &Access) -> Result<Target, HostError> {
        let mut target = Target::new(&self.user, &self.address, self.port, &access.known_hosts)?;
        target.key.clone_from(&access.key);
        target.user_config = true;
        // What runs at its other end is ended by that: one try is enough, and its failure is told.
        target.connection_attempts = 1;
        Ok(target)
    }
}

impl fmt::Display for KvmHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port == PORT {
            write!(out, "{}@{}", self.user, self.address)
        } else {
            out.write_str(&self.with_port())
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
