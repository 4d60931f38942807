//! Leases for another program: the Go program's external protocol, over the same use cases as this program's
//! own commands.
//!
//! Serves one request and hands its answer to `deliver`. Only leases made through the adapter may be touched.
//! The exception is `cleanup`, which does the same for the whole host as the command of that name and removes
//! only leases that have ended and unowned leftovers. A lease whose answer was not delivered must not stay,
//! because nobody would know about it.

mod answer;
pub mod config;
mod error;
pub mod input;
mod inventory;
pub mod request;

use crabbox_core::external::External;
use crabbox_core::state::LeaseState;
use crabbox_machine::lease::find::Purpose;
use crabbox_machine::lifecycle::adopt;
use crabbox_machine::lifecycle::release::Decision;

pub use answer::Answer;
pub use error::AdapterError;

use crate::entry::{Entry, EntryError, LeaseRequest};
use crate::external::answer::{Extent, LeaseAnswer};
use crate::external::inventory::Inventory;
use crate::external::request::{Operation, Release, Request, Resolve};
use crate::host::doctor::{self, Options};
use crate::host::prepare::NewLease;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;
use crate::provider::{Provider, registry};

/// Receives progress and the answer.
pub trait Conversation {
    /// Delivers the answer. Returns whether it arrived.
    fn deliver(&self, answer: &Answer) -> bool;

    /// A decision of `cleanup`; it is not carried out on a dry run.
    fn decided(&self, dry_run: bool, decision: &Decision);
}

/// Serves `request` with the provider of `entry`, which must have the repository of the request. The caller
/// answers when this fails.
pub fn serve(
    entry: &Entry<'_>,
    request: &Request,
    options: &Options,
    conversation: &dyn Conversation,
) -> Result<(), AdapterError> {
    let which = entry.settings.provider().map_err(EntryError::from)?;
    let provider = registry::open(which, entry.engine, entry.settings);
    let adapter = Adapter {
        entry,
        provider: provider.as_ref(),
        conversation,
    };
    // `doctor` is read-only and `cleanup` decides the fate of leases itself, so neither restarts lost
    // supervisors first.
    if !matches!(request.operation, Operation::Doctor | Operation::Cleanup { .. }) {
        adopt::orphans(entry.engine).ok();
    }
    let answer = match &request.operation {
        Operation::Doctor => adapter.doctor(options)?,
        Operation::Acquire { desired, keep } => return adapter.acquire(desired, *keep),
        Operation::Resolve(resolve) => adapter.resolve(resolve)?,
        Operation::List => adapter.list()?,
        Operation::Release(release) => adapter.release(release)?,
        Operation::Touch { lease, state, idle } => {
            let inventory = adapter.look()?;
            let found = inventory.by_id(lease)?.ok_or_else(|| not_found(lease.as_str()))?;
            let lease = usable(found)?;
            adapter.provider.touch(lease, state.as_ref(), *idle)?;
            Answer::done(None)
        }
        Operation::Cleanup { dry_run } => adapter.cleanup(*dry_run)?,
    };
    // Whether it arrives does not matter here: no lease was made that could be lost.
    conversation.deliver(&answer);
    Ok(())
}

struct Adapter<'a> {
    entry: &'a Entry<'a>,
    provider: &'a dyn Provider,
    conversation: &'a dyn Conversation,
}

