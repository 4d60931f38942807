//! The properties that a lease would have with the current settings: how it is entered, where its trees are.
//!
//! `config show` displays them, so nothing here may look at a host or promise that there is a machine.

use crabbox_core::config::Settings;

/// How a lease would be entered, and the directory for work in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The user.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Ports to try after that one.
    pub fallback_ports: Vec<u16>,
    /// The directory under which trees are synced.
    pub work_root: String,
    /// The provider's name for the machine type.
    pub server_type: String,
}

impl Terms {
    /// The terms of the general keys alone, for a provider without keys of its own.
    pub fn general(settings: &Settings) -> Self {
        Self {
            user: settings.ssh.user.value.clone(),
            port: settings.ssh.port.value,
            fallback_ports: settings.ssh.fallback_ports.value.clone(),
            work_root: settings.work_root.value.clone(),
            server_type: settings.server_type.value.clone(),
        }
    }
}
