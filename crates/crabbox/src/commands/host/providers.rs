//! `providers`: which ones exist, what each can do, and which suits a use.
//!
//! All of it is compiled in. It must never read the configuration, inspect this host or use the network.

mod catalogue;
mod describe;
mod filter;
mod recommend;
mod use_case;

use crate::args::{ProvidersArgs, ProvidersCommand};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(in crate::commands) use catalogue::Entry;
pub(in crate::commands) use describe::Description;
pub(in crate::commands) use filter::FilterValues;
pub(in crate::commands) use recommend::Recommendation;

/// `providers` and its commands.
pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ProvidersArgs) -> Result<Exit, CommandError> {
    match &args.command {
        Some(ProvidersCommand::Describe(args)) => describe::run(ctx, args),
        Some(ProvidersCommand::Filters(args)) => filter::run(ctx, args),
        Some(ProvidersCommand::Recommend(args)) => recommend::run(ctx, args),
        None => list(ctx, args),
    }
}

fn list(ctx: &Ctx<'_>, args: &ProvidersArgs) -> Result<Exit, CommandError> {
    let entries = filter::chosen(&catalogue::entries(), &args.filters)?;
    if args.json {
        ctx.printer.json(&entries)?;
    } else {
        entries
            .iter()
            .flat_map(Entry::lines)
            .for_each(|line| ctx.printer.line(line));
    }
    Ok(Exit::SUCCESS)
}
