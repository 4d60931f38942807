//! `config path`, `config show`, `config explain`.

mod explain;
mod view;

use crabbox_core::config::{Provider, Settings, firecracker};

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
    view::ConfigView::new(settings, None).lines()
}

/// `config show`: also checks what the chosen provider would check.
pub(in crate::commands) fn show(ctx: &Ctx<'_>, args: &ConfigShowArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    let plan = match settings.provider() {
        Ok(Provider::Firecracker) => Some(firecracker::plan(&settings)?),
        _ => None,
    };
    if !settings.provider.is_default() {
        settings.provider()?;
    }
    let view = ConfigView::new(&settings, plan.as_ref());
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
