//! Lease a throw-away Firecracker microVM, sync the working tree, run a command, release it.
//!
//! The binary only handles arguments and wording: it parses arguments, gathers settings, calls the engine and
//! prints the outcome. It must never decide what happens to a lease.

mod args;
mod command_line;
mod commands;
mod context;
mod env;
mod go;
mod goflags;
mod hint;
mod settings;
mod timing;
mod ui;
mod will_not;

use std::process::ExitCode;

fn main() -> ExitCode {
    crabbox_host::process::note_inherited();
    let env = env::Env::from_process();
    // Leaked, so that it lives as long as the process: logging from any thread goes through it.
    let printer: &'static ui::Printer = Box::leak(Box::new(ui::Printer::standard(&env)));
    let argv: Vec<_> = std::env::args_os().collect();
    let outcome = commands::main(&argv, env, printer);
    ExitCode::from(ui::finish(outcome, printer))
}
