//! The stand-in for the jailer as a program; see [`crabbox_testkit::fake_vmm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    crabbox_testkit::fake_vmm::jailer_main(std::env::args_os().skip(1))
}
