//! Progress as JSON lines for programs: the standard error of `--json-events`.
//!
//! Every line is one object whose `event` names its kind. Output of the remote command must only appear inside a string, so that a command cannot
//! forge this program's events.

use std::time::Duration;

use crabbox_engine::stage::Stages;
use schemars::JsonSchema;
use serde::Serialize;

use super::Printer;

/// One line.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// A stage begins; `a/b` is a part of `a`.
    StageBegan { stage: &'a str },
    /// A stage is over. The parts of `lease` are told when they end, without their beginning.
    StageEnded {
        stage: &'a str,
        seconds: f64,
        /// Whether it did what it was there for; a command that fails ends its stage with `false`.
        ok: bool,
    },
    /// How far the stage is, about once a second and at its end.
    Progress {
        stage: &'a str,
        bytes: u64,
        /// An upper limit where only differences are sent.
        total: u64,
        /// Files and links that there are to send.
        files: u64,
    },
    /// The lease in which everything after this happens.
    Leased {
        lease: &'a str,
        slug: &'a str,
        provider: &'a str,
        address: &'a str,
        /// Whether it was made for this command.
        new: bool,
    },
    /// What a person would have been told. The wording may change.
    Note { text: &'a str },
    /// What a person would have been warned of.
    Warning { text: &'a str },
    /// A piece of the remote command's standard error; the pieces put together are the whole. What is no UTF-8 is replaced.
    Stderr { text: &'a str },
    /// Why the command fails, where there is more to say than its exit code.
    Error {
        text: &'a str,
        /// Outermost first.
        causes: &'a [String],
        /// What can be done about it.
        hints: &'a [String],
    },
    /// The last line.
    Ended { exit_code: u8 },
}

impl Stages for Printer {
    fn began(&self, stage: &'static str) {
        self.event(&Event::StageBegan { stage });
    }

    fn ended(&self, stage: &'static str, took: Duration, ok: bool) {
        self.event(&Event::StageEnded {
            stage,
            seconds: took.as_secs_f64(),
            ok,
        });
    }
}

/// Decodes bytes that arrive in pieces; an incomplete character waits for the rest of it.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<u8>);

impl Pieces {
    /// Adds `bytes` and returns the text that is complete.
    pub(super) fn add(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let open = self.0.utf8_chunks().last().map_or(0, |last| {
            let open = last.invalid();
            // An unfinished sequence may still become a character; any other invalid bytes stay invalid.
            let may_go_on = std::str::from_utf8(open).is_err_and(|error| error.error_len().is_none());
            if may_go_on { open.len() } else { 0 }
        });
        let rest = self.0.split_off(self.0.len() - open);
        let whole = std::mem::replace(&mut self.0, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }

    /// The bytes left incomplete at the end.
    pub(super) fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_two_pieces_arrives_whole_and_what_is_none_is_replaced() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.add(b"a\xc3"), "a");
        assert_eq!(pieces.add(b"\xa4\xff."), "\u{e4}\u{fffd}.");
        assert_eq!(pieces.add(b"\xff"), "\u{fffd}");
        assert_eq!(pieces.add(b"\xe2\x82"), "");
        assert_eq!(
            (pieces.rest(), pieces.rest()),
            ("\u{fffd}".to_owned(), String::new())
        );
    }
}
