//! `sync-plan`: what a sync of the working tree would transfer, without a lease.

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::size::human_bytes;
use crabbox_workspace::sync_plan::{self, Limits, Reason, Status, SyncPlan, Volume, Weight};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::SyncPlanArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The document; field names are the Go program's.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct PlanView<'a> {
    candidate: VolumeView,
    dirty_delta: VolumeView,
    deleted_tracked_paths: usize,
    protected_tracked_files: ProtectedView<'a>,
    guardrail: GuardrailView<'a>,
    top_files: &'a [Weight],
    top_dirs: &'a [Weight],
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct VolumeView {
    files: u64,
    bytes: u64,
    human_bytes: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ProtectedView<'a> {
    count: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<ExampleView<'a>>,
}

/// A tracked file that a built-in exclude would have dropped.
#[derive(Debug, Serialize, JsonSchema)]
struct ExampleView<'a> {
    path: &'a str,
    pattern: &'a str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct GuardrailView<'a> {
    scope: &'static str,
    #[serde(flatten)]
    volume: VolumeView,
    limits: Limits,
    allow_large: bool,
    status: Status,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    reasons: &'a [Reason],
}

/// The limit is not positive.
#[derive(Debug, thiserror::Error)]
#[error("sync-plan --limit must be positive")]
struct NoLimit;

impl Fault for NoLimit {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &SyncPlanArgs) -> Result<Exit, CommandError> {
    if args.limit <= 0 {
        return Err(NoLimit.into());
    }
    let settings = ctx.settings(&[])?.settings;
    let plan = sync_plan::plan(
        ctx.env.cwd()?,
        &settings.sync,
        usize::try_from(args.limit).unwrap_or(usize::MAX),
    )?;
    if args.json {
        ctx.printer.json(&PlanView::new(&plan))?;
    } else {
        for line in lines(&plan) {
            ctx.printer.line(line);
        }
    }
    Ok(Exit::SUCCESS)
}

fn lines(plan: &SyncPlan) -> Vec<String> {
    let mut lines = vec![format!(
        "sync candidate: {} files, {}",
        plan.candidate.files,
        human_bytes(plan.candidate.bytes)
    )];
    lines.extend(plan.protected_line.clone());
    lines.extend(plan.judgement.warnings());
    if plan.deleted > 0 {
        lines.push(format!("deleted tracked paths: {}", plan.deleted));
    }
    for (title, weights) in [("top files:", &plan.top_files), ("top dirs:", &plan.top_dirs)] {
        lines.push(title.to_owned());
        // A path may contain anything; a line break in it must not look like another entry.
        lines.extend(weights.iter().map(|weight| {
            let path: String = weight.path.escape_debug().collect();
            format!("  {:<10} {path}", weight.human_bytes)
        }));
    }
    lines
}

impl<'a> PlanView<'a> {
    fn new(plan: &'a SyncPlan) -> Self {
        Self {
            candidate: plan.candidate.into(),
            dirty_delta: plan.dirty.into(),
            deleted_tracked_paths: plan.deleted,
            protected_tracked_files: ProtectedView {
                count: plan.protected,
                examples: plan
                    .protected_examples
                    .iter()
                    .map(|file| ExampleView {
                        path: &file.path,
                        pattern: &file.pattern,
                    })
                    .collect(),
            },
            guardrail: GuardrailView {
                scope: plan.judgement.counted.word(),
                volume: plan.judgement.volume.into(),
                limits: plan.judgement.limits,
                allow_large: plan.judgement.allow_large,
                status: plan.judgement.status,
                reasons: &plan.judgement.reasons,
            },
            top_files: &plan.top_files,
            top_dirs: &plan.top_dirs,
        }
    }
}

impl From<Volume> for VolumeView {
    fn from(volume: Volume) -> Self {
        Self {
            files: volume.files,
            bytes: volume.bytes,
            human_bytes: human_bytes(volume.bytes),
        }
    }
}
