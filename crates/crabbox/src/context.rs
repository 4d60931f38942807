//! The context passed to every command.

use std::path::PathBuf;

use crabbox_core::config::{FlagValue, Resolution};
use crabbox_workspace::sync::{self, Repo};

use crate::env::{Env, EnvError};
use crate::settings::{self, Loaded, SettingsError};
use crate::ui::{CommandError, Printer};

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Ctx<'a> {
    /// The environment as it was at the start.
    pub(crate) env: Env,
    /// Where text goes.
    pub(crate) printer: &'a Printer,
}

impl Ctx<'_> {
    /// The root of the current repository, for which leases are claimed; outside of a repository, the current
    /// directory.
    pub(crate) fn root(&self) -> Result<PathBuf, EnvError> {
        Ok(sync::root(self.env.cwd()?))
    }

    /// The same with everything that a sync needs.
    pub(crate) fn repo(&self) -> Result<Repo, CommandError> {
        Ok(sync::look(self.env.cwd()?)?)
    }

    /// The configuration from all layers with these flags on top; prints the warnings.
    pub(crate) fn settings(&self, flags: &[FlagValue]) -> Result<Resolution, SettingsError> {
        let loaded = self.load(flags)?;
        match loaded.faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(loaded.resolution),
        }
    }

    /// The same for commands on existing leases. The repository does not matter to those: its unreadable
    /// files are reported and left out, because a broken line of configuration must not keep anyone from
    /// giving a machine back.
    pub(crate) fn settings_on_leases(&self, flags: &[FlagValue]) -> Result<Resolution, SettingsError> {
        let loaded = self.load(flags)?;
        for fault in &loaded.faults {
            self.printer
                .warn(format_args!("{}; left out", crabbox_core::fault::chain(fault)));
        }
        Ok(loaded.resolution)
    }

    fn load(&self, flags: &[FlagValue]) -> Result<Loaded, SettingsError> {
        let loaded = settings::load(&self.env, flags)?;
        for warning in &loaded.notices {
            self.printer.warn_once(warning);
        }
        for warning in &loaded.resolution.warnings {
            self.printer.warn_once(warning);
        }
        Ok(loaded)
    }
}
