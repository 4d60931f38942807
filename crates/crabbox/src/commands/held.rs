//! `__hold`, `__epilog` and `__health`: the start and the end of a scheduler's job on a fleet host, and
//! cleanup of leases that outlived their job. The scheduler starts each of them, never a user.
//!
//! None of them reads a repository or a configuration: everything they need is on their command lines.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::{LeaseId, LeaseIdError};
use crabbox_core::labels::{self, OwnerNameError};
use crabbox_engine::fleet::address::is_name;
use crabbox_engine::placement::slurm::Slurm;
use crabbox_engine::placement::strays;
use crabbox_machine::lifecycle::epilog;
use crabbox_machine::lifecycle::hold::{self, Held, JobCredentials, Outcome};

use crate::args::{EpilogArgs, HealthArgs, HoldArgs};
use crate::commands::engine;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The variable in which Slurm puts the name of the host that runs the job (sbatch(1), slurmd(8)).
const NODE: &str = "SLURMD_NODENAME";

/// The scheduler started this command with invalid arguments or environment.
#[derive(Debug, thiserror::Error)]
enum Started {
    /// The lease id is invalid.
    #[error(transparent)]
    Lease(#[from] LeaseIdError),
    /// The owner's name is invalid.
    #[error(transparent)]
    Owner(#[from] OwnerNameError),
    /// We do not run inside a Slurm job.
    #[error("{NODE} names no host: this command runs only as the process of a Slurm job")]
    NoJob,
}

impl Fault for Started {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(super) fn hold(ctx: &Ctx<'_>, args: &HoldArgs) -> Result<Exit, CommandError> {
    let node = ctx
        .env
        .text(NODE)
        .filter(|name| is_name(name))
        .ok_or(Started::NoJob)?;
    labels::check_owner_name(&args.owner).map_err(Started::from)?;
    let held = Held {
        credentials: JobCredentials {
            job: args.number,
            lease: LeaseId::parse(&args.lease).map_err(Started::from)?,
            owner: args.owner.clone(),
            nonce: args.nonce.clone(),
        },
        node: node.to_owned(),
        wait: Duration::from_secs(args.wait),
    };
    match hold::run(&ctx.env.places()?, &held)? {
        Outcome::Ended => Ok(Exit::SUCCESS),
        // The client has already been told the reason.
        Outcome::NotMade => Err(CommandError::silent(Kind::Unavailable)),
    }
}

pub(super) fn epilog(ctx: &Ctx<'_>, args: &EpilogArgs) -> Result<Exit, CommandError> {
    let taken = epilog::take_back(&engine::looking(ctx)?, args.number)?;
    for id in &taken.leases {
        ctx.printer
            .detail(format_args!("job {}: lease {id} was removed", args.number));
    }
    for pid in &taken.processes {
        ctx.printer.detail(format_args!(
            "job {}: process {pid} still ran and was ended",
            args.number
        ));
    }
    Ok(Exit::SUCCESS)
}

pub(super) fn health(ctx: &Ctx<'_>, args: &HealthArgs) -> Result<Exit, CommandError> {
    // It is only queried for jobs by number, which needs neither partition nor account.
    let slurm = Slurm {
        partition: String::new(),
        account_prefix: None,
    };
    let grace = Duration::from_secs(args.grace);
    strays::take_back(&engine::looking(ctx)?, &slurm, grace, &mut |id| {
        ctx.printer
            .detail(format_args!("lease {id} was removed: its job is over"));
    })?;
    Ok(Exit::SUCCESS)
}
