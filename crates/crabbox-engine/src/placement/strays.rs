//! Leases on this host whose jobs have ended, but which the epilog did not remove, because it failed or did
//! not run.
//!
//! Only the scheduler's answer can end a lease here, and only once the lease has reached a minimum age. If
//! the scheduler does not answer, nothing is ended.

use std::collections::BTreeSet;
use std::time::Duration;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_host::clock;
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::epilog::{self, EpilogError, JobLease};
use crabbox_store::leases::RecordError;

use super::{JobState, Placement, PlacementError};

/// The minimum age of a lease that is ended here: the scheduler may not know a newer job everywhere yet.
pub const GRACE: Duration = Duration::from_mins(2);

/// Why leases of ended jobs may remain.
#[derive(Debug, thiserror::Error)]
pub enum StrayError {
    /// The leases cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The scheduler does not answer.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Some leases remain although we tried to end them.
    #[error("{} left: {}", count(.0.len()), shown(.0))]
    Left(Vec<(String, OrphanReason)>),
}

/// Why a lease remains.
#[derive(Debug, thiserror::Error)]
pub enum OrphanReason {
    /// The scheduler's answer about its job makes no sense.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// It could not be ended.
    #[error(transparent)]
    Epilog(#[from] EpilogError),
}

fn count(leases: usize) -> String {
    match leases {
        1 => "a lease is".to_owned(),
        several => format!("{several} leases are"),
    }
}

fn shown(left: &[(String, OrphanReason)]) -> String {
    let jobs: Vec<String> = left
        .iter()
        .map(|(lease, why)| format!("{lease}: {}", fault::chain(why)))
        .collect();
    jobs.join("; ")
}

impl Fault for StrayError {
    fn kind(&self) -> Kind {
        match self {
            Self::Records(_) => Kind::Usage,
            Self::Placement(error) => error.kind(),
            Self::Left(_) => Kind::Remote,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Records(_) => Vec::new(),
            Self::Placement(error) => error.hints(),
            Self::Left(all) => all
                .iter()
                .flat_map(|(_, why)| match why {
                    OrphanReason::Placement(error) => error.hints(),
                    OrphanReason::Epilog(error) => error.hints(),
                })
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        }
    }
}

/// Ends each lease that is older than `grace` and whose job has ended, and calls `on_taken` with its id. A
/// failure does not keep the others from being ended, unless the scheduler itself does not answer.
pub fn take_back(
    engine: &Engine,
    placement: &dyn Placement,
    grace: Duration,
    on_taken: &mut dyn FnMut(&str),
) -> Result<(), StrayError> {
    let now = clock::unix_seconds();
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let mut left = Vec::new();
    for JobLease { lease, job, since } in epilog::of_jobs(engine)? {
        if now.saturating_sub(since) < grace {
            continue;
        }
        let taken = match placement.state(job, &lease) {
            // Stop here: the scheduler would not answer about the others either, and each question would have
            // to time out.
            Err(error @ PlacementError::UnreachableHost(_)) => return Err(error.into()),
            Err(error) => Err(error.into()),
            Ok(state) if is_over(&state) => epilog::take_back(engine, job).map_err(OrphanReason::from),
            Ok(_) => continue,
        };
        match taken {
            Ok(taken) => taken.leases.iter().for_each(|id| on_taken(id)),
            Err(error) => left.push((lease.to_string(), error)),
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(StrayError::Left(left))
    }
}

/// The states of an ended job, of which nothing is running any more (squeue(1), job state codes). In any
/// other state, including unknown ones of later releases, nothing is destroyed: a `COMPLETING` job is still
/// running its epilog, and `STOPPED` and `SIGNALING` ones are alive.
const ENDED: [&str; 9] = [
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "BOOT_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "PREEMPTED",
];

/// Whether nothing on this host belongs to the job any more.
fn is_over(state: &JobState) -> bool {
    match state {
        JobState::Over { how } => ENDED.contains(&how.as_str()),
        // The scheduler answers, and does not know the job.
        JobState::Unknown => true,
        JobState::Pending { .. } | JobState::Running { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::id::LeaseId;

    use super::super::{JobRequest, Node};
    use super::*;

    /// A scheduler that gives the same answer about every job, or none.
    #[derive(Debug)]
    struct Says(Option<JobState>);

    impl Placement for Says {
        fn submit(&self, _: &JobRequest<'_>) -> Result<u32, PlacementError> {
            Ok(1)
        }

        fn state(&self, _: u32, _: &LeaseId) -> Result<JobState, PlacementError> {
            self.0.clone().ok_or(PlacementError::Never { why: String::new() })
        }

        fn rank(&self, _: u32) -> Result<Option<usize>, PlacementError> {
            Ok(None)
        }

        fn cancel(&self, _: u32, _: &LeaseId) -> Result<(), PlacementError> {
            Ok(())
        }

        fn nodes(&self) -> Result<Vec<Node>, PlacementError> {
            Ok(Vec::new())
        }
    }

    const ID: &str = "cbx_000000000001";

    fn made(engine: &Engine, id: &str, labels: &str, is_kept: bool) {
        let dir = engine.places.leases().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let record = format!(
            r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"s-{id}","name":"n","vmid":"n","provider":"firecracker","deleteOnRelease":{},"labels":{{{labels}}}}}"#,
            !is_kept
        );
        std::fs::write(dir.join("metadata.json"), record).unwrap();
    }

    fn taken(engine: &Engine, says: Option<JobState>) -> Result<Vec<String>, StrayError> {
        let mut taken = Vec::new();
        take_back(engine, &Says(says), GRACE, &mut |id| taken.push(id.to_owned()))?;
        Ok(taken)
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "it stands where a scheduler may say nothing"
    )]
    fn over(how: &str) -> Option<JobState> {
        Some(JobState::Over { how: how.to_owned() })
    }

    fn of_job() -> String {
        let old = clock::unix_seconds() - 600;
        format!(r#""created_at":"{old}","job":"4100000009""#)
    }

    #[test]
    fn a_lease_goes_whose_job_is_over_and_none_that_is_young_or_of_which_nothing_is_known() {
        let root = tempfile::tempdir().unwrap();
        let engine = crate::fixture::engine(root.path());
        let dir = engine.places.leases().join(ID);
        let none = Vec::<String>::new;
        let running = Some(JobState::Running {
            node: "h1".to_owned(),
        });
        for state in [
            running,
            over("COMPLETING"),
            over("STOPPED"),
            over("SIGNALING"),
            over("STAGE_OUT"),
            over("SOMETHING_NEW"),
        ] {
            made(&engine, ID, &of_job(), false);
            assert_eq!(taken(&engine, state).unwrap(), none());
        }
        assert!(taken(&engine, None).is_err() && dir.exists());
        let all = ENDED.iter().map(|how| over(how));
        for state in all.chain([Some(JobState::Unknown)]) {
            made(&engine, ID, &of_job(), false);
            assert_eq!(taken(&engine, state).unwrap(), [ID]);
            assert!(!dir.exists());
        }
        let now = clock::unix_seconds();
        for labels in [
            format!(r#""created_at":"{now}","job":"4100000009""#),
            format!(r#""created_at":"{}""#, now - 600),
        ] {
            made(&engine, ID, &labels, false);
            assert_eq!(taken(&engine, over("FAILED")).unwrap(), none());
        }
        // It was released long ago, and its disk is kept.
        made(&engine, ID, &format!(r#"{},"state":"released""#, of_job()), true);
        assert_eq!(taken(&engine, over("COMPLETED")).unwrap(), none());
        assert!(dir.exists());
    }

    #[test]
    fn one_that_stays_keeps_none_of_the_others_and_is_named() {
        let root = tempfile::tempdir().unwrap();
        let engine = crate::fixture::engine(root.path());
        let (stays, goes) = (ID, "cbx_000000000002");
        for id in [stays, goes] {
            let labels = of_job().replace(
                "4100000009",
                if id == stays { "4100000008" } else { "4100000009" },
            );
            made(&engine, id, &labels, false);
        }
        // The journal of a later release, which must not be rolled back.
        let journal = engine.places.leases().join(stays).join("journal.jsonl");
        let newer = format!("{{\"entry\":\"open\",\"version\":999,\"lease\":\"{stays}\",\"at\":1}}\n");
        std::fs::write(journal, newer).unwrap();
        let mut taken = Vec::new();
        let left = take_back(&engine, &Says(over("FAILED")), GRACE, &mut |id| {
            taken.push(id.to_owned());
        });
        let left = left.unwrap_err().to_string();
        assert_eq!(taken, [goes]);
        assert!(left.contains(stays) && !left.contains(goes), "{left}");
        assert!(engine.places.leases().join(stays).exists());
    }
}
