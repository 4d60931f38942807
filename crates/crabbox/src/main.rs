//! Lease a throw-away Firecracker microVM, sync the working tree, run, give it back.
//!
//! The binary only chooses words: it parses arguments, gathers settings, calls the engine and prints what came of it. It must
//! never decide what happens to a lease.

mod args;
mod commands;
mod context;
mod env;
mod go;
mod goflags;
mod settings;
mod timing;
mod ui;

use std::process::ExitCode;

fn main() -> ExitCode {
    let env = env::Env::from_process();
    let printer = ui::Printer::standard(&env);
    let argv: Vec<_> = std::env::args_os().collect();
    let outcome = commands::main(&argv, env, &printer);
    ExitCode::from(ui::finish(outcome, &printer))
}
