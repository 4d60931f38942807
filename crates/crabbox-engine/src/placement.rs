//! Placing leases on many hosts: the interface to an external scheduler, which decides.
//!
//! Each lease is a job of that scheduler. Nothing here may choose a host, keep a queue, or remember a job:
//! the scheduler's answers are the only source.

pub mod gateway;
pub mod queue;
pub mod slurm;
pub mod strays;

use std::fmt::Debug;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::command::CommandError;

/// The parameters of a job.
#[derive(Debug, Clone)]
pub struct JobRequest<'a> {
    /// The lease.
    pub lease: &'a LeaseId,
    /// Its owner.
    pub owner: &'a str,
    /// The memory that the lease takes on its host, including the VMM's own, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Its disk, in GiB, rounded up.
    pub disk_gib: u64,
    /// The job's time limit in minutes, longer than the lease: the supervisor ends the lease before that.
    pub minutes: u64,
    /// Hosts that have refused it and must be excluded.
    pub exclude: &'a [String],
    /// The command of its single process, by argument. The argument [`JOB`] is replaced by the job's number.
    pub command: &'a [String],
}

/// The argument of a job's command that is replaced by the job's number.
pub const JOB: &str = "%JOB%";

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// It is waiting.
    Pending {
        /// The reason, in the scheduler's word.
        reason: String,
    },
    /// It is running.
    Running {
        /// The host.
        node: String,
    },
    /// It has ended.
    Over {
        /// The final state in the scheduler's word, such as `COMPLETED` or `NODE_FAIL`.
        how: String,
    },
    /// The scheduler does not know it any more.
    Unknown,
}

/// A host as the scheduler reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its state in the scheduler's word, including the mark of a host that does not respond.
    pub state: String,
    /// Memory that is not allocated to a job, in MiB.
    pub free_memory_mib: u64,
    /// Processors that are not allocated to a job.
    pub free_cpus: u64,
}

impl Node {
    /// Whether it accepts jobs at all.
    pub fn is_up(&self) -> bool {
        let state = self.state.to_ascii_lowercase();
        ["idle", "mixed", "allocated", "completing"].contains(&state.as_str())
    }
}

/// Why the scheduler failed.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// It does not answer.
    #[error("the scheduler does not answer")]
    UnreachableHost(#[source] CommandError),
    /// It can never run such a job.
    #[error("no host of this fleet can run such a lease: {why}")]
    Never {
        /// The scheduler's reason.
        why: String,
    },
    /// It refuses the job.
    #[error("the scheduler refuses the lease: {why}")]
    Refused {
        /// The scheduler's reason.
        why: String,
    },
    /// Its answer makes no sense.
    #[error("unexpected output of {program}: {said:?}")]
    Nonsense {
        /// The scheduler's program.
        program: &'static str,
        /// Its output.
        said: String,
    },
}

impl Fault for PlacementError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hints(&self) -> Vec<String> {
        vec![match self {
            Self::UnreachableHost(_) => {
                "existing leases are not affected, and can be used and stopped as usual; ask the administrator of the fleet about slurmctld on its controller"
            }
            Self::Never { .. } => "request less memory, disk, processors or time (ttl), or ask the administrator of the fleet to look at `sinfo`",
            Self::Refused { .. } => "ask the administrator of the fleet for its limits",
            Self::Nonsense { .. } => "this program understands Slurm 22.05 and later",
        }
        .to_owned()]
    }
}

/// A scheduler.
pub trait Placement: Debug {
    /// Submits a job and returns its number.
    fn submit(&self, request: &JobRequest<'_>) -> Result<u32, PlacementError>;

    /// The state of the job that was submitted for `lease`. A job with this number but for another purpose is
    /// unknown: a scheduler that lost its state reuses numbers, and we must not report another owner's job.
    fn state(&self, job: u32, lease: &LeaseId) -> Result<JobState, PlacementError>;

    /// The position of a job in the queue; `None` if it is not queued.
    fn rank(&self, job: u32) -> Result<Option<usize>, PlacementError>;

    /// Cancels that job, whether it is queued or running. Not an error if it has already ended.
    fn cancel(&self, job: u32, lease: &LeaseId) -> Result<(), PlacementError>;

    /// The hosts.
    fn nodes(&self) -> Result<Vec<Node>, PlacementError>;
}
