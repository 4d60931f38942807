//! The leases here that another program made, found by that program's names.
//!
//! Only leases with its labels are visible to it. A lease made by hand or by another provider must not be
//! seen, kept or ended by it. A lease with an unreadable record is still listed, as long as its claim says
//! that it belongs to the other program.

use crabbox_core::external::External;
use crabbox_core::fault;
use crabbox_core::id::{LeaseId, normalise};
use crabbox_core::state::LeaseState;
use crabbox_store::claims;
use crabbox_store::places::Places;

use crate::external::error::AdapterError;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;
use crate::provider::remote::error::RemoteError;
use crate::provider::{Provider, UnreachableHost};

/// A lease that another program made.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its names in the other program.
    pub(super) external: External,
    /// Its id on our side.
    pub(super) id: String,
    /// The lease; `None` if its record cannot be read.
    pub(super) lease: Option<Lease>,
}

/// All leases of the other program, and the ids of all other leases here.
#[derive(Debug)]
pub(super) struct Inventory {
    /// The leases of the other program.
    pub(super) entries: Vec<Entry>,
    others: Vec<String>,
    /// A host that could not be asked and that has no known claims, and why. A lease that was not found may
    /// be there.
    away: Option<(String, String)>,
}

impl Inventory {
    /// Lists the leases.
    pub(super) fn look(provider: &dyn Provider, places: &Places) -> Result<Self, LeaseError> {
        let listing = provider.list()?;
        let (mut entries, mut others) = (Vec::new(), Vec::new());
        for lease in listing.leases {
            match External::of(&lease.labels) {
                // Only its disk remains after the release; for the other program the lease is gone.
                Some(_) if lease.state == LeaseState::Released => {}
                Some(external) => entries.push(Entry {
                    external,
                    id: lease.id.clone(),
                    lease: Some(lease),
                }),
                None => others.push(lease.id),
            }
        }
        for bad in listing.unusable {
            // An unreadable claim tells no more than the unreadable record, so it is skipped.
            let claim = claims::read(places, &bad.name).ok().flatten();
            if let Some(external) = claim.and_then(|claim| External::of(&claim.labels)) {
                entries.push(Entry {
                    external,
                    id: bad.name,
                    lease: None,
                });
            }
        }
        let away = away(&listing.away, places, &mut entries)?;
        Ok(Self {
            entries,
            others,
            away,
        })
    }

    /// Checks that all hosts were asked. A lease that was not looked for everywhere may exist, and must not
    /// be made again.
    pub(super) fn is_whole(&self) -> Result<(), AdapterError> {
        match &self.away {
            None => Ok(()),
            Some((host, why)) => Err(AdapterError::UnreachableHost {
                host: host.clone(),
                why: why.clone(),
            }),
        }
    }

    /// The lease that the other program calls `lease`; `None` if there is none. An error if the id is that of
    /// a lease not made through the adapter.
    pub(super) fn by_id(&self, lease: &LeaseId) -> Result<Option<&Entry>, AdapterError> {
        let found = self.entries.iter().find(|entry| entry.external.lease() == lease);
        if found.is_none() && self.others.iter().any(|id| id == lease.as_str()) {
            return Err(AdapterError::NotTheirs {
                id: lease.to_string(),
            });
        }
        if found.is_none() {
            self.is_whole()?;
        }
        Ok(found)
    }

    /// The lease that `text` names: by its id on either side, or by its external slug or name.
    pub(super) fn by_text(&self, text: &str) -> Result<Option<&Entry>, AdapterError> {
        if let Ok(id) = LeaseId::parse(text) {
            let here = || self.entries.iter().find(|entry| entry.id == text);
            return Ok(
                match self.entries.iter().find(|entry| *entry.external.lease() == id) {
                    Some(entry) => Some(entry),
                    None => match here() {
                        Some(entry) => Some(entry),
                        None => self.by_id(&id)?,
                    },
                },
            );
        }
        let slug = normalise(text);
        let of_slug: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.external.slug() == slug)
            .collect();
        match of_slug.as_slice() {
            [] => {
                let found = self.entries.iter().find(|entry| entry.external.name() == text);
                if found.is_none() {
                    self.is_whole()?;
                }
                Ok(found)
            }
            [one] => Ok(Some(one)),
            several => Err(AdapterError::Ambiguous {
                slug,
                leases: several
                    .iter()
                    .map(|entry| entry.external.lease().to_string())
                    .collect(),
            }),
        }
    }
}

/// Adds the known claims on the `away` hosts to `entries`. Returns a host that has no claims here, with the
/// reason why it could not be asked, because it may have leases anyway.
fn away(
    away: &[UnreachableHost],
    places: &Places,
    entries: &mut Vec<Entry>,
) -> Result<Option<(String, String)>, LeaseError> {
    if away.is_empty() {
        return Ok(None);
    }
    let claims = claims::list(places).map_err(RemoteError::from)?.claims;
    let mut unknown = None;
    for UnreachableHost { host, error } in away {
        let here: Vec<_> = claims
            .iter()
            .filter(|claim| claim.provider_scope == host.scope())
            .collect();
        if here.is_empty() && unknown.is_none() {
            unknown = Some((host.to_string(), fault::chain(error)));
        }
        entries.extend(here.into_iter().filter_map(|claim| {
            Some(Entry {
                external: External::of(&claim.labels)?,
                id: claim.lease_id.clone(),
                lease: None,
            })
        }));
    }
    Ok(unknown)
}
