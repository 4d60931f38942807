//! The entry to the lease that a command works in: the one that was named, or a new one.
//!
//! The one way into a lease for `warmup`, `prewarm`, `run`, `job` and `watch`: which provider it is, whether that can give what the
//! settings ask for, what is done about a machine that does not come up. It must never enter a lease that it has not claimed.

use std::path::Path;

use crabbox_core::config::fit::{self, Unfit};
use crabbox_core::config::{Provider as Which, ProviderError, Settings};
use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_core::volume::Volume;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::Purpose;

use crate::host::prepare::NewLease;
use crate::host::volumes;
use crate::provider::capability::Capability;
use crate::provider::error::{LeaseError, Remedy};
use crate::provider::lease::Lease;
use crate::provider::route::{self, RouteError};
use crate::provider::{AcquiredLease, Notice, Provider, registry};
use crate::stage::{Stage, Stages};

/// What a command wants of a new lease beyond its configuration.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The lease.
    pub lease: NewLease,
    /// Whether to set this host up when it never was.
    pub set_up: bool,
}

/// What happens on the way into a lease.
#[derive(Debug)]
pub enum EntryEvent<'a> {
    /// The lease that was named belongs to this provider.
    Routed {
        /// As it was named.
        lease: &'a str,
        /// The provider.
        provider: Which,
    },
    /// What the provider tells.
    Notice(&'a Notice<'a>),
    /// A machine did not come up; a fresh one is tried, once.
    Retrying(&'a LeaseError),
    /// The end of the console of a machine that did not come up.
    Console(&'a [String]),
    /// This is the lease.
    Leased {
        /// The lease.
        lease: &'a Lease,
        /// Whether it was made for this command.
        new: bool,
    },
    /// A machine was made for it.
    Provisioned(&'a Lease),
}

/// Hears of the way into a lease, and sees to the host where there is nothing to lease with yet.
pub trait EntryEvents: Stages {
    /// Something happens.
    fn entry(&self, event: &EntryEvent<'_>);

    /// Sets this host up if the user agrees, or has `agreed` before; whether it was done. `error` says what is missing.
    fn set_up(&self, entry: &Entry<'_>, agreed: bool, error: Option<&LeaseError>)
    -> Result<bool, LeaseError>;
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// No provider is chosen, or one that does not exist.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// It cannot be told whose the lease is that was named.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The provider cannot give what the settings ask for.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The provider could not do it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

impl EntryError {
    fn fault(&self) -> &dyn Fault {
        match self {
            Self::Provider(error) => error,
            Self::Route(error) => error,
            Self::Unfit(error) => error,
            Self::Lease(error) => error,
        }
    }
}

impl Fault for EntryError {
    fn kind(&self) -> Kind {
        self.fault().kind()
    }

    fn connectivity(&self) -> Option<Connectivity> {
        self.fault().connectivity()
    }

    fn hints(&self) -> Vec<String> {
        self.fault().hints()
    }
}

/// The way into a lease for one command.
pub struct Entry<'a> {
    /// Where state is.
    pub engine: &'a Engine,
    /// The settings of the command.
    pub settings: &'a Settings,
    /// The root of the repository that the lease is claimed for.
    pub repo: &'a Path,
    /// Readable when the user interrupts.
    pub interrupts: &'a Interrupts,
    /// Hears of it.
    pub events: &'a dyn EntryEvents,
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("repo", &self.repo)
            .finish_non_exhaustive()
    }
}

impl Entry<'_> {
    /// The lease that `name` names, claimed, with its provider.
    pub fn named(&self, name: &str, reclaim: bool) -> Result<(Box<dyn Provider>, Lease), EntryError> {
        let which = route::provider(&self.engine.places, self.settings, name)?;
        fit::check(self.settings, which)?;
        self.events.entry(&EntryEvent::Routed {
            lease: name,
            provider: which,
        });
        let provider = registry::open(which, self.engine, self.settings);
        let mut required = fit::required_of_any_lease(self.settings).peekable();
        if required.peek().is_some() {
            // Before it is resolved for use, which takes it out of the pool that it waits in.
            let lease = provider.resolve(name, Purpose::Look)?.id;
            let lacks = |volume: &&Volume| !volumes::has(&self.engine.places, &lease, volume);
            if let Some(volume) = required.find(lacks) {
                let name = volume.name.clone();
                return Err(Unfit::LeaseWithoutVolume { lease, name }.into());
            }
        }
        let lease = provider.resolve(name, Purpose::Use)?;
        provider.claim(&lease, self.repo, reclaim)?;
        Ok((provider, lease))
    }

    /// A new lease, claimed, with its provider.
    pub fn new_lease(&self, wanted: &Wanted) -> Result<(Box<dyn Provider>, AcquiredLease), EntryError> {
        let events = self.events;
        let stage = Stage::begin(events, "lease");
        let which = match self.settings.provider() {
            // A user who has chosen nothing yet and wants the host set up gets what setup chooses.
            Err(ProviderError::NotSelected) if wanted.set_up => {
                events.set_up(self, true, None)?;
                registry::with(Capability::SetUp).ok_or(ProviderError::NotSelected)?
            }
            chosen => chosen?,
        };
        fit::check(self.settings, which)?;
        let provider = registry::open(which, self.engine, self.settings);
        let acquired = self.acquire(provider.as_ref(), wanted).inspect_err(|error| {
            // Whatever the machine had to say is gone with it otherwise.
            if !error.console().is_empty() {
                events.entry(&EntryEvent::Console(error.console()));
            }
        })?;
        stage.end(true);
        events.entry(&EntryEvent::Leased {
            lease: &acquired.lease,
            new: true,
        });
        if provider.capabilities().has(Capability::MakesMachine) {
            events.entry(&EntryEvent::Provisioned(&acquired.lease));
        }
        Ok((provider, acquired))
    }

    /// Acquires, after a set-up where that is what was missing, and once more where a fresh machine may come up.
    fn acquire(&self, provider: &dyn Provider, wanted: &Wanted) -> Result<AcquiredLease, LeaseError> {
        let events = self.events;
        let acquire = || {
            provider.acquire(&wanted.lease, self.repo, self.interrupts, &mut |notice| {
                events.entry(&EntryEvent::Notice(notice));
            })
        };
        let mut acquired = acquire();
        if let Err(error) = &acquired
            && error.remedy() == Some(Remedy::SetUp)
            && events.set_up(self, wanted.set_up, Some(error))?
        {
            acquired = acquire();
        }
        // Once, as the Go program does when a machine does not come up.
        if let Err(error) = &acquired
            && error.remedy() == Some(Remedy::Again)
            && self.interrupts.caught().is_none()
        {
            events.entry(&EntryEvent::Retrying(error));
            acquired = acquire();
        }
        acquired
    }
}
