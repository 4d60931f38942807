//! `provision`: a lab with everything in it, to try things by hand.

use std::process::ExitCode;

use anyhow::Result;

use crate::payload;
use crate::site::Site;

/// Builds, boots and installs.
pub(crate) fn main(lab: &str) -> Result<ExitCode> {
    let payload = payload::ensure()?;
    Site::lab(lab, &payload)?;
    eprintln!("xtask: the lab is ready: cargo xtask lab ssh");
    Ok(ExitCode::SUCCESS)
}
