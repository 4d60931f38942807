//! `pool`: leases kept ready ahead of their use, made and ended by hand; and `__fill`, which a lease's supervisor starts to refill its pool.

use std::io::BufReader;
use std::os::fd::AsFd as _;

use crabbox_core::config::firecracker;
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::fleet::address::KvmHost;
use crabbox_engine::host::pool;
use crabbox_machine::lifecycle::pool::Member;
use crabbox_machine::protocol::{self, RequestError};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{PoolDrainArgs, PoolFillArgs};
use crate::commands::engine;
use crate::commands::lease::entering::console_tail;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Why `__fill` cannot start.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    /// The order is unreadable.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Our input cannot be read.
    #[error("cannot read the request for pool members")]
    Input(#[source] std::io::Error),
}

impl Fault for OrderError {
    fn kind(&self) -> Kind {
        match self {
            Self::Request(error) => error.kind(),
            Self::Input(_) => Kind::General,
        }
    }
}

/// A lease that waits.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct MemberView {
    /// The lease.
    lease_id: String,
    /// Its name for people.
    slug: String,
    /// When it was made.
    made_at: String,
}

impl MemberView {
    fn new(member: &Member) -> Self {
        let record = &member.stored.record;
        Self {
            lease_id: record.lease_id.clone(),
            slug: record.slug.clone(),
            made_at: record.created_at.clone(),
        }
    }
}

/// `pool fill --json`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct FilledView {
    /// What the leases of this pool have alike.
    pool: String,
    /// How many there are to be.
    size: u32,
    /// The ids of those that were made now.
    made: Vec<String>,
    /// Those that wait, the oldest first.
    members: Vec<MemberView>,
}

/// `pool drain --json`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct DrainedView {
    /// The ids of the leases that were ended.
    drained: Vec<String>,
}

/// Fills the pool.
pub(in crate::commands) fn fill(ctx: &Ctx<'_>, args: &PoolFillArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    KvmHost::none_for(&settings, "crabbox pool fill")?;
    let plan = firecracker::plan(&settings)?;
    let engine = engine::adopting(ctx)?;
    let filled = pool::fill(&engine, &plan, &engine::interrupts()?, &mut |lease| {
        if !args.json {
            ctx.printer.line(format_args!("pooled {lease}"));
        }
    })
    .inspect_err(|error| console_tail(ctx.printer, error.console()))?;
    if args.json {
        ctx.printer.json(&FilledView {
            pool: filled.key,
            size: filled.size,
            made: filled.made,
            members: filled.members.iter().map(MemberView::new).collect(),
        })?;
    } else {
        ctx.printer.line(format_args!(
            "pool={} members={} size={}",
            filled.key,
            filled.members.len(),
            filled.size
        ));
    }
    Ok(Exit::SUCCESS)
}

/// Ends the waiting leases.
pub(in crate::commands) fn drain(ctx: &Ctx<'_>, args: &PoolDrainArgs) -> Result<Exit, CommandError> {
    // The flags are only checked: `drain` empties all pools of this user, whatever their leases are made of.
    ctx.settings_on_leases(&args.keys.values)?;
    let engine = engine::adopting(ctx)?;
    let drained = pool::drain(&engine, &engine::interrupts()?, &mut |lease| {
        if !args.json {
            ctx.printer.line(format_args!("drained {lease}"));
        }
    })?;
    if args.json {
        ctx.printer.json(&DrainedView { drained })?;
    }
    Ok(Exit::SUCCESS)
}

/// `__fill`: fills the pool named by the order on standard input; started by a lease's supervisor, never by a user.
pub(in crate::commands) fn refill(ctx: &Ctx<'_>) -> Result<Exit, CommandError> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map(std::fs::File::from).map_err(OrderError::Input)?;
    let order = protocol::read_request(&mut BufReader::new(input)).map_err(OrderError::Request)?;
    let engine = crabbox_machine::context::Engine {
        places: order.places.clone().into(),
        ..engine::looking(ctx)?
    };
    pool::refill(&engine, &order, &engine::interrupts()?)?;
    Ok(Exit::SUCCESS)
}