impl Adapter<'_> {
    fn look(&self) -> Result<Inventory, LeaseError> {
        Inventory::look(self.provider, &self.entry.engine.places)
    }

    fn doctor(&self, options: &Options) -> Result<Answer, AdapterError> {
        let checks = self.provider.checks(options);
        if doctor::is_well(&checks) {
            let words = checks
                .iter()
                .map(|check| format!("{}={}", check.check, check.status.name()));
            return Ok(Answer::done(Some(words.collect::<Vec<_>>().join(" "))));
        }
        let problems = checks
            .iter()
            .filter(|check| !doctor::is_well(std::slice::from_ref(check)))
            .map(|check| format!("{}: {}", check.check, check.message));
        Err(AdapterError::Problems {
            problems: problems.collect(),
        })
    }

    /// Makes a lease. Idempotent: asking again for the same lease returns the existing one.
    fn acquire(&self, desired: &External, keep: bool) -> Result<(), AdapterError> {
        let id = || desired.lease().to_string();
        let inventory = self.look()?;
        if let Some(found) = inventory.by_id(desired.lease())? {
            let known = usable(found)?;
            if known.state == LeaseState::Provisioning {
                return Err(AdapterError::BeingMade { id: id() });
            }
            same(&found.external, desired)?;
            let lease = self.provider.resolve(&known.id, Purpose::Use)?;
            self.conversation
                .deliver(&Answer::lease(LeaseAnswer::new(desired, &lease, Extent::Full)));
            return Ok(());
        }
        let (_, acquired) = self.entry.new_lease(&LeaseRequest {
            lease: NewLease {
                slug: Some(desired.slug_here()),
                keep,
                reclaim: false,
                external: Some(desired.clone()),
            },
            set_up: false,
        })?;
        let lease = &acquired.lease;
        if self.entry.interrupts.caught().is_some() {
            return self.give_back(lease, desired, "the request was cancelled");
        }
        let answer = Answer::lease(LeaseAnswer::new(desired, lease, Extent::New));
        if self.conversation.deliver(&answer) {
            Ok(())
        } else {
            self.give_back(lease, desired, "the answer was not read")
        }
    }

    fn give_back(&self, lease: &Lease, desired: &External, why: &'static str) -> Result<(), AdapterError> {
        self.provider.give_back(lease)?;
        Err(AdapterError::GivenBack {
            id: desired.lease().to_string(),
            why,
        })
    }

    fn resolve(&self, wanted: &Resolve) -> Result<Answer, AdapterError> {
        let inventory = self.look()?;
        let found = match &wanted.known {
            Some(known) => inventory.by_id(known.lease())?,
            None => inventory.by_text(&wanted.text)?,
        };
        let Some(found) = found else {
            return match &wanted.known {
                // Report a missing lease as released, so that the other program forgets it.
                Some(known) if wanted.release_only => Ok(Answer::lease(LeaseAnswer::named(
                    known,
                    "",
                    &LeaseState::Released,
                ))),
                Some(known) => Err(not_found(known.lease().as_str())),
                None => Err(not_found(&wanted.text)),
            };
        };
        if let Some(known) = &wanted.known {
            same(&found.external, known)?;
        }
        if wanted.release_only {
            return Ok(Answer::lease(tell(found, Extent::Identity)));
        }
        let lease = self.provider.resolve(&usable(found)?.id, Purpose::Use)?;
        if wanted.reclaim {
            self.provider.claim(&lease, self.entry.repo, true)?;
        }
        Ok(Answer::lease(LeaseAnswer::new(
            &found.external,
            &lease,
            Extent::Full,
        )))
    }

    fn list(&self) -> Result<Answer, AdapterError> {
        let inventory = self.look()?;
        inventory.is_whole()?;
        let leases = inventory.entries.iter().map(|found| tell(found, Extent::Full));
        Ok(Answer::leases(leases.collect()))
    }

    fn release(&self, wanted: &Release) -> Result<Answer, AdapterError> {
        let inventory = self.look()?;
        let Some(found) = inventory.by_id(&wanted.lease)? else {
            return Ok(Answer::done(Some(format!(
                "lease {} is gone already",
                wanted.lease
            ))));
        };
        let external = &found.external;
        let (id, fences) = (external.lease().as_str(), &wanted.fences);
        for (field, expected, found) in [
            ("leaseId", &fences.lease, id),
            ("attemptLeaseId", &fences.attempt, id),
            ("slug", &fences.slug, external.slug()),
        ] {
            expect(id, field, expected, &[found])?;
        }
        // The other program sends the name as `cloudId` if it never learnt our id.
        expect(id, "cloudId", &fences.cloud_id, &[&found.id, external.name()])?;
        self.provider.release(&found.id)?;
        Ok(Answer::done(None))
    }

    fn cleanup(&self, dry_run: bool) -> Result<Answer, AdapterError> {
        let decisions = self.provider.cleanup(dry_run, &mut |decision| {
            self.conversation.decided(dry_run, decision);
        })?;
        if !dry_run {
            // The remaining leases are alive; restart lost supervisors.
            adopt::orphans(self.entry.engine).ok();
        }
        let count =
            |which: &dyn Fn(&Decision) -> bool| decisions.iter().filter(|decision| which(decision)).count();
        let failed = count(&|decision| decision.error.is_some());
        let message = format!(
            "dry_run={dry_run} removed={} kept={} failed={failed}",
            count(&|decision| decision.remove && decision.error.is_none()),
            count(&|decision| !decision.remove)
        );
        if failed > 0 {
            return Err(AdapterError::Cleanup { message });
        }
        Ok(Answer::done(Some(message)))
    }
}

fn not_found(text: &str) -> AdapterError {
    AdapterError::NotFound {
        text: text.to_owned(),
    }
}

/// How a list describes a lease, readable or not.
fn tell(found: &inventory::Entry, extent: Extent) -> LeaseAnswer {
    match &found.lease {
        Some(lease) => LeaseAnswer::new(&found.external, lease, extent),
        None => LeaseAnswer::named(&found.external, &found.id, &LeaseState::from("unreadable")),
    }
}

/// The lease, unless it has ended.
fn usable(found: &inventory::Entry) -> Result<&Lease, AdapterError> {
    let lease = found
        .lease
        .as_ref()
        .ok_or_else(|| AdapterError::Unreadable { id: found.id.clone() })?;
    if lease.state.is_terminal() {
        return Err(AdapterError::Ended {
            id: found.external.lease().to_string(),
            state: lease.state.to_string(),
        });
    }
    Ok(lease)
}

/// Refuses a lease whose slug or name differs from what the other program knows.
fn same(found: &External, known: &External) -> Result<(), AdapterError> {
    let id = found.lease().as_str();
    expect(id, "slug", known.slug(), &[found.slug()])?;
    expect(id, "name", known.name(), &[found.name()])
}

fn expect(id: &str, field: &'static str, expected: &str, found: &[&str]) -> Result<(), AdapterError> {
    if expected.is_empty() || found.contains(&expected) {
        return Ok(());
    }
    Err(AdapterError::Other {
        id: id.to_owned(),
        field,
        expected: expected.to_owned(),
        found: found.first().copied().unwrap_or_default().to_owned(),
    })
}
