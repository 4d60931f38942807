//! `config path`, `config show`, `config explain`.

mod explain;
mod view;

use crabbox_core::config::Settings;
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

/// The settings in lines, for a report; no secret is among them.
pub(in crate::commands) fn described(settings: &Settings) -> Vec<String> {
    let which = settings.provider().ok();
    // A report is there for settings that make no sense, too, so it asks nothing that may be refused.
    let terms = which.filter(|which| !registry::capabilities(*which).has(Capability::MakesMachine));
    let terms = terms.and_then(|which| registry::terms(which, settings).ok());
    view::ConfigView::new(settings, terms.unwrap_or_else(|| Terms::general(settings))).lines()
}

/// `config show`: also checks what the chosen provider would check.
pub(in crate::commands) fn show(ctx: &Ctx<'_>, args: &ConfigShowArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    let terms = match settings.provider() {
        Ok(which) => registry::terms(which, &settings)?,
        Err(_) if settings.provider.is_default() => Terms::general(&settings),
        Err(error) => return Err(error.into()),
    };
    let view = ConfigView::new(&settings, terms);
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
