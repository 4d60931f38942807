//! Diagnostics on standard error, as requested by `-v`, `-vv` and `CRABBOX_LOG`.
//!
//! They go through the printer, so that they neither control a terminal nor break the JSON lines of
//! `--json-events`. Nothing may be logged that could be a secret: variables' values, keys, tokens, the user's
//! command; a child process is identified by its program only.

use std::io;

use crabbox_machine::log_filter::{LogFilter, LogFilterError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

use super::Printer;
use crate::env::Env;

/// The variable with the filter of the command line and of the supervisors that it starts.
const VARIABLE: &str = "CRABBOX_LOG";

/// The verbosity that the flags ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// No diagnostics.
    Plain,
    /// `-v`: what is done and how long it takes.
    Verbose,
    /// `-vv`: every detail.
    Detailed,
}

/// The filter set in the environment, if any.
pub(crate) fn filter(env: &Env) -> Result<Option<LogFilter>, LogFilterError> {
    env.os(VARIABLE)
        .map(|text| text.to_string_lossy().parse())
        .transpose()
}

/// Enables diagnostics if they were requested. A flag overrides the variable, which is parsed anyway, so that
/// an invalid filter is always reported.
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
    // This is the only place that installs a subscriber; a second call would change nothing.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).ok();
    Ok(())
}

/// The text of one event, printed when complete.
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
        self.printer.notes(text.trim_end());
    }
}
