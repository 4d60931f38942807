//! What a lease would be like by the settings as they are: where it is entered, where its trees are.
//!
//! It is what `config show` shows, so nothing here may look at a host or promise that there is a machine.

use crabbox_core::config::Settings;

/// How a lease would be entered, and where work would be done in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The user.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Ports that are tried after that one.
    pub fallback_ports: Vec<u16>,
    /// The directory that its trees are below.
    pub work_root: String,
    /// The kind of machine, as the provider calls it.
    pub server_type: String,
}

impl Terms {
    /// By the general keys alone, as where no provider has keys of its own.
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
