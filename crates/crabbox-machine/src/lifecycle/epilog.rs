//! The end of a scheduler's job on its host: takes back whatever is left of the job's lease, including
//! processes that still run.
//!
//! It runs as root after every job, so it must never touch anything of another job, and must succeed if
//! nothing is left. It fails only if something of the job cannot be found or removed, because an error makes
//! the scheduler drain this host.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::journal::JOB;
use crabbox_core::labels;
use crabbox_core::state::LeaseState;
use crabbox_host::clock;
use crabbox_host::files::{self, FileError};
use crabbox_host::process::{self, ProcessError};
use crabbox_store::journal;
use crabbox_store::leases::{self, RecordError};
use crabbox_store::places::LeaseDir;

use crate::context::Engine;
use crate::lifecycle::hold::HOLD;
use crate::lifecycle::release::{self, ReleaseError};
use crate::lifecycle::teardown;

/// How long the job's process may take to end by itself: it may be in the middle of its own teardown.
const GRACE: Duration = Duration::from_secs(5);

/// The result of [`take_back`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
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
    #[error("lease {lease} of job {job} was not removed")]
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

/// Takes back what job `job` left.
pub fn take_back(engine: &Engine, job: u32) -> Result<Reclaimed, EpilogError> {
    let processes = end_processes(job).map_err(|source| EpilogError::Processes { job, source })?;
    let mut taken = Reclaimed {
        processes,
        leases: Vec::new(),
    };
    let leases = of_jobs(engine)?.into_iter().filter(|found| found.job == job);
    for id in leases.map(|found| found.lease.to_string()) {
        let dir = LeaseDir::at(engine.places.leases().join(&id));
        match release::stop(engine, &id, was_nobody_s(&dir)) {
            Ok(_) => taken.leases.push(id),
            Err(_) if dir.is_gone() => {}
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

/// Ends the processes that hold the job: they keep running if the scheduler's own process on this host has
/// died.
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

/// Whether the lease in `dir` was never claimed, so that no user's disk has to be kept. A teardown undoes the
/// claim first, so the answer is false once a teardown has begun, and also if the journal cannot be read.
fn was_nobody_s(dir: &LeaseDir) -> bool {
    matches!(
        journal::read(&dir.journal()),
        Ok(Some(journal)) if !journal.is_claimed() && journal.note(teardown::ENDING).is_none()
    )
}

/// A lease that a scheduler's job has, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLease {
    /// The lease.
    pub lease: LeaseId,
    /// The job.
    pub job: u32,
    /// When it was made, in seconds since 1970.
    pub since: i64,
}

/// The leases of jobs on this host, according to their records, or to their journals if a record is
/// unreadable. A record can be wrong, so this proves nothing. A released lease whose disk is kept does not
/// count.
pub fn of_jobs(engine: &Engine) -> Result<Vec<JobLease>, RecordError> {
    let listing = leases::list(&engine.places.leases())?;
    let recorded = listing.leases.iter().filter_map(|stored| {
        let record = &stored.record;
        let is_kept = !record.delete_on_release && labels::state(&record.labels) == LeaseState::Released;
        let found = JobLease {
            lease: LeaseId::parse(&record.lease_id).ok()?,
            job: labels::job(&record.labels)?.parse().ok()?,
            since: labels::time(&record.labels, "created_at").unwrap_or_else(clock::unix_seconds),
        };
        (!is_kept).then_some(found)
    });
    let unreadable = listing.unreadable.iter().filter_map(|bad| {
        let dir = LeaseDir::at(&bad.path);
        let journal = journal::read(&dir.journal()).ok()??;
        Some(JobLease {
            lease: LeaseId::parse(&bad.name).ok()?,
            job: journal.note(JOB)?.parse().ok()?,
            since: std::fs::metadata(dir.journal()).ok()?.mtime(),
        })
    });
    Ok(recorded.chain(unreadable).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::journal::{Entry, Step, VERSION};
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
        // A number that no scheduler on this machine has given to a job.
        let job = 4_100_000_007;
        lease(&engine, ours, r#""job":"4100000007","node":"h1""#);
        lease(&engine, theirs, r#""job":"8","node":"h1""#);
        lease(&engine, plain, "");
        lease(&engine, early, "unreadable");
        journal(&engine, early, &[opened(early), noted(JOB, "4100000007")]);
        let there = |id: &str| engine.places.leases().join(id).exists();
        std::fs::create_dir_all(engine.places.jobs()).unwrap();
        std::fs::write(engine.places.job_socket(job), "").unwrap();
        let (silent, eighth) = ("cbx_000000000005", "cbx_000000000006");
        lease(&engine, silent, "unreadable");
        lease(&engine, eighth, "unreadable");
        journal(&engine, eighth, &[opened(eighth), noted(JOB, "8")]);
        let taken = take_back(&engine, job).unwrap();
        assert_eq!(taken.leases, [ours, early]);
        assert!(!there(ours) && !there(early) && there(theirs) && there(plain));
        // One lease names another job, and one names none.
        assert!(there(silent) && there(eighth));
        assert!(!engine.places.job_socket(job).exists());
        assert_eq!(take_back(&engine, job).unwrap(), Reclaimed::default());
    }

    fn opened(id: &str) -> Entry {
        Entry::Open {
            version: VERSION,
            lease: id.to_owned(),
            at: 1,
            uid: None,
            subnet: None,
            memory_mib: None,
        }
    }

    fn noted(name: &str, value: &str) -> Entry {
        Entry::Note {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    fn journal(engine: &Engine, id: &str, entries: &[Entry]) {
        let lines = entries
            .iter()
            .map(|entry| serde_json::to_string(entry).unwrap() + "\n");
        let dir = LeaseDir::at(engine.places.leases().join(id));
        std::fs::write(dir.journal(), lines.collect::<String>()).unwrap();
    }

    #[test]
    fn a_disk_that_its_user_keeps_outlives_the_job_and_one_that_nobody_ever_had_does_not() {
        let claimed = [
            Entry::Begin {
                seq: 0,
                step: Step::Claim {},
            },
            Entry::Done {
                seq: 0,
                process: None,
            },
        ];
        // In order: a finished release, a release that was killed after undoing the claim, one that had not
        // begun, a lease that was never claimed, and a lease whose journal has no claim.
        let ending = noted(teardown::ENDING, "yes");
        for (state, entries, is_to_stay) in [
            ("released", vec![ending.clone()], true),
            ("ready", vec![ending], true),
            ("ready", claimed.to_vec(), true),
            ("ready", vec![], false),
            ("ready", vec![Entry::Undone { seq: 9 }, noted("x", "y")], false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let engine = engine(root.path());
            let (id, job) = ("cbx_000000000001", 4_100_000_009);
            lease(&engine, id, &format!(r#""job":"{job}","state":"{state}""#));
            let dir = LeaseDir::at(engine.places.leases().join(id));
            let record = std::fs::read_to_string(dir.metadata()).unwrap();
            let keeps = record.replace(r#""deleteOnRelease":true"#, r#""deleteOnRelease":false"#);
            assert_ne!(keeps, record);
            std::fs::write(dir.metadata(), keeps).unwrap();
            let mut all = vec![opened(id)];
            all.extend(entries.clone());
            journal(&engine, id, &all);
            let disk = dir.path().join("disk");
            std::fs::write(&disk, "work").unwrap();
            for _ in 0..2 {
                take_back(&engine, job).unwrap();
                assert_eq!(disk.exists(), is_to_stay, "{state} {entries:?}");
            }
        }
    }

    #[test]
    fn a_lease_that_cannot_be_taken_back_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let id = "cbx_000000000001";
        lease(&engine, id, r#""job":"4100000008""#);
        // A journal of a later release, which this program must not undo.
        let dir = LeaseDir::at(engine.places.leases().join(id));
        std::fs::write(
            dir.journal(),
            "{\"entry\":\"open\",\"version\":999,\"lease\":\"cbx_000000000001\",\"at\":1}\n",
        )
        .unwrap();
        let error = take_back(&engine, 4_100_000_008).unwrap_err();
        assert!(matches!(error, EpilogError::Lease { .. }), "{error:?}");
        assert!(dir.path().exists());
    }
}
