//! Which diagnostics are logged: the value of `CRABBOX_LOG`, of `-v`, and of a supervisor's log level.
//!
//! The syntax is a list of `TARGET=LEVEL` and bare levels, for example `debug` or
//! `info,crabbox_machine=trace`. It must never interpret a misspelt level as the name of a target, which
//! would silently disable logging.

use std::str::FromStr;

use crabbox_core::comma_list;
use crabbox_core::fault::{Fault, Kind};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// Common prefix of all targets of this program; libraries are not logged.
const OURS: &str = "crabbox";

/// The longest accepted filter, in bytes; one entry for each module would be shorter.
const LIMIT: usize = 1024;

/// A parsed filter.
#[derive(Debug, Clone)]
pub struct LogFilter(Targets);

/// Why a text is not a valid filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid log filter {filter:?}: {reason}")]
pub struct LogFilterError {
    filter: String,
    reason: &'static str,
}

impl Fault for LogFilterError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec![
            "use off, error, warn, info, debug or trace, or a list like info,crabbox_machine=trace"
                .to_owned(),
        ]
    }
}

impl LogFilter {
    /// A filter for all targets of this program at `level` and above.
    pub fn level(level: LevelFilter) -> Self {
        Self(Targets::new().with_target(OURS, level))
    }

    /// The filter in the form that subscribers need.
    pub fn into_targets(self) -> Targets {
        self.0
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let refused = |reason| LogFilterError {
            filter: text.chars().take(LIMIT).collect(),
            reason,
        };
        if text.len() > LIMIT {
            return Err(refused("it is longer than any filter"));
        }
        let mut targets = Targets::new();
        for directive in comma_list::items(text) {
            let (target, level) = directive.split_once('=').unwrap_or((OURS, directive));
            // `LevelFilter` also parses numbers and the empty string, which users would not recognise as
            // levels.
            if level.is_empty() || !level.bytes().all(|byte| byte.is_ascii_alphabetic()) {
                return Err(refused("a level is a word"));
            }
            let level: LevelFilter = level.parse().map_err(|_| refused("there is no such level"))?;
            if !target.starts_with(OURS) {
                return Err(refused("targets of this program begin with crabbox"));
            }
            targets = targets.with_target(target, level);
        }
        Ok(Self(targets))
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_and_targets_are_read_and_the_narrower_target_wins() {
        let filter = |text: &str| text.parse::<LogFilter>().unwrap().into_targets();
        let plain = filter("debug");
        assert!(plain.would_enable("crabbox_host::command", &Level::DEBUG));
        assert!(!plain.would_enable("crabbox_host::command", &Level::TRACE));
        assert!(!plain.would_enable("rustls", &Level::ERROR));
        let narrow = filter(" info, crabbox_machine=trace ");
        assert!(narrow.would_enable("crabbox_machine::lifecycle", &Level::TRACE));
        assert!(!narrow.would_enable("crabbox_host::command", &Level::DEBUG));
        assert!(!filter("off").would_enable("crabbox", &Level::ERROR));
        assert!(!filter("").would_enable("crabbox", &Level::ERROR));
    }

    #[test]
    fn what_is_no_filter_is_refused_and_never_taken_for_a_target() {
        for text in [
            "debugg",
            "5",
            "crabbox_host=",
            "rustls=debug",
            "=debug",
            "a=b=c",
            "debug crabbox",
            "\u{1b}[2J",
        ] {
            let error = text.parse::<LogFilter>().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
        assert!("x".repeat(LIMIT + 1).parse::<LogFilter>().is_err());
    }
}
