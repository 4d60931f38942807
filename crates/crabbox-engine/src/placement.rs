//! Where a lease is made when there are many hosts: a scheduler of others decides, and is spoken to here.
//!
//! A lease is a job of that scheduler. Nothing here may choose a host, keep a queue, or remember a job: what there is, the
//! scheduler says.

pub mod gateway;
pub mod queue;
pub mod slurm;
pub mod strays;

use std::fmt::Debug;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::command::CommandError;

/// What a job is submitted for.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The lease.
    pub lease: &'a LeaseId,
    /// Whose it is.
    pub owner: &'a str,
    /// What the lease takes of its host, the VMM's own part included, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Its disk, in GiB, rounded up.
    pub disk_gib: u64,
    /// How long the job may last, in minutes: longer than the lease, whose supervisor ends it in time.
    pub minutes: u64,
    /// Hosts that have refused it.
    pub exclude: &'a [String],
    /// What its one process runs, word by word; the word [`JOB`] stands for the job's number.
    pub command: &'a [String],
}

/// The word of a job's command in place of which its number is put.
pub const JOB: &str = "%JOB%";

/// What has become of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// It waits.
    Pending {
        /// Why, in the scheduler's word.
        reason: String,
    },
    /// It runs.
    Running {
        /// On this host.
        node: String,
    },
    /// It is over.
    Over {
        /// How, in the scheduler's word, as `COMPLETED` or `NODE_FAIL`.
        how: String,
    },
    /// The scheduler does not know it any more.
    Unknown,
}

/// A host, as the scheduler has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its state, in the scheduler's word, with the mark of one that does not answer.
    pub state: String,
    /// Memory that no job has, in MiB.
    pub free_memory_mib: u64,
    /// Processors that no job has.
    pub free_cpus: u64,
}

impl Node {
    /// Whether it takes jobs at all.
    pub fn is_up(&self) -> bool {
        let state = self.state.to_ascii_lowercase();
        ["idle", "mixed", "allocated", "completing"].contains(&state.as_str())
    }
}

/// Why the scheduler did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// It does not answer.
    #[error("the scheduler does not answer")]
    Away(#[source] CommandError),
    /// It will never run such a job.
    #[error("no host of this fleet can have such a lease: {why}")]
    Never {
        /// In its words.
        why: String,
    },
    /// It refuses the job.
    #[error("the scheduler refuses the lease: {why}")]
    Refused {
        /// In its words.
        why: String,
    },
    /// Its answer makes no sense here.
    #[error("{program} answered {said:?}, which makes no sense here")]
    Nonsense {
        /// Which program of it.
        program: &'static str,
        /// What it said.
        said: String,
    },
}

impl Fault for PlacementError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hints(&self) -> Vec<String> {
        vec![match self {
            Self::Away(_) => {
                "leases that are there go on, and are used and stopped as usual; whoever runs the fleet can see to slurmctld on its controller"
            }
            Self::Never { .. } => "ask for less memory, disk, processors or time (ttl), or have whoever runs the fleet look at `sinfo`",
            Self::Refused { .. } => "whoever runs the fleet knows its limits",
            Self::Nonsense { .. } => "Slurm 22.05 and later are known to be understood",
        }
        .to_owned()]
    }
}

/// A scheduler.
pub trait Placement: Debug {
    /// Submits a job; returns its number.
    fn submit(&self, wish: &Wish<'_>) -> Result<u32, PlacementError>;

    /// What has become of the job that was submitted for `lease`. One of this number for anything else is unknown: numbers come again
    /// once a scheduler has lost its state, and nobody is told of another's job.
    fn state(&self, job: u32, lease: &LeaseId) -> Result<JobState, PlacementError>;

    /// The place of a job among those that wait, where it is one of them.
    fn rank(&self, job: u32) -> Result<Option<usize>, PlacementError>;

    /// Ends that job, whether it waits or runs; one that is over already is no error.
    fn cancel(&self, job: u32, lease: &LeaseId) -> Result<(), PlacementError>;

    /// The hosts.
    fn nodes(&self) -> Result<Vec<Node>, PlacementError>;
}
