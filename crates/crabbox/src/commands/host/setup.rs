//! `setup`: prepares a host for leases in one command; also offered by commands that find the host not set up.

use std::io::{BufRead as _, IsTerminal as _};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::config::{Settings, firecracker};
use crabbox_core::fault::{Fault, Kind, chain};
use crabbox_engine::host::images::Source;
use crabbox_engine::host::setup::{
    self, ACCOUNT, Ground, Part, Plan, Removal, ServeRequest, ServeSetupError, ServeStep, SetupError,
    SetupRequest, Step,
};
use crabbox_engine::host::warm::{Made, WarmError};
use crabbox_engine::provider::error::LeaseError;
use crabbox_machine::context::Engine;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::SetupArgs;
use crate::commands::engine;
use crate::commands::host::template::{self, WarmView};
use crate::commands::lease::stages::Stages;
use crate::context::Ctx;
use crate::env::Env;
use crate::ui::{CommandError, Exit};

/// Names a bundle to set hosts up from by `run` or `warmup`; read from the environment only, so that no repository can choose one.
const FROM_VARIABLE: &str = "CRABBOX_SETUP_FROM";

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// There is no terminal to ask on.
    #[error("nothing was done: there is no terminal for the confirmation")]
    NoTerminal,
    /// The user said no.
    #[error("nothing was done")]
    Declined,
}

impl Fault for Refused {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoTerminal => {
                vec!["add --yes to proceed, or --dry-run to see what would be done".to_owned()]
            }
            Self::Declined => Vec::new(),
        }
    }
}

/// What `--json` prints at the end.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct SetupView<'a> {
    /// Whether nothing was done.
    dry_run: bool,
    /// What was done, or would be.
    steps: Vec<String>,
    /// The template that was made, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<WarmView<'a>>,
    /// What could be better on this host and is not for setup to change.
    advice: &'a [String],
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &SetupArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    let engine = engine::looking(ctx)?;
    if args.serve {
        check_home(&engine)?;
    }
    if args.remove {
        return remove(ctx, &engine, args);
    }
    let cwd = ctx.env.cwd()?;
    let from = args.from.as_deref().or_else(|| ctx.env.text(FROM_VARIABLE));
    let wanted = SetupRequest {
        from: from.map(|from| Source::named(from, cwd, args.sha256.clone())),
        template: true,
        serve: args.serve.then(|| ServeRequest {
            owners: args.owner.clone(),
            removed: args.remove_owner.clone(),
        }),
    };
    let lease = firecracker::plan(&settings)?;
    let mut plan = setup::plan(&engine, &settings, &lease, &wanted)?;
    match plan.check() {
        Err(error) if args.dry_run => plan.advice.push(error.to_string()),
        checked => checked?,
    }
    if !args.json {
        show(&plan, &|line| ctx.printer.line(line), ctx);
    }
    let mut made = None;
    if !args.dry_run && !plan.steps.is_empty() {
        if !args.yes {
            ask(ctx, "Go ahead?")?;
        }
        apply(ctx, &engine, &plan, args.json)?;
        if plan.makes_template() {
            made = make_template(ctx, &engine, &lease, args.json)?;
        }
    }
    let mut advice = plan.advice.clone();
    if args.serve && !args.dry_run {
        let found = match setup::barriers(&engine, &Ground::of(&engine)) {
            Ok(barriers) => barriers.iter().map(ToString::to_string).collect(),
            // The setup itself succeeded, so this is not an error.
            Err(error) => vec![format!("whether owners get in is not known: {}", chain(&error))],
        };
        for line in found.iter().filter(|_| !args.json) {
            ctx.printer.warn(line);
        }
        advice.extend(found);
    }
    if args.json {
        ctx.printer.json(&SetupView {
            dry_run: args.dry_run,
            template: made.as_ref().map(WarmView::new),
            steps: plan.steps.iter().map(words).collect(),
            advice: &advice,
        })?;
    }
    Ok(Exit::SUCCESS)
}

/// Refuses `--serve` when the environment's directories differ from those that the served account will use; only root has those.
fn check_home(engine: &Engine) -> Result<(), CommandError> {
    if !crabbox_host::process::is_root() {
        return Err(ServeSetupError::NotRoot.into());
    }
    let home = setup::served_home(&Ground::of(engine))?;
    let served = Env::at_home(&home).places()?;
    setup::check_home(&engine.places, &served, &home)?;
    Ok(())
}

