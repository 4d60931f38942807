//! One file per command: each gathers what the engine needs, calls it, and words the outcome.

mod documents;
mod engine;
mod held;
mod host;
mod lease;
mod reference;
mod serve;
mod supervise;
mod work;

use std::ffi::OsString;

use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Provider};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::{registry, route};

use crate::args::{
    self, AdapterCommand, ClaimsCommand, Command, CompletionsArgs, ConfigCommand, MachineCommand, Parsed,
    PoolCommand, SetupCommand,
};
use crate::context::Ctx;
use crate::env::Env;
use crate::goflags::{Refused, Stop};
use crate::settings;
use crate::ui::{CommandError, Exit, Printer, show_log};

/// Runs the program on an argument vector, the program's name included.
pub(crate) fn main(argv: &[OsString], env: Env, printer: &'static Printer) -> Result<Exit, CommandError> {
    match argv.get(1).and_then(|word| word.to_str()) {
        Some("-v" | "--version" | "-version") => {
            printer.line(env!("CARGO_PKG_VERSION"));
            return Ok(Exit::SUCCESS);
        }
        Some("help") => return help(&argv[2..], printer),
        None if argv.len() < 2 => {
            help(&[], printer)?;
        }
        _ => {}
    }
    match args::parse_with_flags(argv) {
        // A supervisor has its own log; nobody reads its standard error.
        Ok(Parsed {
            command: Command::Supervise(args),
            ..
        }) => supervise::run(&Ctx { env, printer }, &args),
        Ok(Parsed {
            command,
            verbosity,
            given,
        }) => {
            show_log(printer, verbosity, &env)?;
            dispatch(&Ctx { env, printer }, command).map_err(|error| error.completed(&given))
        }
        Err(Stop::Help(path)) => help(&path.into_iter().map(OsString::from).collect::<Vec<_>>(), printer),
        Err(Stop::Usage(error)) => Err(error.into()),
        Err(Stop::Refused(refused)) => Err(refused.by(provider(&env, &refused)).into()),
    }
}

/// The provider that the command would have used: the lease's, if it names one.
fn provider(env: &Env, refused: &Refused) -> &'static str {
    let flags: Vec<FlagValue> = refused
        .provider
        .iter()
        .map(|name| FlagValue {
            key: Name::ProviderName,
            values: vec![name.clone()],
        })
        .collect();
    let settings = settings::load(env, &flags).map(|loaded| loaded.resolution.settings);
    let chosen = settings.ok().and_then(|settings| match &refused.lease {
        Some(lease) => route::provider(&env.places().ok()?, &settings, lease).ok(),
        None => settings.provider().ok(),
    });
    let usual = registry::with(Capability::KeepsRecords);
    chosen.or(usual).map_or("", Provider::name)
}

/// Prints the help of the command with this path, as far as the path is known.
fn help(path: &[OsString], printer: &Printer) -> Result<Exit, CommandError> {
    let mut root = args::command();
    let mut command = &mut root;
    for word in path {
        let known = word
            .to_str()
            .is_some_and(|word| command.find_subcommand(word).is_some());
        if !known {
            let error = crate::goflags::unknown_command(command, &word.to_string_lossy());
            return Err(error.into());
        }
        command = command
            .find_subcommand_mut(word)
            .expect("it was found a line above");
    }
    let text = command.render_help().ansi().to_string();
    // Short and long help are the same here.
    let text = text.replace("Print help (see more with '--help')", "Print help");
    printer.lines(text.trim_end());
    Ok(Exit::SUCCESS)
}

fn dispatch(ctx: &Ctx<'_>, command: Command) -> Result<Exit, CommandError> {
    match command {
        Command::Warmup(args) => lease::warmup::run(ctx, &args),
        Command::Run(args) => work::run::run(ctx, &(*args).into()),
        Command::Ssh(args) => work::ssh::run(ctx, &args),
        Command::Connect(args) => work::connect::run(ctx, &args),
        Command::Status(args) => lease::status::run(ctx, &args),
        Command::List(args) => lease::list::run(ctx, &args, args.all),
        Command::Pool(PoolCommand::List(args)) => lease::list::run(ctx, &args, true),
        Command::Pool(PoolCommand::Fill(args)) => lease::pool::fill(ctx, &args),
        Command::Pool(PoolCommand::Drain(args)) => lease::pool::drain(ctx, &args),
        Command::Stop(args) => lease::stop::run(ctx, &args),
        Command::Inspect(args) => lease::inspect::run(ctx, &args),
        Command::Cleanup(args) | Command::Machine(MachineCommand::Cleanup(args)) => {
            lease::cleanup::run(ctx, &args)
        }
        Command::Heartbeat(args) => lease::heartbeat::run(ctx, &args),
        Command::Logs(args) => lease::logs::run(ctx, &args),
        Command::Cp(args) => work::cp::run(ctx, &args),
        Command::Tunnel(args) => work::tunnel::run(ctx, &args),
        Command::Ports(args) => work::ports::run(ctx, &args),
        Command::Cache(command) => work::cache::run(ctx, &command),
        Command::Bench(command) => work::bench::run(ctx, &command),
        Command::Pause(args) => lease::unsupported::pause(ctx, &args, "pause"),
        Command::Resume(args) => lease::unsupported::pause(ctx, &args, "resume"),
        Command::Watch(args) => work::watch::run(ctx, &args),
        Command::Job(command) => work::job::run(ctx, &command),
        Command::Init(args) => host::init::run(ctx, &args),
        Command::Pull(args) => work::pull::run(ctx, &args),
        Command::Prewarm(args) => lease::prewarm::run(ctx, &args),
        Command::SyncPlan(args) => work::sync_plan::run(ctx, &args),
        Command::Doctor(args) => host::doctor::run(ctx, &args),
        Command::Setup(SetupCommand::Firecracker(args)) => host::setup::run(ctx, &args),
        Command::Image(command) => host::image::run(ctx, &command),
        Command::Claims(ClaimsCommand::List(args)) => host::claims::run(ctx, &args),
        Command::Config(ConfigCommand::Path) => host::config::path(ctx),
        Command::Config(ConfigCommand::Show(args)) => host::config::show(ctx, &args),
        Command::Config(ConfigCommand::Explain(args)) => host::config::explain(ctx, &args),
        Command::Providers(args) => host::providers::run(ctx, &args),
        Command::Adapter(AdapterCommand::External(args)) => lease::adapter::run(ctx, &args),
        Command::Verify(args) => host::verify::run(ctx, &args),
        Command::Proof(args) => host::proof::run(ctx, &args),
        Command::Completions(args) => Ok(completions(ctx, &args)),
        Command::Version => {
            ctx.printer.line(env!("CARGO_PKG_VERSION"));
            Ok(Exit::SUCCESS)
        }
        Command::Reference(args) => reference::run(ctx, &args),
        Command::Supervise(args) => supervise::run(ctx, &args),
        Command::Serve(args) => serve::run(ctx, &args),
        Command::Proxy(args) => serve::proxy(ctx, &args),
        Command::Hold(args) => held::hold(ctx, &args),
        Command::Epilog(args) => held::epilog(ctx, &args),
        Command::Health(args) => held::health(ctx, &args),
        Command::Fill => lease::pool::refill(ctx),
        Command::Probe(args) => host::probe::run(ctx, &args),
    }
}

fn completions(ctx: &Ctx<'_>, args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "crabbox", &mut script);
    ctx.printer.bytes(&script);
    Exit::SUCCESS
}
