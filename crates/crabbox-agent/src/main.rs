//! The agent's binary; the code is in the library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    crabbox_agent::main()
}
