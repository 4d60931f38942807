//! The seam between commands and what provides machines.
//!
//! Commands know leases and this trait; what a lease is made of is a provider's own affair. A provider must never print, and
//! must never touch a claim or a machine that is another provider's.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crabbox_core::config::{Settings, firecracker::InvalidFirecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels::Labels;
use crabbox_host::signals::Interrupts;
use crabbox_ssh::ready::Progress;
use crabbox_store::leases::Unreadable;

use crate::context::Engine;
use crate::event::Event;
use crate::firecracker::{AcquireLeaseError, AcquiredLease, Firecracker};
use crate::lease::Lease;
use crate::prepare::{NewLease, PrepareError};
use crate::release::{Decision, ReleaseError, Released};
use crate::resolve::{Purpose, ResolveError};
use crate::static_host::{StaticError, StaticHost};
use crate::touch::TouchError;

/// What commands need of a provider.
pub trait Provider: fmt::Debug {
    /// Its canonical name.
    fn name(&self) -> &'static str;

    /// Has a machine ready, entered and claimed for the repository at `repo`.
    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError>;

    /// The lease that `text` names, if it can be used for `purpose`.
    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError>;

    /// Whether the machine of `lease` is down; `None` where this host cannot tell.
    fn is_down(&self, lease: &Lease) -> Option<bool>;

    /// Every lease.
    fn list(&self) -> Result<Leases, LeaseError>;

    /// Ties `lease` to the repository at `repo`; another's claim is only taken over when `reclaim` says so.
    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError>;

    /// Refreshes `lease` and answers its labels as they are now.
    fn touch(&self, lease: &Lease, state: Option<&str>, idle: Option<Duration>)
    -> Result<Labels, LeaseError>;

    /// Gives the lease back that `text` names.
    fn release(&self, text: &str) -> Result<Released, LeaseError>;

    /// Gives back what nobody needs any more, unless `dry_run`.
    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError>;
}

/// The provider `which` with these settings.
pub fn open(
    which: crabbox_core::config::Provider,
    engine: &Engine,
    settings: &Settings,
) -> Box<dyn Provider> {
    use crabbox_core::config::Provider as Which;
    match which {
        Which::Firecracker => Box::new(Firecracker::new(engine.clone(), settings.clone())),
        Which::Ssh => Box::new(StaticHost::new(engine.clone(), settings.clone())),
    }
}

/// Leases, and the records that cannot be used, each with its reason.
#[derive(Debug, Default)]
pub struct Leases {
    /// The leases.
    pub leases: Vec<Lease>,
    /// What cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// What happens while a lease is acquired.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A microVM is being made.
    Machine(&'a Event),
    /// This host is going to be used.
    Using {
        /// The lease.
        lease: &'a str,
        /// Its slug.
        slug: &'a str,
        /// The host.
        host: &'a str,
        /// Whether it is kept.
        keep: bool,
    },
    /// It does not answer yet.
    Waiting(&'a Progress),
}

/// Why a provider could not do what was asked: the error of the operation, as it is.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The settings do not describe a microVM.
    #[error(transparent)]
    Plan(#[from] InvalidFirecracker),
    /// This host cannot make it.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// It was not made.
    #[error(transparent)]
    Acquire(#[from] AcquireLeaseError),
    /// It was not found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It was not refreshed or claimed.
    #[error(transparent)]
    Touch(#[from] TouchError),
    /// It was not given back.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The host that exists already was not to be had.
    #[error(transparent)]
    Static(#[from] StaticError),
}

impl LeaseError {
    fn inner(&self) -> &dyn Fault {
        match self {
            Self::Plan(error) => error,
            Self::Prepare(error) => error,
            Self::Acquire(error) => error,
            Self::Resolve(error) => error,
            Self::Touch(error) => error,
            Self::Release(error) => error,
            Self::Static(error) => error,
        }
    }

    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Acquire(error) => error.console(),
            _ => &[],
        }
    }
}

impl Fault for LeaseError {
    fn kind(&self) -> Kind {
        self.inner().kind()
    }

    fn hints(&self) -> Vec<String> {
        self.inner().hints()
    }
}
