//! One file a command: each gathers what the engine needs, calls it, and chooses the words for what came of it.

mod acquire;
mod claims;
mod cleanup;
mod compose;
mod config;
mod connect;
mod cp;
mod doctor;
mod documents;
mod entry;
mod heartbeat;
mod image;
mod init;
mod inspect;
mod job;
mod list;
mod logs;
mod ports;
mod prewarm;
mod progress;
mod providers;
mod pull;
mod reference;
mod route;
mod run;
mod setup;
mod ssh;
mod stages;
mod status;
mod stop;
mod supervise;
mod sync_plan;
mod tunnel;
mod unsupported;
mod views;
mod warmup;
mod watch;

use std::ffi::OsString;

use crate::args::{
    self, ClaimsCommand, Command, CompletionsArgs, ConfigCommand, MachineCommand, PoolCommand, SetupCommand,
};
use crate::context::Ctx;
use crate::env::Env;
use crate::goflags::Stop;
use crate::ui::{CommandError, Exit, Printer};

/// Runs the program on an argument vector, the program's name included.
pub(crate) fn main(argv: &[OsString], env: Env, printer: &Printer) -> Result<Exit, CommandError> {
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
    match args::parse(argv) {
        Ok(command) => dispatch(&Ctx { env, printer }, command),
        Err(Stop::Help(path)) => help(&path.into_iter().map(OsString::from).collect::<Vec<_>>(), printer),
        Err(Stop::Usage(error)) => Err(error.into()),
    }
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
    printer.line(text.trim_end());
    Ok(Exit::SUCCESS)
}

fn dispatch(ctx: &Ctx<'_>, command: Command) -> Result<Exit, CommandError> {
    match command {
        Command::Warmup(args) => warmup::run(ctx, &args),
        Command::Run(args) => run::run(ctx, &args),
        Command::Ssh(args) => ssh::run(ctx, &args),
        Command::Connect(args) => connect::run(ctx, &args),
        Command::Status(args) => status::run(ctx, &args),
        Command::List(args) | Command::Pool(PoolCommand::List(args)) => list::run(ctx, &args),
        Command::Stop(args) => stop::run(ctx, &args),
        Command::Inspect(args) => inspect::run(ctx, &args),
        Command::Cleanup(args) | Command::Machine(MachineCommand::Cleanup(args)) => cleanup::run(ctx, &args),
        Command::Heartbeat(args) => heartbeat::run(ctx, &args),
        Command::Logs(args) => logs::run(ctx, &args),
        Command::Cp(args) => cp::run(ctx, &args),
        Command::Tunnel(args) => tunnel::run(ctx, &args),
        Command::Ports(args) => ports::run(ctx, &args),
        Command::Pause(args) => unsupported::pause(ctx, &args, "pause"),
        Command::Resume(args) => unsupported::pause(ctx, &args, "resume"),
        Command::Watch(args) => watch::run(ctx, &args),
        Command::Job(command) => job::run(ctx, &command),
        Command::Init(args) => init::run(ctx, &args),
        Command::Pull(args) => pull::run(ctx, &args),
        Command::Prewarm(args) => prewarm::run(ctx, &args),
        Command::SyncPlan(args) => sync_plan::run(ctx, &args),
        Command::Doctor(args) => doctor::run(ctx, &args),
        Command::Setup(SetupCommand::Firecracker(args)) => setup::run(ctx, &args),
        Command::Image(command) => image::run(ctx, &command),
        Command::Claims(ClaimsCommand::List(args)) => claims::run(ctx, &args),
        Command::Config(ConfigCommand::Path) => config::path(ctx),
        Command::Config(ConfigCommand::Show(args)) => config::show(ctx, &args),
        Command::Config(ConfigCommand::Explain(args)) => config::explain(ctx, &args),
        Command::Providers(args) => providers::run(ctx, &args),
        Command::Completions(args) => Ok(completions(ctx, &args)),
        Command::Version => {
            ctx.printer.line(env!("CARGO_PKG_VERSION"));
            Ok(Exit::SUCCESS)
        }
        Command::Reference(args) => reference::run(ctx, &args),
        Command::Supervise(args) => supervise::run(ctx, &args),
    }
}

fn completions(ctx: &Ctx<'_>, args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "crabbox", &mut script);
    ctx.printer.bytes(&script);
    Exit::SUCCESS
}
