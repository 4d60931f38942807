//! The interface between commands and the providers of machines.
//!
//! Commands know leases and this trait; how a lease is made is up to the provider. A provider must never
//! print, and must never touch a claim or a machine of another provider.

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
use crabbox_host::console::OpenLog;
use crabbox_host::signals::Interrupts;
use crabbox_machine::lease::find::Purpose;
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

/// What commands need from a provider.
pub trait Provider: fmt::Debug {
    /// Its canonical name.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Its doctor checks of this host, in display order.
    fn checks(&self, options: &Options) -> Vec<Check>;

    /// Makes a lease: a machine that is ready, entered and claimed for the repository at `repo`.
    fn acquire(
        &self,
        new: &NewLease,
        repo: &Path,
        interrupts: &Interrupts,
        on_notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<AcquiredLease, LeaseError>;

    /// The lease that `text` names, if it can be used for `purpose`.
    fn resolve(&self, text: &str, purpose: Purpose) -> Result<Lease, LeaseError>;

    /// Whether the machine of `lease` is down; `None` if this host cannot tell.
    fn is_down(&self, lease: &Lease) -> Option<bool>;

    /// The console of `lease`, opened so that it can still be read after the lease is gone; `None` if it is
    /// not a local file.
    fn console(&self, _: &Lease) -> Option<OpenLog> {
        None
    }

    /// Whether looking at `lease` goes over the network, and must not be repeated many times a second.
    fn is_far(&self, lease: &Lease) -> bool {
        lease.kvm_host.is_some()
    }

    /// The end of a log of the lease that `text` names, if it is on another machine; `None` if the log is a
    /// local file.
    fn far_log(&self, _text: &str, _source: Source) -> Result<Option<String>, LeaseError> {
        Ok(None)
    }

    /// All leases.
    fn list(&self) -> Result<Leases, LeaseError>;

    /// Claims `lease` for the repository at `repo`. Another repository's claim is only taken over if
    /// `reclaim` is set.
    fn claim(&self, lease: &Lease, repo: &Path, reclaim: bool) -> Result<(), LeaseError>;

    /// Refreshes `lease` and returns its updated labels.
    fn touch(
        &self,
        lease: &Lease,
        state: Option<&LeaseState>,
        idle: Option<Duration>,
    ) -> Result<Labels, LeaseError>;

    /// Ends the lease that `text` names, even if it is in use.
    fn release(&self, text: &str) -> Result<Released, LeaseError>;

    /// Ends the lease that [`Provider::acquire`] returned, unless somebody else uses it or it existed before.
    /// Returns whether it has ended.
    fn give_back(&self, lease: &Lease) -> Result<bool, LeaseError> {
        self.give_back_as(lease, Ending::Done)
    }

    /// Ends the lease that this command works in, according to `ending`, unless somebody else uses it.
    /// Returns whether it has ended.
    fn give_back_as(&self, lease: &Lease, _ending: Ending) -> Result<bool, LeaseError> {
        self.release(&lease.id).map(|_| true)
    }

    /// Whether somebody else has released a lease that this command uses.
    fn is_given_back(&self, _: &Lease) -> bool {
        false
    }

    /// The flags, beyond the settings, that lead to the machine of `lease` without its claim, such as after
    /// it was released; `None` if the machine disappears with its lease.
    fn after_release(&self, _: &Lease) -> Option<Vec<FlagValue>> {
        None
    }

    /// Removes what is no longer needed; only reports with `dry_run`.
    fn cleanup(
        &self,
        dry_run: bool,
        on_decision: &mut dyn FnMut(&Decision),
    ) -> Result<Vec<Decision>, LeaseError>;
}

/// Why a command ends its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The command is done: a lease that others keep stays.
    Done,
    /// The user asked for it: the lease ends even if others keep it.
    Asked,
}

/// Leases, and unusable records with the reason.
#[derive(Debug, Default)]
pub struct Leases {
    /// The leases.
    pub leases: Vec<Lease>,
    /// The unusable records, sorted by name.
    pub unusable: Vec<Unusable>,
    /// KVM hosts that did not answer.
    pub away: Vec<UnreachableHost>,
}

/// A KVM host that does not answer.
#[derive(Debug)]
pub struct UnreachableHost {
    /// The host.
    pub host: KvmHost,
    /// Why.
    pub error: LeaseError,
}

/// A lease whose record or claim cannot be read or is invalid.
#[derive(Debug)]
pub struct Unusable {
    /// The name of the record's directory or of the claim, most likely a lease id.
    pub name: String,
    /// Why it cannot be used.
    pub error: LeaseError,
}

/// Progress while a lease is acquired.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A step of the way is done.
    Stage(&'a Stage),
    /// This host will be used.
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
    /// The host does not answer yet.
    Waiting(&'a Progress),
    /// The lease waits for a host of a fleet. The text has its position, and what it waits for.
    Queued(&'a str),
    /// A pool member should have been taken, but could not be.
    NotPooled {
        /// The lease; `None` if the pool itself could not be determined.
        lease: Option<&'a str>,
        /// Why.
        why: &'a str,
    },
    /// The lease is made without an optional part, or with less than before.
    Without {
        /// What is missing or smaller, and why.
        text: &'a str,
    },
    /// A template should have been used, but the machine boots cold instead.
    Cold {
        /// Why.
        why: &'a str,
        /// The end of the console of the machine that failed to be restored.
        console: &'a [String],
    },
}

/// A lease acquired by this command, and how long each stage took.
#[derive(Debug)]
pub struct AcquiredLease {
    /// The lease.
    pub lease: Lease,
    /// Its stages in order.
    pub stages: Vec<Stage>,
    /// The guest's report of its boot: stages with its uptime in milliseconds.
    pub guest_stages: Vec<(String, u64)>,
    /// How its machine started; `None` if no machine was started.
    pub start: Option<MachineStart>,
}

/// How the machine of a new lease started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineStart {
    /// It was taken from a pool, and had started earlier.
    Pooled,
    /// It was restored from a template.
    Restored,
    /// It booted. The text says why it was not restored, if there was a template.
    Cold(Option<String>),
}
