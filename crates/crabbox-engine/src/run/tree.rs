//! The working tree of a run: examined here, locked in the lease, synced.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_workspace::owner::{self, Owner};
use crabbox_workspace::session;
use crabbox_workspace::sync::{self, SyncChoice};

use crate::provider::lease::{Lease, Target};
use crate::run::Run;
use crate::run::error::RunError;
use crate::run::event::TreeEvent;
use crate::run::report::RunReport;

/// How long an examination of the local tree stays valid while waiting for the lease's side.
pub(super) const LOOK_HOLDS: Duration = Duration::from_secs(1);

/// The result of examining the local tree.
pub(super) type Looked = Result<(sync::Load, Result<(), sync::GuardrailError>), sync::SyncError>;

/// Opens the connection for the whole run, unless it is already open. Returns how long that took.
pub(super) fn connect(target: &Target, cancel: BorrowedFd<'_>) -> Result<Duration, RunError> {
    Ok(session::connect(target, cancel)?.unwrap_or_default())
}

impl Run<'_> {
    /// Waits until no other run uses the tree. `make` is a directory to create then.
    pub(super) fn own(&self, lease: &Lease, target: &Target, make: Option<&str>) -> Result<Owner, RunError> {
        let waiting = |elapsed, state: &str| self.events.tree(&TreeEvent::Waiting { elapsed, state });
        let stage = self.stage("workspace");
        let owner = owner::own(target, &lease.id, make, self.interrupts.as_fd(), &waiting)?;
        stage.end(true);
        self.events.tree(&TreeEvent::Owned {
            wait: owner.wait,
            recovered: owner.recovered,
        });
        Ok(owner)
    }

    /// Starts to examine the local tree, in parallel to the preparations of the lease's side.
    pub(super) fn look(&self) -> JoinHandle<Looked> {
        let (repo, settings) = (self.repo.clone(), self.settings.sync.clone());
        let places = self.engine.places.clone();
        std::thread::spawn(move || sync::load(&repo, &settings, &places.trees(), &places.config))
    }

    /// Starts the lease's side of the sync.
    pub(super) fn begin(
        &self,
        owner: &mut Owner,
        target: &Target,
        destination: &sync::Destination,
    ) -> sync::Begun {
        let choice = SyncChoice {
            full_resync: self.request.sync.full_resync,
            allow_mass_deletions: self.here.allow_mass_deletions,
        };
        sync::begin(owner, target, destination, &self.settings.sync, choice)
    }

    /// Syncs the tree that `look` examined.
    pub(super) fn sync(
        &self,
        lease: &Lease,
        owner: &mut Owner,
        begun: sync::Begun,
        look: JoinHandle<Looked>,
        report: &mut RunReport,
    ) -> Result<(), RunError> {
        let started = Instant::now();
        let stage = self.stage("sync");
        let base_ref = &self.settings.sync.base_ref;
        if !base_ref.value.is_empty() && !self.settings.sync.git_seed.value {
            self.events.tree(&TreeEvent::BaseRef(base_ref));
        }
        let looked = look
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A terminal's interrupt ends the git process, too, so its error has no meaning then.
        if self.interrupts.caught().is_some() {
            return Err(sync::SyncError::Interrupted.into());
        }
        let (load, verdict) = looked?;
        self.events.tree(&TreeEvent::Looked(&load.lines));
        verdict.map_err(sync::SyncError::from)?;
        if self.request.sync.full_resync {
            self.events.tree(&TreeEvent::Emptying {
                workdir: &report.outcome.workdir,
            });
        }
        let listener = self.events.sync();
        let done = sync::sync(owner, begun, &load, listener.as_ref(), self.interrupts);
        listener.end(done.is_ok());
        if let Err(error) = &done
            && error.lost_connection()
            && self.went_down(lease)
        {
            report.down = true;
            self.events.tree(&TreeEvent::WentDown);
        }
        let done = done?;
        stage.end(true);
        let took = started.elapsed();
        report.outcome.sync = took;
        report.outcome.sync_skipped = done.skipped;
        report.outcome.sync_steps = std::iter::once(("manifest", load.took))
            .chain(done.steps)
            .collect();
        self.events.tree(&TreeEvent::Synced {
            sent: done.sent,
            skipped: done.skipped,
            took,
            steps: &report.outcome.sync_steps,
        });
        Ok(())
    }
}
