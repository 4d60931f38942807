//! The providers by name.
//!
//! Only the names and the choice of one; what a provider does must stay in the engine.

use crate::fault::{Fault, Kind};

/// The providers of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// microVMs on this host.
    Firecracker,
    /// A host that exists already.
    Ssh,
}

impl Provider {
    /// All of them, in listing order.
    pub const ALL: [Self; 2] = [Self::Firecracker, Self::Ssh];

    /// The canonical name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Ssh => "ssh",
        }
    }

    /// Alternative names.
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Firecracker => &[],
            Self::Ssh => &["static", "static-ssh"],
        }
    }

    /// The provider with this name or alias, in any case.
    pub fn by_name(name: &str) -> Result<Self, ProviderError> {
        let lower = name.trim().to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|provider| provider.name() == lower || provider.aliases().contains(&lower.as_str()))
            .ok_or_else(|| ProviderError::Unknown {
                name: name.to_owned(),
            })
    }
}

/// Why no provider is available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// None was chosen.
    #[error(
        "no provider selected; use --provider <name>, set CRABBOX_PROVIDER, or configure a provider; run 'crabbox providers recommend' to compare options"
    )]
    NotSelected,
    /// The chosen one does not exist here.
    #[error("unknown provider {name:?}; this program has firecracker and ssh")]
    Unknown {
        /// Its name as configured.
        name: String,
    },
}

impl Fault for ProviderError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotSelected => vec!["for microVMs on this host: --provider firecracker".to_owned()],
            Self::Unknown { .. } => vec!["`crabbox providers` lists what each can do".to_owned()],
        }
    }
}
