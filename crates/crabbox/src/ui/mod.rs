//! Everything the user sees: the printer, JSON as the Go program writes it, and errors with their causes and
//! hints.
//!
//! This is the only place of the program that writes to the terminal and knows exit codes. It must never fail
//! because a reader of the output went away.

mod error;
mod events;
mod json;
mod log;
mod printer;
mod screen;

pub(crate) use error::{CommandError, Exit, told};
pub(crate) use events::Event;
pub(crate) use json::Document;
pub(crate) use log::{Verbosity, filter as log_filter, show as show_log};
pub(crate) use printer::Printer;
pub(crate) use screen::Screen;

/// `value` as Go's encoder writes it, for computing its digest.
pub(crate) fn go_json(value: &impl serde::Serialize) -> Option<String> {
    json::line(value, true).ok()
}

/// Prints a command's outcome and returns the process exit code.
pub(crate) fn finish(outcome: Result<Exit, CommandError>, printer: &Printer) -> u8 {
    let code = match outcome {
        Ok(exit) => exit.code(),
        Err(error) => {
            error.render(printer);
            error.kind().exit_code()
        }
    };
    let code = match printer.failure() {
        Some(error) if code == 0 => {
            printer.note(format_args!("cannot write to standard output: {error}"));
            1
        }
        _ => code,
    };
    tracing::debug!(code, "exit");
    printer.end_events(code);
    code
}
