//! Checks whether a provider supports the settings, for a new or an existing lease.
//!
//! An unsupported setting must never be ignored silently: a machine without a requested feature is not a
//! success.

use super::Provider;
use super::layer::{Layer, Origin, Sourced};
use super::settings::Settings;
use crate::fault::{Fault, Kind};
use crate::labels;
use crate::volume::Volume;

/// Maximum number of ports in the label of a lease.
const MAX_EXPOSED: usize = 10;

/// An unsupported setting; the messages are the Go program's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// `--class` for a microVM. In a file or variable it is only a label.
    #[error(
        "--class is not supported for provider=firecracker; use --firecracker-cpus, --firecracker-memory-mib, and --firecracker-disk-mib"
    )]
    ClassFlag,
    /// `--type` for a microVM. In a file or variable it is only a label.
    #[error(
        "--type is not supported for provider=firecracker; use explicit Firecracker kernel, rootfs, and sizing flags"
    )]
    TypeFlag,
    /// `target` is not linux.
    #[error("provider={provider} supports target=linux only")]
    Target {
        /// The provider.
        provider: &'static str,
        /// Where it is set.
        origin: Origin,
    },
    /// `windows.mode` for a machine without Windows.
    #[error("windows.mode is only valid with target=windows")]
    WindowsMode {
        /// Where it is set.
        origin: Origin,
    },
    /// `network: tailscale`, or `tailscale.enabled`.
    #[error("provider={provider} does not support tailscale-managed networking")]
    Tailscale {
        /// The provider.
        provider: &'static str,
        /// Where it is set.
        origin: Origin,
    },
    /// An architecture other than that of our guests.
    #[error("provider={provider} does not support architecture={architecture}")]
    Architecture {
        /// The provider.
        provider: &'static str,
        /// The architecture.
        architecture: String,
        /// Where it is set.
        origin: Origin,
    },
    /// More ports than the label can hold.
    #[error("--expose accepts at most {MAX_EXPOSED} distinct ports per lease")]
    Exposed,
    /// `desktop: true`.
    #[error("desktop/VNC is not supported for provider={provider}")]
    Desktop {
        /// The provider.
        provider: &'static str,
        /// Where it is set.
        origin: Origin,
    },
    /// `browser: true`.
    #[error("browser provisioning is not supported for provider={provider}")]
    Browser {
        /// The provider.
        provider: &'static str,
        /// Where it is set.
        origin: Origin,
    },
    /// `code: true`.
    #[error("web code is not supported for provider={provider}")]
    Code {
        /// The provider.
        provider: &'static str,
        /// Where it is set.
        origin: Origin,
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
    /// A volume that a flag requires of an existing lease that was created without it.
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
            // The user knows which flag they typed, but a line of a file may be from someone else.
            _ => self
                .origin()
                .filter(|origin| !matches!(origin, Origin::Flag(_) | Origin::Default))
                .map(|origin| vec![format!("it is set at {origin}")])
                .unwrap_or_default(),
        }
    }
}

impl Unfit {
    /// Where the setting comes from, if a single setting is at fault.
    const fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Target { origin, .. }
            | Self::WindowsMode { origin }
            | Self::Tailscale { origin, .. }
            | Self::Architecture { origin, .. }
            | Self::Desktop { origin, .. }
            | Self::Browser { origin, .. }
            | Self::Code { origin, .. } => Some(origin),
            Self::ClassFlag
            | Self::TypeFlag
            | Self::Exposed
            | Self::CacheVolume { .. }
            | Self::FarCacheVolume { .. }
            | Self::LeaseWithoutVolume { .. } => None,
        }
    }
}

/// The volumes that a flag requires of any lease that a command gets. Volumes of a file only apply to new
/// leases and do not prevent the use of an existing one.
pub fn required_of_any_lease(settings: &Settings) -> impl Iterator<Item = &Volume> {
    let volumes = &settings.cache.volumes;
    let by_flag = volumes.layer() == Layer::Flag;
    volumes
        .value
        .iter()
        .filter(move |volume| by_flag && volume.required)
}

