//! Finds the provider of a lease by the local claims: by the exact lease id first, then by slug, as in the Go
//! program.
//!
//! Only files are read and no provider is asked, so that an unusable provider does not hide the leases of
//! another one.

use crabbox_core::config::layer::Layer;
use crabbox_core::config::{Provider, ProviderError, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::normalise;
use crabbox_store::claims::{self, ClaimError};
use crabbox_store::places::Places;

use crate::provider::capability::Capability;
use crate::provider::registry;

/// Why the provider cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Several providers have leases of that slug.
    #[error("slug {slug:?} is claimed under several providers ({}); name the lease by its id, or give --provider", .providers.join(", "))]
    Several {
        /// The slug.
        slug: String,
        /// The providers, sorted.
        providers: Vec<String>,
    },
    /// The claim's provider, or the configured one, does not exist here.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The claims cannot be read.
    #[error(transparent)]
    Claims(#[from] ClaimError),
}

impl Fault for RouteError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Provider(error) => error.hints(),
            Self::Several { .. } => vec!["`crabbox claims list` shows the claims".to_owned()],
            Self::Claims(_) => Vec::new(),
        }
    }
}

/// The provider of the lease that `text` names. A flag takes precedence, then the claim, then the
/// configuration. If none of them decides, it is the provider that keeps its own records on this host, since
/// it knows leases without a claim.
pub fn provider(places: &Places, settings: &Settings, text: &str) -> Result<Provider, RouteError> {
    match by_lease(places, settings, text)? {
        Some(which) => Ok(which),
        None => Ok(settings.provider()?),
    }
}

/// The same if the lease decides, and `None` if a flag or the configuration does.
pub fn by_lease(places: &Places, settings: &Settings, text: &str) -> Result<Option<Provider>, RouteError> {
    if settings.provider.layer() == Layer::Flag {
        return Ok(None);
    }
    if let Some(name) = claimed_under(places, text)? {
        return Ok(Some(Provider::by_name(&name)?));
    }
    let is_its_own = |which: &Provider| {
        let prefix = registry::capabilities(*which).id_prefix;
        prefix.is_some_and(|prefix| text.starts_with(prefix))
    };
    if let Some(which) = Provider::ALL.into_iter().find(is_its_own) {
        return Ok(Some(which));
    }
    let is_open = settings.provider() == Err(ProviderError::NotSelected);
    Ok(is_open
        .then(|| registry::with(Capability::KeepsRecords))
        .flatten())
}

/// The provider of the claim with this id, otherwise that of the claims with this slug.
fn claimed_under(places: &Places, text: &str) -> Result<Option<String>, RouteError> {
    let listing = claims::list(places)?;
    // A claim without a provider is from before there were several, and says nothing.
    let named = || listing.claims.iter().filter(|claim| !claim.provider.is_empty());
    if let Some(exact) = named().find(|claim| claim.lease_id == text) {
        return Ok(Some(exact.provider.clone()));
    }
    let slug = normalise(text);
    let mut providers: Vec<String> = named()
        .filter(|claim| !slug.is_empty() && claim.slug == slug)
        .map(|claim| claim.provider.clone())
        .collect();
    providers.sort();
    providers.dedup();
    if providers.len() > 1 {
        return Err(RouteError::Several { slug, providers });
    }
    Ok(providers.pop())
}
