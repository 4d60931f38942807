//! Diagnostics on standard error: what `-v`, `-vv` and `CRABBOX_LOG` ask for.
//!
//! They go through the printer, so that they neither drive a terminal nor break the JSON lines of `--json-events`. Nothing may be
//! logged that could be a secret: values of variables, keys, tokens, the user's command; a child process is named by its program.

use std::io;

use crabbox_machine::log_filter::{LogFilter, LogFilterError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

use super::Printer;
use crate::env::Env;

/// The variable with the filter of the command line and of the supervisors that it starts.
const VARIABLE: &str = "CRABBOX_LOG";

/// What the flags ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Nothing beyond what the command says.
    Plain,
    /// `-v`: what is done and how long it takes.
    Verbose,
    /// `-vv`: every detail.
    Detailed,
}

/// The filter of the environment, if it has one.
pub(crate) fn filter(env: &Env) -> Result<Option<LogFilter>, LogFilterError> {
    env.os(VARIABLE)
        .map(|text| text.to_string_lossy().parse())
        .transpose()
}

/// Shows diagnostics from here on if somebody wants them. A flag wins over the variable, which is read all the same: a wrong one
/// is never passed over.
pub(crate) fn show(printer: &'static Printer, verbosity: Verbosity, env: &Env) -> Result<(), LogFilterError> {
    let variable = filter(env)?;
    let wanted = match verbosity {
        Verbosity::Plain => variable,
        Verbosity::Verbose => Some(LogFilter::level(LevelFilter::DEBUG)),
        Verbosity::Detailed => Some(LogFilter::level(LevelFilter::TRACE)),
    };
    let Some(wanted) = wanted else { return Ok(()) };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .without_time()
        .with_writer(move || Note {
            printer,
            text: Vec::new(),
        })
        .with_filter(wanted.into_targets());
    // This is the only place of the command line that installs one; a second call would change nothing.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).ok();
    Ok(())
}

/// The text of one event, told when it is whole.
struct Note {
    printer: &'static Printer,
    text: Vec<u8>,
}

impl io::Write for Note {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        self.printer.note(text.trim_end());
    }
}
