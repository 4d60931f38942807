//! `run`: a command in a lease, with the current working tree. The engine does the work; the wording is here.

mod documents;
mod invocation;
mod next;
mod report;
mod words;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crabbox_engine::run::report::Outcome;
use crabbox_engine::run::request::Work;
use crabbox_engine::run::{self, Given, Ground, Here, RunEnd};
use crabbox_host::signals::Interrupts;

use crate::commands::engine;
use crate::context::Ctx;
use crate::env::EnvError;
use crate::timing::TimingJson;
use crate::ui::{CommandError, Exit};
pub(in crate::commands) use documents::BundledRun;
pub(in crate::commands) use invocation::{Bench, Invocation, Manner};
use words::RunWords;

pub(in crate::commands) fn run(ctx: &Ctx<'_>, invocation: &Invocation) -> Result<Exit, CommandError> {
    if invocation.manner.json_events {
        ctx.printer.tell_events();
    }
    if invocation.manner.verbose {
        ctx.printer.be_verbose();
    }
    // Validate the request before anything else happens.
    let work = Work::new(&invocation.request)?;
    let interrupts = engine::interrupts()?;
    go(ctx, invocation, work, &interrupts, &AtomicBool::default())?.outcome?;
    Ok(Exit::SUCCESS)
}

/// The same for a command that runs others and handles Ctrl-C itself.
pub(in crate::commands) fn within(
    ctx: &Ctx<'_>,
    invocation: &Invocation,
    interrupts: &Interrupts,
) -> Result<Exit, CommandError> {
    observed(ctx, invocation, interrupts).ended
}

/// What is known of a run that another command made.
pub(in crate::commands) struct Observed {
    /// How it ended.
    pub(in crate::commands) ended: Result<Exit, CommandError>,
    /// What became of it; `None` if it was refused before it began.
    pub(in crate::commands) outcome: Option<Outcome>,
    /// Whether timings were recorded, which may be the case even for a failed run.
    pub(in crate::commands) recorded: bool,
}

/// The same, with what a command that is about the run wants to know.
pub(in crate::commands) fn observed(
    ctx: &Ctx<'_>,
    invocation: &Invocation,
    interrupts: &Interrupts,
) -> Observed {
    let recorded = AtomicBool::default();
    let run = Work::new(&invocation.request)
        .map_err(CommandError::from)
        .and_then(|work| go(ctx, invocation, work, interrupts, &recorded));
    let (ended, outcome) = match run {
        Ok(RunEnd { report, outcome, .. }) => (outcome.map_err(CommandError::from), Some(report.outcome)),
        Err(error) => (Err(error), None),
    };
    Observed {
        ended: ended.map(|()| Exit::SUCCESS),
        outcome,
        recorded: recorded.into_inner(),
    }
}

/// Validates a run as far as possible without a machine, so that callers can check before they take a lease
/// for it.
pub(in crate::commands) fn judge(ctx: &Ctx<'_>, invocation: &Invocation) -> Result<(), CommandError> {
    let settings = ctx.settings(&invocation.flags)?.settings;
    Ok(run::judge(&invocation.request, &settings, &here(ctx)?)?)
}

fn go(
    ctx: &Ctx<'_>,
    invocation: &Invocation,
    work: Work,
    interrupts: &Interrupts,
    recorded: &AtomicBool,
) -> Result<RunEnd, CommandError> {
    let started = Instant::now();
    let settings = &ctx.settings(&invocation.flags)?.settings;
    let words = RunWords::new(ctx, invocation, settings, recorded);
    let given = Given {
        request: &invocation.request,
        settings,
        here: &here(ctx)?,
        events: &words,
        started,
    };
    let looked = run::look(given, work)?;
    let end = looked.run(&engine::adopting(ctx)?, interrupts)?;
    if invocation.manner.timing_json {
        let outcome = &end.report.outcome;
        let timing = match &end.ground {
            Ground::Lease(lease) => Some(TimingJson::new(lease, outcome, &invocation.flags)),
            Ground::Nowhere(which) => which.map(|which| TimingJson::without_lease(which.name(), outcome)),
        };
        if let Some(timing) = timing {
            ctx.printer.note_json(&timing)?;
        }
    }
    Ok(end)
}

/// The surroundings that a run depends on.
fn here(ctx: &Ctx<'_>) -> Result<Here, EnvError> {
    let texts = ctx.env.texts();
    Ok(Here {
        cwd: ctx.env.cwd()?.to_owned(),
        variables: texts
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        not_text: ctx.env.not_text().map(str::to_owned).collect(),
        allow_mass_deletions: ctx.env.text("CRABBOX_ALLOW_MASS_DELETIONS") == Some("1"),
    })
}
