//! The leases here that another program had made, found by that program's words.
//!
//! Only leases with its labels are seen: one that was made here by hand, or is another provider's, is not the other program's to see,
//! to keep or to end. A lease whose record cannot be read is there all the same, as long as its claim says whose it is.

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
use crate::provider::{Away, Provider};

/// A lease that another program had made.
#[derive(Debug)]
pub(super) struct Entry {
    /// What it is called there.
    pub(super) external: External,
    /// Its id here.
    pub(super) id: String,
    /// The lease; `None` where its record cannot be read.
    pub(super) lease: Option<Lease>,
}

/// All of them, and the ids of leases here that no other program had made.
#[derive(Debug)]
pub(super) struct Inventory {
    /// All of them.
    pub(super) entries: Vec<Entry>,
    others: Vec<String>,
    /// A host that could not be asked and of which nothing is known here, and why: what is not found may be there.
    away: Option<(String, String)>,
}

impl Inventory {
    /// Looks.
    pub(super) fn look(provider: &dyn Provider, places: &Places) -> Result<Self, LeaseError> {
        let all = provider.list()?;
        let (mut entries, mut others) = (Vec::new(), Vec::new());
        for lease in all.leases {
            match External::of(&lease.labels) {
                // Given back, and only its disk is still there: the other program has nothing of it any more.
                Some(_) if lease.state == LeaseState::Released => {}
                Some(external) => entries.push(Entry {
                    external,
                    id: lease.id.clone(),
                    lease: Some(lease),
                }),
                None => others.push(lease.id),
            }
        }
        for bad in all.unusable {
            // What cannot be read either tells nothing more than the record.
            let claim = claims::read(places, &bad.name).ok().flatten();
            if let Some(external) = claim.and_then(|claim| External::of(&claim.labels)) {
                entries.push(Entry {
                    external,
                    id: bad.name,
                    lease: None,
                });
            }
        }
        let away = away(&all.away, places, &mut entries)?;
        Ok(Self {
            entries,
            others,
            away,
        })
    }

    /// That all hosts were asked. What was not looked for is not gone, and must not be made once more.
    pub(super) fn is_whole(&self) -> Result<(), AdapterError> {
        match &self.away {
            None => Ok(()),
            Some((host, why)) => Err(AdapterError::Away {
                host: host.clone(),
                why: why.clone(),
            }),
        }
    }

    /// The lease that the other program calls `lease`; `None` where there is none, an error where that is a lease of somebody else.
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

    /// The lease that `text` names: an id there or here, a slug or a name there.
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

/// What is known here of leases on hosts that are `away`: their claims, which are added to `entries`. A host without any may have leases all
/// the same, and is told with what became of asking it.
fn away(
    away: &[Away],
    places: &Places,
    entries: &mut Vec<Entry>,
) -> Result<Option<(String, String)>, LeaseError> {
    if away.is_empty() {
        return Ok(None);
    }
    let claims = claims::list(places).map_err(RemoteError::from)?.claims;
    let mut unknown = None;
    for Away { host, error } in away {
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
