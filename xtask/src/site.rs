//! The KVM host that leases are made on: this machine where a boot proved its KVM, else the lab.
//!
//! In the lab our program, Firecracker, the image and a CNI network are installed as a user would have them. On this
//! machine nothing is installed and nothing of the user's is touched: state goes below `target/`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Captured;

use crate::lab::{Lab, Options};
use crate::payload::Payload;
use crate::stage::stage;

/// Prepares the lab for leases; run as root in it, more than once if need be.
const INSTALL: &str = include_str!("site/install.sh");
/// Prints one line for each object that a lease could leave behind.
const RESIDUE: &str = include_str!("../../e2e/src/residue.sh");

/// A KVM host with our program on it.
#[derive(Debug)]
pub(crate) struct Site {
    lab: Lab,
}

impl Site {
    /// Starts the lab `name` anew and installs `payload` in it: no test may see what an earlier one left.
    pub(crate) fn lab(name: &str, payload: &Payload) -> Result<Self> {
        crate::lab::down(name)?;
        let options = Options {
            artefacts: Some(payload.artefacts.clone()),
            ..Options::default()
        };
        let site = Self {
            lab: Lab::up(name, &options)?,
        };
        stage("installing crabbox in the lab", || {
            site.install(&payload.crabbox)?;
            site.script(INSTALL)
        })?;
        Ok(site)
    }

    /// Puts the program in its place, under a new inode because an old one may be running.
    fn install(&self, crabbox: &Path) -> Result<()> {
        self.lab
            .copy(&crabbox.to_string_lossy(), "lab:/usr/local/bin/.crabbox.new")?;
        self.script("mv -f /usr/local/bin/.crabbox.new /usr/local/bin/crabbox")
            .map(drop)
    }

    /// Runs `argv` there, whatever its exit code is.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<Captured> {
        self.lab.run(argv)
    }

    /// Runs a shell script there; it must succeed.
    pub(crate) fn script(&self, script: &str) -> Result<Captured> {
        let done = self.lab.run(&["sh", "-c", script])?;
        ensure!(
            done.status.success(),
            "a script failed there: {}",
            done.stderr_text()
        );
        Ok(done)
    }

    /// What a lease could leave behind, as it stands now: one line an object.
    pub(crate) fn residue(&self) -> Result<Vec<String>> {
        let found = self.script(RESIDUE).context("cannot look for residue")?;
        Ok(found.stdout_text().lines().map(str::to_owned).collect())
    }
}
