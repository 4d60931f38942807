//! How a command ends: an exit code, or an error with its causes and what to do about it.

use std::error::Error;

use crabbox_core::config::FlagValue;
use crabbox_core::fault::{self, Fault, Kind};

use super::{Event, Printer};
use crate::hint;

/// The exit code of a command that did its work; `run` and `connect` pass the remote command's own through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    /// All well.
    pub(crate) const SUCCESS: Self = Self(0);

    /// The remote command's own exit code.
    pub(crate) const fn passed_through(code: u8) -> Self {
        Self(code)
    }

    pub(crate) const fn code(self) -> u8 {
        self.0
    }
}

/// Why a command failed. Any [`Fault`] becomes one by `?`.
#[derive(Debug)]
pub(crate) struct CommandError {
    kind: Kind,
    error: Option<Box<dyn Error + Send + Sync>>,
    hints: Vec<String>,
}

impl CommandError {
    /// A failure whose reason was already printed, leaving only the exit code.
    pub(crate) const fn silent(kind: Kind) -> Self {
        Self {
            kind,
            error: None,
            hints: Vec::new(),
        }
    }

    /// The same with the `given` flags in the commands of its hints.
    pub(crate) fn completed(mut self, given: &[FlagValue]) -> Self {
        for hint in &mut self.hints {
            *hint = hint::complete(hint, given);
        }
        self
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and its causes as one text, for callers that search it for known words.
    pub(crate) fn text(&self) -> String {
        self.error
            .as_ref()
            .map_or_else(String::new, |error| told(error.as_ref()))
    }

    /// Prints the message, each cause once, and the hints.
    pub(super) fn render(&self, printer: &Printer) {
        let Some(error) = &self.error else { return };
        if printer.tells_events() {
            let lines = fault::messages(error.as_ref());
            return printer.event(&Event::Error {
                text: &lines[0],
                causes: &lines[1..],
                hints: &self.hints,
            });
        }
        for line in lines(error.as_ref()) {
            printer.notes(line);
        }
        for hint in &self.hints {
            printer.hint(hint);
        }
    }
}

impl<E: Fault + 'static> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self {
            kind: error.kind(),
            hints: error.hints(),
            error: Some(Box::new(error)),
        }
    }
}

/// An error with its causes as one text, for a line about something else.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    lines(error).join("\n")
}

/// The message of an error, then its causes as they stand below it.
fn lines(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut lines = fault::messages(error);
    for cause in &mut lines[1..] {
        cause.insert_str(0, "  caused by: ");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}")]
    struct Outer(&'static str, #[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Through(#[from] Outer);

    #[test]
    fn each_cause_is_told_once() {
        let inner = std::io::Error::other("no such file");
        let error = Through(Outer("/x", inner));
        assert_eq!(lines(&error), ["cannot read /x", "  caused by: no such file"]);
        let repeating = Outer("/x: no such file", std::io::Error::other("no such file"));
        assert_eq!(lines(&repeating), ["cannot read /x: no such file"]);
    }
}
