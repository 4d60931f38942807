//! `provision`: prepares hosts for the end-to-end tests or for trying things by hand.

use std::process::ExitCode;

use anyhow::Result;

use crate::site;

/// Builds, boots and installs the labs `names`; or prepares this machine instead, if its KVM works.
pub(crate) fn main(names: &[String]) -> Result<ExitCode> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    site::choose_for_tests(&names)?;
    eprintln!("xtask: ready for the tests; a lab is entered with: cargo xtask lab ssh");
    Ok(ExitCode::SUCCESS)
}
