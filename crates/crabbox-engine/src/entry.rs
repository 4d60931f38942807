//! The entry to the lease that a command works in: a named lease, or a new one.
//!
//! The only way into a lease for `warmup`, `prewarm`, `run`, `job` and `watch`. It decides which provider to
//! use, checks that the provider can satisfy the settings, and handles a machine that does not come up. It
//! must never enter a lease that it has not claimed.

use std::path::Path;

use crabbox_core::config::fit::{self, Unfit};
use crabbox_core::config::layer::Layer;
use crabbox_core::config::{Provider as Which, ProviderError, Settings};
use crabbox_core::fault::{Connectivity, Fault, Kind};
use crabbox_core::volume::Volume;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::Purpose;

use crate::host::prepare::NewLease;
use crate::host::volumes;
use crate::provider::capability::Capability;
use crate::provider::error::{LeaseError, Recovery};
use crate::provider::lease::Lease;
use crate::provider::route::{self, RouteError};
use crate::provider::{AcquiredLease, Notice, Provider, registry};
use crate::stage::{Stage, Stages};

/// What a command wants of a new lease beyond its configuration.
#[derive(Debug, Clone)]
pub struct LeaseRequest {
    /// The lease.
    pub lease: NewLease,
    /// Whether to set up this host first if it has never been set up.
    pub set_up: bool,
}

/// Progress on the way into a lease.
#[derive(Debug)]
pub enum EntryEvent<'a> {
    /// The named lease belongs to this provider.
    Routed {
        /// As it was named.
        lease: &'a str,
        /// The provider.
        provider: Which,
    },
    /// Flags, without dashes, that only a new lease follows; never empty.
    Unfollowed {
        /// The named lease.
        lease: &'a Lease,
        /// The flags.
        flags: &'a [&'static str],
    },
    /// A notice from the provider.
    Notice(&'a Notice<'a>),
    /// A machine did not come up; one fresh machine is tried.
    Retrying(&'a LeaseError),
    /// The end of the console of a machine that did not come up.
    Console(&'a [String]),
    /// The lease has been acquired.
    Leased {
        /// The lease.
        lease: &'a Lease,
        /// Whether it was made for this command.
        new: bool,
    },
    /// A machine was created for the lease.
    Provisioned(&'a Lease),
}

/// Receives the events of an entry, and sets up the host when it cannot lease machines yet.
pub trait EntryEvents: Stages {
    /// Something happened.
    fn entry(&self, event: &EntryEvent<'_>);

    /// Sets up this host if the user agrees, or has already `agreed`. Returns whether it was set up. `error`
    /// says what is missing.
    fn set_up(&self, entry: &Entry<'_>, agreed: bool, error: Option<&LeaseError>)
    -> Result<bool, LeaseError>;
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// No provider is chosen, or one that does not exist.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// It is not clear which provider the named lease belongs to.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The provider cannot satisfy the settings.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The provider failed.
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

/// The entry to a lease for one command.
pub struct Entry<'a> {
    /// The engine, which knows where state is kept.
    pub engine: &'a Engine,
    /// The settings of the command.
    pub settings: &'a Settings,
    /// The root of the repository that the lease is claimed for.
    pub repo: &'a Path,
    /// Becomes readable when the user interrupts.
    pub interrupts: &'a Interrupts,
    /// Receives the events.
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
    /// Claims the lease called `name` and returns it with its provider. It follows the idle timeout of a
    /// flag from now on.
    pub fn named(&self, name: &str, reclaim: bool) -> Result<(Box<dyn Provider>, Lease), EntryError> {
        let (provider, mut lease) = self.again(name, reclaim)?;
        let flags = fit::unfollowed(self.settings, Which::by_name(provider.name())?);
        if !flags.is_empty() {
            self.events.entry(&EntryEvent::Unfollowed {
                lease: &lease,
                flags: &flags,
            });
        }
        // A file's or variable's value is for new leases; the lease has its own.
        let idle = &self.settings.idle_timeout;
        if idle.layer() == Layer::Flag {
            lease.labels = provider.touch(&lease, None, Some(idle.value.to_std()))?;
        }
        Ok((provider, lease))
    }

    /// The same for a lease that this command has already entered: its flags have had their effect, and may
    /// have been overruled since.
    pub(crate) fn again(&self, name: &str, reclaim: bool) -> Result<(Box<dyn Provider>, Lease), EntryError> {
        let which = route::provider(&self.engine.places, self.settings, name)?;
        fit::check_existing(self.settings, which)?;
        self.events.entry(&EntryEvent::Routed {
            lease: name,
            provider: which,
        });
        let provider = registry::open(which, self.engine, self.settings);
        let mut required = fit::required_of_any_lease(self.settings).peekable();
        if required.peek().is_some() {
            // Check before resolving for use, because that takes a pool member out of the pool.
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

    /// Acquires and claims a new lease, and returns it with its provider.
    pub fn new_lease(&self, wanted: &LeaseRequest) -> Result<(Box<dyn Provider>, AcquiredLease), EntryError> {
        let events = self.events;
        let stage = Stage::begin(events, "lease");
        let which = match self.settings.provider() {
            // A user who has not chosen a provider and wants the host set up gets the provider that setup
            // would choose.
            Err(ProviderError::NotSelected) if wanted.set_up => {
                events.set_up(self, true, None)?;
                registry::with(Capability::SetUp).ok_or(ProviderError::NotSelected)?
            }
            chosen => chosen?,
        };
        fit::check(self.settings, which)?;
        let provider = registry::open(which, self.engine, self.settings);
        let acquired = self.acquire(provider.as_ref(), wanted).inspect_err(|error| {
            // The console is lost with the machine, so report it now.
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

    /// Acquires a lease. Retries after setting up the host if that was missing, and once with a fresh machine
    /// if that may help.
    fn acquire(&self, provider: &dyn Provider, wanted: &LeaseRequest) -> Result<AcquiredLease, LeaseError> {
        let events = self.events;
        let acquire = || {
            provider.acquire(&wanted.lease, self.repo, self.interrupts, &mut |notice| {
                events.entry(&EntryEvent::Notice(notice));
            })
        };
        let mut acquired = acquire();
        if let Err(error) = &acquired
            && error.remedy() == Some(Recovery::SetUp)
            && events.set_up(self, wanted.set_up, Some(error))?
        {
            acquired = acquire();
        }
        // Retry once, as the Go program does when a machine does not come up.
        if let Err(error) = &acquired
            && error.remedy() == Some(Recovery::Again)
            && self.interrupts.caught().is_none()
        {
            events.entry(&EntryEvent::Retrying(error));
            acquired = acquire();
        }
        acquired
    }
}
