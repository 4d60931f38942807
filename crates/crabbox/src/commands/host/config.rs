//! `config path`, `config show`, `config explain`.

mod explain;
mod view;

use crabbox_core::config::jobs::Job;
use crabbox_core::config::{Resolution, Settings};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::registry;
use crabbox_engine::provider::terms::Terms;

use crate::args::ConfigShowArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

pub(in crate::commands) use explain::{Explanation, run as explain};
pub(in crate::commands) use view::ConfigView;

/// `config path`: the user's file, whatever `CRABBOX_CONFIG` says, as in the Go program.
pub(in crate::commands) fn path(ctx: &Ctx<'_>) -> Result<Exit, CommandError> {
    ctx.printer.line(ctx.env.user_config()?.display());
    Ok(Exit::SUCCESS)
}

/// The settings as lines for a report, without secrets.
pub(in crate::commands) fn described(settings: &Settings) -> Vec<String> {
    let which = settings.provider().ok();
    // A report must work even with invalid settings, so avoid lookups that may refuse them.
    let terms = which.filter(|which| !registry::capabilities(*which).has(Capability::MakesMachine));
    let terms = terms.and_then(|which| registry::terms(which, settings).ok());
    let terms = terms.unwrap_or_else(|| Terms::general(settings));
    // Jobs do not belong in the report.
    let no_jobs = std::iter::empty::<(&String, &Job)>();
    view::ConfigView::new(settings, terms, no_jobs).lines()
}

/// `config show`: also runs the checks of the chosen provider.
pub(in crate::commands) fn show(ctx: &Ctx<'_>, args: &ConfigShowArgs) -> Result<Exit, CommandError> {
    let Resolution { settings, jobs, .. } = ctx.settings(&args.keys.values)?;
    let terms = match settings.provider() {
        Ok(which) => registry::terms(which, &settings)?,
        Err(_) if settings.provider.is_default() => Terms::general(&settings),
        Err(error) => return Err(error.into()),
    };
    let readable = jobs.iter().filter_map(|(name, job)| match job {
        Ok(job) => Some((name, job)),
        Err(error) => {
            ctx.printer.warn(error);
            None
        }
    });
    let view = ConfigView::new(&settings, terms, readable);
    if args.json {
        ctx.printer.json(&view)?;
    } else {
        ctx.printer
            .line(format_args!("config={}", ctx.env.user_config()?.display()));
        for line in view.lines() {
            ctx.printer.line(line);
        }
    }
    Ok(Exit::SUCCESS)
}