/// Checks the settings for a new lease, in the Go program's order.
pub fn check(settings: &Settings, provider: Provider) -> Result<(), Unfit> {
    check_machine(settings, provider, Layer::Default)?;
    let name = provider.name();
    if let Some(volume) = settings.cache.volumes.value.iter().find(|volume| volume.required) {
        let volume = volume.name.clone();
        match provider {
            Provider::Ssh => {
                return Err(Unfit::CacheVolume {
                    provider: name,
                    name: volume,
                });
            }
            Provider::Firecracker if settings.is_afar() => {
                return Err(Unfit::FarCacheVolume { name: volume });
            }
            Provider::Firecracker => {}
        }
    }
    if labels::exposed(&settings.expose.value).split('-').count() > MAX_EXPOSED {
        return Err(Unfit::Exposed);
    }
    Ok(())
}

/// Checks what flags require of an existing lease. Files and variables only apply to new leases: a line that
/// someone else wrote must not keep a user from using a machine, least of all from releasing it. A flag was
/// meant for this lease, and must not be ignored silently.
pub fn check_existing(settings: &Settings, provider: Provider) -> Result<(), Unfit> {
    check_machine(settings, provider, Layer::Flag)
}

/// The flags, without dashes, that were given for an existing lease of `provider` but say what a new one
/// would be like. They are no error, because scripts pass the same flags with and without a lease, but the
/// user must learn that they change nothing. Not among them: what [`check_existing`] refuses, and what an
/// existing lease follows (`--profile`, `--idle-timeout`).
pub fn unfollowed(settings: &Settings, provider: Provider) -> Vec<&'static str> {
    // The port of a static host is how it is reached now; a microVM's server keeps its own.
    let port = (provider == Provider::Firecracker).then_some(&settings.ssh.port.origin);
    let origins = [
        &settings.class.origin,
        &settings.server_type.origin,
        &settings.os.origin,
    ];
    let others = [&settings.ttl.origin, &settings.expose.origin];
    let of_flags = origins
        .into_iter()
        .chain(port)
        .chain(others)
        .filter_map(|origin| match origin {
            Origin::Flag(flag) => Some(*flag),
            _ => None,
        });
    of_flags.collect()
}

/// Checks the kind of machine that the settings of `least` and the layers above it ask for.
fn check_machine(settings: &Settings, provider: Provider, least: Layer) -> Result<(), Unfit> {
    /// The origin of a setting that applies and does not fit.
    fn wrong<T>(setting: &Sourced<T>, least: Layer, fits: impl FnOnce(&T) -> bool) -> Option<Origin> {
        (setting.layer() >= least && !fits(&setting.value)).then(|| setting.origin.clone())
    }
    if provider == Provider::Firecracker {
        if settings.class.layer() == Layer::Flag {
            return Err(Unfit::ClassFlag);
        }
        if settings.server_type.layer() == Layer::Flag {
            return Err(Unfit::TypeFlag);
        }
    }
    let provider = provider.name();
    if let Some(origin) = wrong(&settings.target, least, |target| target == "linux") {
        return Err(Unfit::Target { provider, origin });
    }
    if let Some(origin) = wrong(&settings.windows_mode, least, |mode| mode == "normal") {
        return Err(Unfit::WindowsMode { origin });
    }
    let joins = || wrong(&settings.tailscale, least, |wanted| !wanted);
    if let Some(origin) = wrong(&settings.network, least, |network| network != "tailscale").or_else(joins) {
        return Err(Unfit::Tailscale { provider, origin });
    }
    if let Some(origin) = wrong(&settings.architecture, least, |name| name == "amd64") {
        let architecture = settings.architecture.value.clone();
        return Err(Unfit::Architecture {
            provider,
            architecture,
            origin,
        });
    }
    if let Some(origin) = wrong(&settings.desktop, least, |wanted| !wanted) {
        return Err(Unfit::Desktop { provider, origin });
    }
    if let Some(origin) = wrong(&settings.browser, least, |wanted| !wanted) {
        return Err(Unfit::Browser { provider, origin });
    }
    if let Some(origin) = wrong(&settings.code, least, |wanted| !wanted) {
        return Err(Unfit::Code { provider, origin });
    }
    Ok(())
}
