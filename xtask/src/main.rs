//! Developer tasks: lab, arch. One file (or folder) a task; this one only names them and turns errors into an exit code.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool: its output is its product"
)]

mod arch;
mod lab;
mod payload;
mod provision;
mod site;
mod stage;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of the crabbox workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// A KVM host without KVM hardware: boot it, enter it, put it away
    Lab(lab::cli::Arguments),
    /// Build everything and install it in a lab
    Provision {
        /// Which lab
        #[arg(long, default_value = "main")]
        name: String,
    },
    /// Check the edges between our crates against the picture in ARCHITECTURE.md
    Arch,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Lab(arguments) => lab::cli::main(&arguments),
        Task::Provision { name } => provision::main(&name),
        Task::Arch => arch::main(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
