//! Leases whose supervisor has died: the machine keeps running, and the next command starts a new supervisor
//! for it. If the old one died during acquisition or teardown, the new one ends the lease.
//!
//! The cost is one read of each journal. It must never start a supervisor for a lease that another process is
//! making or tearing down: the new supervisor takes the lease's lock first and checks again
//! ([`crate::lifecycle::supervise::watch`]). Nor for a lease of a scheduler's job: the job ends with its
//! supervisor, and its resources may already be allotted to another job ([`crate::lifecycle::epilog`]).

use std::process::Stdio;

use crabbox_core::labels;
use crabbox_core::state::LeaseState;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::environment::Environment;
use crabbox_host::process;
use crabbox_store::journal;
use crabbox_store::leases::{self, RecordError};

use crate::context::Engine;
use crate::lifecycle::teardown::ENDING;
use crate::protocol::SUPERVISE;

/// Starts a supervisor for each lease without one, and returns their ids. Unreadable records are left to
/// `cleanup`.
pub fn orphans(engine: &Engine) -> Result<Vec<String>, RecordError> {
    let mut adopted = Vec::new();
    for stored in leases::list(&engine.places.leases())?.leases {
        if labels::job(&stored.record.labels).is_some() {
            continue;
        }
        let Ok(Some(journal)) = journal::read(&stored.dir.journal()) else {
            continue;
        };
        // A lease that was never handed over has no user, and one whose teardown has begun cannot be used:
        // the new supervisor ends both.
        let unfinished = journal.note(ENDING).is_some() || !journal.is_claimed();
        let alive = |name: &str| journal.process(name).map(process::is_alive);
        // A lease that is being made has a live supervisor.
        if alive("supervisor") == Some(false)
            && (unfinished || alive("vmm") == Some(true))
            && labels::state(&stored.record.labels) != LeaseState::Released
            && watch(engine, &stored.record.lease_id).is_ok()
        {
            adopted.push(stored.record.lease_id);
        }
    }
    Ok(adopted)
}

fn watch(engine: &Engine, id: &str) -> Result<(), CommandError> {
    let cmd = Cmd::new(&engine.exe)
        .args([SUPERVISE, "--adopt", id])
        .environment(Environment::Own)
        .cwd("/");
    let mut command = cmd.to_std();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    tracing::debug!(lease = id, "the supervisor is gone; starting a new one");
    // The new supervisor outlives us, and init reaps it.
    cmd.spawn(process::new_session(&mut command)).map(drop)
}
