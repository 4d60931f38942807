//! The end of a scheduler's job on its host: whatever is left of the job's lease is taken back, also processes that still run.
//!
//! It runs as root after every job, so it must never touch what is not that job's, and must succeed where nothing is left. Only
//! a lease of which something stays is an error, because the scheduler then gives this host no more work.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_host::files::{self, FileError};
use crabbox_host::process::{self, ProcessError};
use crabbox_store::journal;
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::LeaseDir;

use crate::context::Engine;
use crate::lifecycle::hold::HOLD;
use crate::lifecycle::release::{self, ReleaseError};

/// How long the job's process may take to end by itself: it may be in the middle of its own teardown.
const GRACE: Duration = Duration::from_secs(5);

/// What was taken back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TakenBack {
    /// Processes of the job that still ran, by pid.
    pub processes: Vec<u32>,
    /// Leases that were there, by id.
    pub leases: Vec<String>,
}

/// Something of the job is left.
#[derive(Debug, thiserror::Error)]
pub enum EpilogError {
    /// Its processes cannot be found or ended.
    #[error("cannot end the processes of job {job}")]
    Processes {
        /// The job.
        job: u32,
        /// Why.
        #[source]
        source: ProcessError,
    },
    /// The leases of this host cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Its lease is still there, or a part of it.
    #[error("lease {lease} of job {job} is not taken back")]
    Lease {
        /// The job.
        job: u32,
        /// The lease.
        lease: String,
        /// Why.
        #[source]
        source: Box<ReleaseError>,
    },
    /// Its socket is still there.
    #[error(transparent)]
    Files(#[from] FileError),
}

impl Fault for EpilogError {
    fn kind(&self) -> Kind {
        Kind::Remote
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Lease { source, .. } => source.hints(),
            _ => Vec::new(),
        }
    }
}

/// Takes back what job `job` left. `lease` is the lease that it was submitted for, where that is known: it is found by its label
/// otherwise, which one that died early may not have yet.
pub fn take_back(engine: &Engine, job: u32, lease: Option<&LeaseId>) -> Result<TakenBack, EpilogError> {
    let processes = end_processes(job).map_err(|source| EpilogError::Processes { job, source })?;
    let mut taken = TakenBack {
        processes,
        leases: Vec::new(),
    };
    for id in leases_of(engine, job, lease)? {
        // What nobody ever had is nobody's to keep.
        let dir = LeaseDir::at(engine.places.leases().join(&id));
        let was_claimed = journal::read(&dir.journal())
            .is_ok_and(|journal| journal.is_some_and(|journal| journal.is_claimed()));
        match release::stop(engine, &id, !was_claimed) {
            Ok(_) => taken.leases.push(id),
            Err(_) if !dir.path().exists() => {}
            Err(source) => {
                return Err(EpilogError::Lease {
                    job,
                    lease: id,
                    source: Box::new(source),
                });
            }
        }
    }
    files::remove_tree(&engine.places.job_socket(job))?;
    Ok(taken)
}

/// Ends the processes that hold the job: after the death of the scheduler's own process on this host they still run.
fn end_processes(job: u32) -> Result<Vec<u32>, ProcessError> {
    let number = job.to_string();
    let mut ended = Vec::new();
    for found in process::list()? {
        let words: Vec<_> = found.cmdline.iter().map(|word| word.to_string_lossy()).collect();
        let is_holder = found.uid == process::euid()
            && matches!(&words[..], [_, verb, .., of] if verb == HOLD && *of == number);
        if is_holder && let Some(handle) = process::open(&found.id)? {
            handle.terminate(GRACE)?;
            ended.push(found.id.pid);
        }
    }
    Ok(ended)
}

/// The leases of the job: those that say so, and the one that it was submitted for unless that says otherwise.
fn leases_of(engine: &Engine, job: u32, lease: Option<&LeaseId>) -> Result<Vec<String>, EpilogError> {
    let number = job.to_string();
    let all = leases::list(&engine.places.leases())?;
    let mut found: Vec<String> = all
        .leases
        .iter()
        .filter(|stored| labels::job(&stored.record.labels) == Some(&number))
        .map(|stored| stored.record.lease_id.clone())
        .collect();
    if let Some(lease) = lease.map(LeaseId::as_str) {
        let is_another_s = all.leases.iter().any(|stored| stored.record.lease_id == lease);
        let is_there = engine.places.leases().join(lease).exists();
        if is_there && !is_another_s && !found.iter().any(|id| id == lease) {
            found.push(lease.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_store::places::Places;

    fn engine(root: &std::path::Path) -> Engine {
        Engine {
            places: Places::below(root),
            exe: "/bin/false".into(),
            path: std::ffi::OsString::new(),
            runtime: None,
            failpoint: String::new(),
        }
    }

    fn lease(engine: &Engine, id: &str, labels: &str) {
        let dir = engine.places.leases().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        if labels != "unreadable" {
            let record = format!(
                r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"s-{id}","name":"n","vmid":"n","provider":"firecracker","deleteOnRelease":true,"labels":{{{labels}}}}}"#
            );
            std::fs::write(dir.join("metadata.json"), record).unwrap();
        }
    }

    #[test]
    fn what_the_job_left_goes_and_nothing_of_any_other_and_twice_is_no_more_than_once() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let (ours, theirs, plain, early) = (
            "cbx_000000000001",
            "cbx_000000000002",
            "cbx_000000000003",
            "cbx_000000000004",
        );
        // No job of any scheduler on this machine has this number.
        let job = 4_100_000_007;
        lease(&engine, ours, r#""job":"4100000007","node":"h1""#);
        lease(&engine, theirs, r#""job":"8","node":"h1""#);
        lease(&engine, plain, "");
        lease(&engine, early, "unreadable");
        let there = |id: &str| engine.places.leases().join(id).exists();
        std::fs::create_dir_all(engine.places.jobs()).unwrap();
        std::fs::write(engine.places.job_socket(job), "").unwrap();
        // One that is said to be the job's, and says of itself that it is not.
        for said in [theirs, plain] {
            let said = LeaseId::parse(said).unwrap();
            take_back(&engine, job, Some(&said)).unwrap();
        }
        assert!(!there(ours) && there(theirs) && there(plain) && there(early));
        assert!(!engine.places.job_socket(job).exists());
        let said = LeaseId::parse(early).unwrap();
        let taken = take_back(&engine, job, Some(&said)).unwrap();
        assert_eq!(taken.leases, [early]);
        assert_eq!(
            take_back(&engine, job, Some(&said)).unwrap(),
            TakenBack::default()
        );
        assert!(!there(early) && there(theirs) && there(plain));
    }

    #[test]
    fn a_lease_that_cannot_be_taken_back_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let id = "cbx_000000000001";
        lease(&engine, id, r#""job":"4100000008""#);
        // A later release's journal, of which nothing may be undone.
        let dir = LeaseDir::at(engine.places.leases().join(id));
        std::fs::write(
            dir.journal(),
            "{\"entry\":\"open\",\"version\":999,\"lease\":\"cbx_000000000001\",\"at\":1}\n",
        )
        .unwrap();
        let error = take_back(&engine, 4_100_000_008, None).unwrap_err();
        assert!(matches!(error, EpilogError::Lease { .. }), "{error:?}");
        assert!(dir.path().exists());
    }
}
