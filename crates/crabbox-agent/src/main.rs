//! The agent as a program: see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    crabbox_agent::main()
}
