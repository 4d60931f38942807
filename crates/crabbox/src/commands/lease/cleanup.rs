//! `cleanup`: gives back every lease that is no longer needed, and says why.

use crabbox_core::fault::Kind;
use crabbox_machine::lifecycle::adopt;
use crabbox_machine::lifecycle::release::{Decision, Subject};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::CleanupArgs;
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// What `--json` prints, once, when everything is done.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct CleanupView {
    /// The provider, by its canonical name.
    provider: &'static str,
    /// Whether nothing was removed.
    dry_run: bool,
    /// What was looked at, in the order in which it was decided.
    decisions: Vec<DecisionView>,
}

/// One decision.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct DecisionView {
    /// The lease id; `-` for an object without a record.
    lease: String,
    /// `lease`, `directory`, `claim`, or the kind of object that was found without a record, or not looked for.
    subject: &'static str,
    /// `remove`, `would_remove` or `skip`.
    action: &'static str,
    /// Why; `not_looked_for` where something may be there, `needs_cap_net_admin` where this user can have made nothing of the kind.
    reason: String,
    /// Why a removal, or a search, did not work out.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &CleanupArgs) -> Result<Exit, CommandError> {
    let (engine, provider) = route::to_provider_only_looking(ctx, &args.keys.values)?;
    let decisions = provider.cleanup(args.dry_run, &mut |decision| {
        if !args.json {
            show(ctx, args.dry_run, decision);
        }
    })?;
    if !args.dry_run {
        // The remaining leases live; give a new supervisor to any that lost its own.
        adopt::orphans(&engine).ok();
    }
    if args.json {
        ctx.printer.json(&CleanupView {
            provider: provider.name(),
            dry_run: args.dry_run,
            decisions: decisions
                .iter()
                .map(|decision| DecisionView::new(decision, args.dry_run))
                .collect(),
        })?;
    }
    if decisions.iter().any(|decision| decision.error.is_some()) {
        return Err(CommandError::silent(Kind::Remote));
    }
    Ok(Exit::SUCCESS)
}

impl DecisionView {
    fn new(decision: &Decision, dry_run: bool) -> Self {
        Self {
            lease: decision.lease.clone(),
            subject: match decision.subject {
                Subject::Lease { .. } => "lease",
                Subject::Directory => "directory",
                Subject::Claim { .. } => "claim",
                Subject::Object { kind, .. } => kind,
            },
            action: match (decision.remove, dry_run) {
                (true, false) => "remove",
                (true, true) => "would_remove",
                (false, _) => "skip",
            },
            reason: decision.reason.clone(),
            error: decision
                .error
                .as_ref()
                .map(|error| crabbox_core::fault::chain(error)),
        }
    }
}

fn show(ctx: &Ctx<'_>, dry_run: bool, decision: &Decision) {
    if decision.remove {
        ctx.printer.line(line(decision, dry_run));
    } else {
        ctx.printer.note(line(decision, dry_run));
    }
    if let Some(error) = &decision.error {
        let subject = match &decision.subject {
            Subject::Object { kind, name } => format!("{kind} {name}"),
            Subject::Lease { .. } | Subject::Directory | Subject::Claim { .. } => {
                format!("lease {}", decision.lease)
            }
        };
        ctx.printer
            .warn(format_args!("{subject}: {}", crabbox_core::fault::chain(error)));
    }
}

/// Reports what happens to one lease, on standard error.
pub(in crate::commands) fn tell(ctx: &Ctx<'_>, dry_run: bool, decision: &Decision) {
    ctx.printer.note(line(decision, dry_run));
}

/// One line per decision, in the Go program's words.
fn line(decision: &Decision, dry_run: bool) -> String {
    let Decision { lease, reason, .. } = decision;
    let verb = match (decision.remove, dry_run) {
        (true, false) => "remove",
        (true, true) => "would remove",
        (false, _) => "skip",
    };
    match &decision.subject {
        Subject::Lease { vmid } => format!("{verb} firecracker lease={lease} vmid={vmid} reason={reason}"),
        Subject::Directory => format!("{verb} firecracker lease={lease} vmid=- reason={reason}"),
        Subject::Claim { slug } => {
            format!("{verb} firecracker claim lease={lease} slug={slug} reason={reason}")
        }
        Subject::Object { kind, name } => format!("{verb} firecracker {kind} name={name} reason={reason}"),
    }
}
