//! Whether a provider supports the settings, for a new or an existing lease.
//!
//! An unsupported setting must never be ignored silently: a machine without a requested feature is not a success.

use super::Provider;
use super::layer::Layer;
use super::settings::Settings;
use crate::fault::{Fault, Kind};
use crate::labels;
use crate::volume::Volume;

/// Maximum number of ports in the label of a lease.
const MAX_EXPOSED: usize = 10;

/// An unsupported setting; the messages are the Go program's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// `target` is not linux.
    #[error("provider={provider} supports target=linux only")]
    Target {
        /// The provider.
        provider: &'static str,
    },
    /// `windows.mode` for a machine without Windows.
    #[error("windows.mode is only valid with target=windows")]
    WindowsMode,
    /// `network: tailscale`.
    #[error("provider={provider} does not support tailscale-managed networking")]
    Tailscale {
        /// The provider.
        provider: &'static str,
    },
    /// An architecture other than that of our guests.
    #[error("provider={provider} does not support architecture={architecture}")]
    Architecture {
        /// The provider.
        provider: &'static str,
        /// The architecture.
        architecture: String,
    },
    /// More ports than the label can hold.
    #[error("--expose accepts at most {MAX_EXPOSED} distinct ports per lease")]
    Exposed,
    /// `desktop: true`.
    #[error("desktop/VNC is not supported for provider={provider}")]
    Desktop {
        /// The provider.
        provider: &'static str,
    },
    /// `browser: true`.
    #[error("browser provisioning is not supported for provider={provider}")]
    Browser {
        /// The provider.
        provider: &'static str,
    },
    /// `code: true`.
    #[error("web code is not supported for provider={provider}")]
    Code {
        /// The provider.
        provider: &'static str,
    },
    /// A required volume of `cache.volumes`, for a provider that has none.
    #[error("provider={provider} does not support required cache volume {name:?}")]
    CacheVolume {
        /// The provider.
        provider: &'static str,
        /// The volume's name.
        name: String,
    },
    /// A required volume of `cache.volumes`, for a lease on another host.
    #[error("a lease on another host (firecracker.host) does not support required cache volume {name:?}")]
    FarCacheVolume {
        /// The volume's name.
        name: String,
    },
    /// A volume that a flag requires of a lease that is there, and was made without it.
    #[error("lease {lease} has no cache volume {name:?}")]
    LeaseWithoutVolume {
        /// The lease.
        lease: String,
        /// The volume's name.
        name: String,
    },
}

impl Fault for Unfit {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::LeaseWithoutVolume { .. } => {
                vec![
                    "volumes are attached when a lease is made: leave out --id, or --cache-volume".to_owned(),
                ]
            }
            _ => Vec::new(),
        }
    }
}

/// The volumes that a flag requires of whatever lease a command gets. Those of a file are about new leases: they keep nobody from one that
/// is there.
pub fn required_of_any_lease(settings: &Settings) -> impl Iterator<Item = &Volume> {
    let volumes = &settings.cache.volumes;
    let by_flag = volumes.layer() == Layer::Flag;
    volumes
        .value
        .iter()
        .filter(move |volume| by_flag && volume.required)
}

/// Checks the settings, in the Go program's order.
pub fn check(settings: &Settings, provider: Provider) -> Result<(), Unfit> {
    let which = provider;
    let provider = which.name();
    if settings.target.value != "linux" {
        return Err(Unfit::Target { provider });
    }
    if settings.windows_mode.value != "normal" {
        return Err(Unfit::WindowsMode);
    }
    if settings.network.value == "tailscale" {
        return Err(Unfit::Tailscale { provider });
    }
    if settings.architecture.value != "amd64" {
        let architecture = settings.architecture.value.clone();
        return Err(Unfit::Architecture {
            provider,
            architecture,
        });
    }
    if settings.desktop.value {
        return Err(Unfit::Desktop { provider });
    }
    if settings.browser.value {
        return Err(Unfit::Browser { provider });
    }
    if settings.code.value {
        return Err(Unfit::Code { provider });
    }
    if let Some(volume) = settings.cache.volumes.value.iter().find(|volume| volume.required) {
        let name = volume.name.clone();
        match which {
            Provider::Ssh => return Err(Unfit::CacheVolume { provider, name }),
            Provider::Firecracker if settings.is_afar() => return Err(Unfit::FarCacheVolume { name }),
            Provider::Firecracker => {}
        }
    }
    if labels::exposed(&settings.expose.value).split('-').count() > MAX_EXPOSED {
        return Err(Unfit::Exposed);
    }
    Ok(())
}
