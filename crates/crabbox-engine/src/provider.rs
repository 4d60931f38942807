//! The seam between commands and what provides machines.
//!
//! Commands know leases and this trait; what a lease is made of is a provider's own affair. A provider must never print, and
//! must never touch a claim or a machine that is another provider's.

pub mod capability;
pub mod claim;
pub mod claims;
pub mod error;
pub mod firecracker;
pub mod heartbeat;
pub mod lease;
pub mod registry;
pub mod remote;
pub mod route;
pub mod static_host;
pub mod terms;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crabbox_core::config::FlagValue;
use crabbox_core::labels::Labels;
use crabbox_core::state::LeaseState;
use crabbox_host::signals::Interrupts;
use crabbox_machine::lease::find::{Purpose, ResolveError};
use crabbox_machine::lease::logs::Source;
use crabbox_machine::lifecycle::release::{Decision, Released};
use crabbox_machine::protocol::Stage;
use crabbox_ssh::ready::Progress;

use crate::fleet::address::KvmHost;
use crate::host::doctor::check::{Check, Options};
use crate::host::prepare::NewLease;
use crate::provider::capability::Capabilities;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;

/// What commands need of a provider.
pub trait Provider: fmt::Debug {
    /// Its canonical name.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The doctor's checks of this host for it, in the order they are shown.
    fn checks(&self, options: &Options) -> Vec<Check>;

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

    /// The end of a log of the lease that `text` names, where that is on another machine; `None` where the log is a file here.
    fn far_log(&self, _text: &str, _source: Source) -> Result<Option<String>, LeaseError> {
        Ok(None)
    }

    /// Every lease.
    fn list(&self) -> Result<Leases, LeaseError>;

    /// Ties `lease` to the repository at `repo`; another's claim is only taken over when `reclaim` says so.
    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError>;

    /// Refreshes `lease` and returns its labels as they are now.
    fn touch(
        &self,
        lease: &Lease,
        state: Option<&LeaseState>,
        idle: Option<Duration>,
    ) -> Result<Labels, LeaseError>;

    /// Ends the lease that `text` names, whoever uses it.
    fn release(&self, text: &str) -> Result<Released, LeaseError>;

    /// Gives back the lease that this provider's [`Provider::acquire`] had ready, as far as the caller made it and nobody else uses
    /// it; whether it has ended.
    fn give_back(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.release(&lease.id).map(|_| true)
    }

    /// Whether somebody has given back a lease that this command uses.
    fn is_given_back(&self, _: &Lease) -> bool {
        false
    }

    /// Flags that lead to the machine of `lease` once the lease was given back, beyond what the settings say; `None` where the
    /// machine goes with its lease.
    fn after_release(&self, _: &Lease) -> Option<Vec<FlagValue>> {
        None
    }

    /// Gives back what nobody needs any more, unless `dry_run`.
    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError>;
}

/// Leases, and the records that cannot be used, each with its reason.
#[derive(Debug, Default)]
pub struct Leases {
    /// The leases.
    pub leases: Vec<Lease>,
    /// What cannot be used, sorted by name.
    pub unusable: Vec<Unusable>,
    /// KVM hosts that did not tell theirs.
    pub away: Vec<Away>,
}

/// A KVM host that does not answer.
#[derive(Debug)]
pub struct Away {
    /// The host.
    pub host: KvmHost,
    /// Why.
    pub error: LeaseError,
}

/// A lease directory whose record cannot be read, or says what no lease can have.
#[derive(Debug)]
pub struct Unusable {
    /// The directory's name, most likely a lease id.
    pub name: String,
    /// Why it cannot be used.
    pub error: ResolveError,
}

/// What happens while a lease is acquired.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A part of the way to a machine is done.
    Stage(&'a Stage),
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
    /// The lease waits for a host of a fleet: its place, and for what.
    Queued(&'a str),
    /// A lease that waits in a pool was to be taken, and is not.
    NotPooled {
        /// The lease; `None` where the pool itself cannot be told.
        lease: Option<&'a str>,
        /// Why.
        why: &'a str,
    },
    /// The lease is made without something that it can do without, or with less than there was.
    Without {
        /// What, and why.
        text: &'a str,
    },
    /// A template was to be used, and the machine boots all the same.
    Cold {
        /// Why.
        why: &'a str,
        /// The end of the console of the machine that was to come of it.
        console: &'a [String],
    },
}

/// A lease that is this command's, and where the time went.
#[derive(Debug)]
pub struct AcquiredLease {
    /// The lease.
    pub lease: Lease,
    /// Its stages in order.
    pub stages: Vec<Stage>,
    /// What the guest said of its own boot: stages with its uptime in milliseconds.
    pub guest_stages: Vec<(String, u64)>,
    /// How its machine started; `None` where none did.
    pub start: Option<MachineStart>,
}

/// How the machine of a new lease started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineStart {
    /// It waited in a pool, started long ago.
    Pooled,
    /// It went on from a template.
    Restored,
    /// It booted; why, where there was a template that it could not go on from.
    Cold(Option<String>),
}
