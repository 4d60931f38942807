//! `cleanup`: gives back every lease that nobody needs any more, and says why.

use crabbox_core::fault::Kind;
use crabbox_engine::release::{self, Decision, Subject};

use crate::args::CleanupArgs;
use crate::commands::acquire;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(super) fn run(ctx: &Ctx<'_>, args: &CleanupArgs) -> Result<Exit, CommandError> {
    ctx.settings(&args.keys.values)?;
    let engine = acquire::engine(ctx)?;
    let decisions = release::cleanup(&engine, args.dry_run, &mut |decision| {
        show(ctx, args.dry_run, decision)
    })?;
    if decisions.iter().any(|decision| decision.error.is_some()) {
        return Err(CommandError::silent(Kind::Remote));
    }
    Ok(Exit::SUCCESS)
}

fn show(ctx: &Ctx<'_>, dry_run: bool, decision: &Decision) {
    let Decision { lease, reason, .. } = decision;
    let remove = if dry_run { "would remove" } else { "remove" };
    match (&decision.subject, decision.remove) {
        (Subject::Lease { vmid }, true) => {
            ctx.printer.line(format_args!(
                "{remove} firecracker lease={lease} vmid={vmid} reason={reason}"
            ));
        }
        (Subject::Lease { vmid }, false) => {
            ctx.printer.note(format_args!(
                "skip firecracker lease={lease} vmid={vmid} reason={reason}"
            ));
        }
        (Subject::Directory, true) => {
            ctx.printer.line(format_args!(
                "{remove} firecracker lease={lease} vmid=- reason={reason}"
            ));
        }
        (Subject::Directory, false) => {
            ctx.printer.note(format_args!(
                "skip firecracker lease={lease} vmid=- reason={reason}"
            ));
        }
        (Subject::Claim { slug }, _) => {
            ctx.printer.line(format_args!(
                "{remove} firecracker claim lease={lease} slug={slug} reason={reason}"
            ));
        }
    }
    if let Some(error) = &decision.error {
        ctx.printer.warn(format_args!(
            "lease {lease}: {}",
            crabbox_engine::teardown::chain(error)
        ));
    }
}
