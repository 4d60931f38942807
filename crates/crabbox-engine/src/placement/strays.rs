//! Leases on this host whose jobs are over, which the epilog did not take back: it failed, or was not run.
//!
//! Only the scheduler's word ends a lease here, and only some time after it was made. When the scheduler does not answer, nothing is
//! ended.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_host::clock;
use crabbox_machine::context::Engine;
use crabbox_machine::lifecycle::epilog::{self, EpilogError};
use crabbox_store::leases::{self, RecordError};

use super::{JobState, Placement, PlacementError};

/// How old a lease is at least that is taken back: its job may be so new that not all of the scheduler knows it.
pub const GRACE: Duration = Duration::from_mins(2);

/// Why leases of jobs that are over may still be there.
#[derive(Debug, thiserror::Error)]
pub enum StrayError {
    /// The leases cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The scheduler says nothing.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// One cannot be taken back.
    #[error(transparent)]
    Epilog(#[from] EpilogError),
}

impl Fault for StrayError {
    fn kind(&self) -> Kind {
        match self {
            Self::Records(_) => Kind::Usage,
            Self::Placement(error) => error.kind(),
            Self::Epilog(error) => error.kind(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Records(_) => Vec::new(),
            Self::Placement(error) => error.hints(),
            Self::Epilog(error) => error.hints(),
        }
    }
}

/// Takes back each lease older than `grace` whose job is over; returns their ids.
pub fn take_back(
    engine: &Engine,
    placement: &dyn Placement,
    grace: Duration,
) -> Result<Vec<String>, StrayError> {
    let now = clock::unix_seconds();
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let mut taken = Vec::new();
    for stored in leases::list(&engine.places.leases())?.leases {
        let found = &stored.record.labels;
        let age = now.saturating_sub(labels::time(found, "created_at").unwrap_or(now));
        let Some(job) = labels::job(found).and_then(|job| job.parse().ok()) else {
            continue;
        };
        let Ok(lease) = LeaseId::parse(&stored.record.lease_id) else {
            continue;
        };
        if age < grace || !is_over(&placement.state(job, &lease)?) {
            continue;
        }
        taken.extend(epilog::take_back(engine, job, Some(&lease))?.leases);
    }
    Ok(taken)
}

/// Whether nothing on this host belongs to the job any more. While it is `COMPLETING` its epilog is at work.
fn is_over(state: &JobState) -> bool {
    match state {
        JobState::Over { how } => how != "COMPLETING",
        JobState::Unknown => true,
        JobState::Pending { .. } | JobState::Running { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Node, Wish};
    use super::*;

    /// A scheduler that says one thing of every job, or nothing.
    #[derive(Debug)]
    struct Says(Option<JobState>);

    impl Placement for Says {
        fn submit(&self, _: &Wish<'_>) -> Result<u32, PlacementError> {
            Ok(1)
        }

        fn state(&self, _: u32, _: &LeaseId) -> Result<JobState, PlacementError> {
            self.0.clone().ok_or(PlacementError::Never { why: String::new() })
        }

        fn cancel(&self, _: u32, _: &LeaseId) -> Result<(), PlacementError> {
            Ok(())
        }

        fn nodes(&self) -> Result<Vec<Node>, PlacementError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_lease_goes_whose_job_is_over_and_none_that_is_young_or_of_which_nothing_is_known() {
        let root = tempfile::tempdir().unwrap();
        let engine = crate::fixture::engine(root.path());
        let id = "cbx_000000000001";
        let dir = engine.places.leases().join(id);
        let made = |labels: String| {
            std::fs::create_dir_all(&dir).unwrap();
            let record = format!(
                r#"{{"schemaVersion":1,"leaseID":"{id}","slug":"s","name":"n","vmid":"n","provider":"firecracker","deleteOnRelease":true,"labels":{{{labels}}}}}"#
            );
            std::fs::write(dir.join("metadata.json"), record).unwrap();
        };
        let old = clock::unix_seconds() - 600;
        let of_job = format!(r#""created_at":"{old}","job":"4100000009""#);
        let over = |how: &str| Some(JobState::Over { how: how.to_owned() });
        let running = Some(JobState::Running {
            node: "h1".to_owned(),
        });
        for state in [running, over("COMPLETING")] {
            made(of_job.clone());
            assert_eq!(
                take_back(&engine, &Says(state), GRACE).unwrap(),
                Vec::<String>::new()
            );
        }
        assert!(take_back(&engine, &Says(None), GRACE).is_err() && dir.exists());
        for state in [over("FAILED"), Some(JobState::Unknown)] {
            made(of_job.clone());
            assert_eq!(take_back(&engine, &Says(state), GRACE).unwrap(), [id]);
            assert!(!dir.exists());
        }
        let now = clock::unix_seconds();
        for labels in [
            format!(r#""created_at":"{now}","job":"4100000009""#),
            format!(r#""created_at":"{old}""#),
        ] {
            made(labels);
            assert_eq!(
                take_back(&engine, &Says(over("FAILED")), GRACE).unwrap(),
                Vec::<String>::new()
            );
        }
    }
}