/// Sets up a host that a command found unprepared, if the user agrees or in CI; `false` when `error` is about something else.
pub(in crate::commands) fn offer(
    ctx: &Ctx<'_>,
    engine: &Engine,
    settings: &Settings,
    yes: bool,
    error: Option<&LeaseError>,
) -> Result<bool, LeaseError> {
    let ci = matches!(ctx.env.text("CI"), Some("true" | "1"));
    if !yes && !ci && !can_ask(ctx) {
        return Ok(false);
    }
    let cwd = ctx.env.cwd().map_err(LeaseError::new)?;
    let from = ctx.env.text(FROM_VARIABLE);
    let wanted = SetupRequest {
        from: from.map(|from| Source::named(from, cwd, None)),
        // The waiting command gains nothing from a template; only the next one does.
        template: false,
        serve: None,
    };
    let lease = firecracker::plan(settings)?;
    let plan = setup::plan(engine, settings, &lease, &wanted).map_err(LeaseError::new)?;
    plan.check().map_err(LeaseError::new)?;
    if let Some(error) = error {
        ctx.printer
            .note(format_args!("This host is not set up for leases yet: {error}."));
    }
    // Standard output belongs to the original command.
    show(&plan, &|line| ctx.printer.note(line), ctx);
    if !yes && !ci {
        ask(ctx, "Set it up now?").map_err(LeaseError::new)?;
    }
    apply(ctx, engine, &plan, false).map_err(LeaseError::new)?;
    Ok(true)
}

fn apply(ctx: &Ctx<'_>, engine: &Engine, plan: &Plan, json: bool) -> Result<(), SetupError> {
    let stages = Stages::new(ctx.printer, json);
    setup::apply(engine, plan, &stages, &mut |_| {})?;
    stages.done();
    let admits = |step: &Step| matches!(step, Step::Serve(ServeStep::Admit { .. }));
    if !json && plan.steps.iter().any(admits) {
        ctx.printer.note(format_args!(
            "owners set firecracker.host to {ACCOUNT}@ and the name of this host; `crabbox doctor --provider firecracker` there asks it"
        ));
    }
    if !json && !plan.steps.is_empty() {
        ctx.printer
            .note("this host is set up; `crabbox setup firecracker --remove` removes what it installed");
    }
    Ok(())
}

/// Makes the template. Leases boot without one, so any failure except Ctrl-C is only a warning.
fn make_template(
    ctx: &Ctx<'_>,
    engine: &Engine,
    lease: &FirecrackerPlan,
    json: bool,
) -> Result<Option<Made>, CommandError> {
    let stages = Stages::new(ctx.printer, json);
    match setup::template(engine, lease, &engine::interrupts()?, &stages) {
        Ok(made) => {
            stages.done();
            template::tell_leftovers(ctx, &made);
            if !json {
                ctx.printer.line(template::line(&made));
            }
            Ok(Some(made))
        }
        Err(error @ SetupError::Warm(WarmError::Interrupted)) => Err(error.into()),
        Err(error) => {
            ctx.printer.warn(format_args!(
                "no template was made, so leases boot: {}; `crabbox image warm` tries again",
                chain(&error)
            ));
            Ok(None)
        }
    }
}

fn show(plan: &Plan, put: &dyn Fn(&str), ctx: &Ctx<'_>) {
    if plan.steps.is_empty() {
        put("nothing to do: this host is set up");
    }
    for step in &plan.steps {
        put(&words(step));
    }
    for advice in &plan.advice {
        ctx.printer.warn(advice);
    }
}

/// A step in the imperative.
fn words(step: &Step) -> String {
    match step {
        Step::Bundle {
            from,
            image,
            programs,
        } => {
            let what = match (image, programs) {
                (true, true) => "the guest image, and Firecracker if it is in there,",
                (true, false) => "the guest image",
                (false, _) => "Firecracker, if it is in there,",
            };
            format!("take {what} from {from}")
        }
        Step::BuildImage { store } => {
            format!(
                "build a guest image from Debian packages (about a minute) into {}",
                store.display()
            )
        }
        Step::Programs { dir } => format!(
            "fetch Firecracker and its jailer into {}: with pip, from {}, pinned by their digests",
            dir.display(),
            crabbox_engine::host::setup::PROGRAMS_FROM
        ),
        Step::Network { path, .. } => format!("write the CNI network {}", path.display()),
        Step::Serve(step) => serve_words(step),
        Step::Configuration { path } => format!("choose provider firecracker in {}", path.display()),
        Step::Template { memory_mib } => format!(
            "freeze a machine of {memory_mib} MiB for leases to come of, instead of booting (--firecracker-warm off leaves it out)"
        ),
    }
}

