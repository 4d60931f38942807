//! What every command is given.

use crabbox_core::config::{FlagValue, Resolution};

use crate::env::Env;
use crate::settings::{self, SettingsError};
use crate::ui::Printer;

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Ctx<'a> {
    /// The environment as it was at the start.
    pub(crate) env: Env,
    /// Where text goes.
    pub(crate) printer: &'a Printer,
}

impl Ctx<'_> {
    /// The configuration of all layers with these flags on top; warnings are printed.
    pub(crate) fn settings(&self, flags: &[FlagValue]) -> Result<Resolution, SettingsError> {
        let loaded = settings::load(&self.env, flags)?;
        for warning in &loaded.notices {
            self.printer.warn(warning);
        }
        for warning in &loaded.resolution.warnings {
            self.printer.warn(warning);
        }
        Ok(loaded.resolution)
    }
}