/// A step of `--serve`, with everything that it writes.
fn serve_words(step: &ServeStep) -> String {
    match step {
        ServeStep::Account { home } => format!(
            "make the account {ACCOUNT}: of the system, without a password, with the home {}",
            home.display()
        ),
        ServeStep::Expel { path, owner, .. } => {
            format!("take a key of {owner} out of {}", path.display())
        }
        ServeStep::Rewrite { path, line, .. } => {
            format!(
                "have the program where it is now in {}:\n    {line}",
                path.display()
            )
        }
        ServeStep::End { owner } => format!(
            "end what still serves {owner}, and all connections to the account {ACCOUNT}: other owners' come back by themselves"
        ),
        ServeStep::Forget { owner, .. } => format!("forget a key of {owner}"),
        ServeStep::Sudoers { path, text } => {
            let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
            format!(
                "write {}, once visudo has taken it:\n{}",
                path.display(),
                lines.join("\n")
            )
        }
        ServeStep::NoSudoers { path } => format!("remove {}: no owner is left", path.display()),
        ServeStep::Admit { path, line, .. } => format!("add to {}:\n    {line}", path.display()),
    }
}

fn remove(ctx: &Ctx<'_>, engine: &Engine, args: &SetupArgs) -> Result<Exit, CommandError> {
    let mut planned = Vec::new();
    let ground = Ground::of(engine);
    let part = if args.serve {
        Part::Serving
    } else {
        Part::Everything
    };
    setup::remove(engine, &ground, (part, true), &mut |removal| {
        planned.push(removal_words(removal));
    })?;
    if !args.json {
        if planned.is_empty() {
            ctx.printer.line(match part {
                Part::Everything => "nothing to do: setup made nothing on this host",
                Part::Serving => "nothing to do: setup made nothing for remote owners on this host",
            });
        }
        for line in &planned {
            ctx.printer.line(line);
        }
    }
    if !args.dry_run {
        if !planned.is_empty() && !args.yes {
            ask(ctx, "Go ahead?")?;
        }
        // Even with nothing left to remove, there may be a record from a setup that was killed before it made anything.
        setup::remove(engine, &ground, (part, false), &mut |_| {})?;
    }
    if args.json {
        ctx.printer.json(&SetupView {
            dry_run: args.dry_run,
            steps: planned,
            template: None,
            advice: &[],
        })?;
    }
    Ok(Exit::SUCCESS)
}

fn removal_words(removal: &Removal) -> String {
    match removal {
        Removal::Image { digest } => format!("remove image {}", digest.get(..12).unwrap_or(digest)),
        Removal::Template { key } => format!("remove template {}", key.get(..12).unwrap_or(key)),
        Removal::File { path } => format!("remove {}", path.display()),
        Removal::Addresses { dir } => format!("remove {} if no address is given out", dir.display()),
        Removal::Directory { path } | Removal::KeyFile { path } => {
            format!("remove {} if it is empty then", path.display())
        }
        Removal::Account => format!("remove the account {ACCOUNT}, and end the sessions that are open in it"),
        Removal::Key { path, owner } => format!("take a key of {owner} out of {}", path.display()),
        Removal::ChangedKey { path, owner } => format!(
            "leave a line with a key of {owner} in {}: it was changed since",
            path.display()
        ),
        Removal::KeysLeft { path, why } => format!(
            "leave {}: {why}; remove the lines with `{ACCOUNT}-owner-` by hand",
            path.display()
        ),
        Removal::Changed { path } => format!("leave {}: it was changed since", path.display()),
    }
}

fn can_ask(ctx: &Ctx<'_>) -> bool {
    ctx.printer.shows_progress() && std::io::stdin().is_terminal()
}

/// Asks on the terminal; anything but yes means no.
fn ask(ctx: &Ctx<'_>, question: &str) -> Result<(), Refused> {
    if !can_ask(ctx) {
        return Err(Refused::NoTerminal);
    }
    ctx.printer.note(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Refused::Declined)
    }
}
