//! Watching leases: one screen redrawn in place for a person, a line for each change elsewhere.
//!
//! A difference that is only the passing of time must never count as a change. It ends when its reader is
//! gone.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crabbox_host::clock;
use crabbox_host::signals::Interrupts;

use crate::commands::engine::{self, EngineError};
use crate::context::Ctx;
use crate::ui::Screen;

/// How often leases are polled.
const INTERVAL: Duration = Duration::from_secs(2);

/// One lease as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Its id.
    pub(super) lease: String,
    /// The part whose difference counts as a change.
    pub(super) facts: String,
    /// Its line.
    pub(super) line: String,
}

/// The changes since the last poll.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// Lines of new or changed leases in order, then those of leases that are gone.
    pub(super) lines: Vec<String>,
}

/// The leases seen at the last poll.
#[derive(Debug, Default)]
struct Last(Option<BTreeMap<String, String>>);

impl Last {
    /// `None` if nothing has changed; the first poll always counts as a change.
    fn compare(&mut self, rows: &[Row]) -> Option<Changes> {
        let now: BTreeMap<String, String> = rows
            .iter()
            .map(|row| (row.lease.clone(), row.facts.clone()))
            .collect();
        let first = self.0.is_none();
        let before = self.0.replace(now).unwrap_or_default();
        let now = self.0.as_ref();
        let mut lines: Vec<String> = rows
            .iter()
            .filter(|row| before.get(&row.lease) != Some(&row.facts))
            .map(|row| row.line.clone())
            .collect();
        let gone = before
            .keys()
            .filter(|lease| now.is_some_and(|now| !now.contains_key(*lease)));
        lines.extend(gone.map(|lease| format!("gone lease={lease}")));
        (first || !lines.is_empty()).then_some(Changes { lines })
    }
}

/// A running watch.
pub(super) struct Watching<'a> {
    ctx: &'a Ctx<'a>,
    interrupts: Interrupts,
    screen: Option<Screen<'a>>,
    last: Last,
    /// What the last poll could not look at: the name, and the warning.
    unseen: BTreeMap<String, String>,
}

impl<'a> Watching<'a> {
    /// Starts the watch; with `json` there is no screen.
    pub(super) fn begin(ctx: &'a Ctx<'a>, json: bool) -> Result<Self, EngineError> {
        let interrupts = engine::interrupts()?;
        let screen = if json {
            None
        } else {
            Screen::enter(ctx.printer, ctx.env.text("TERM"), interrupts.as_fd())
        };
        Ok(Self {
            ctx,
            interrupts,
            screen,
            last: Last::default(),
            unseen: BTreeMap::new(),
        })
    }

    /// Warns of what this poll could not look at, with its name: below the rows on a screen, elsewhere once
    /// until it could be looked at again.
    pub(super) fn warn(&mut self, unseen: Vec<(String, String)>) {
        let before = std::mem::replace(&mut self.unseen, unseen.into_iter().collect());
        if self.screen.is_some() {
            return;
        }
        let new = self.unseen.iter().filter(|(name, _)| !before.contains_key(*name));
        for (_, text) in new {
            self.ctx.printer.warn(text);
        }
    }

    /// Shows the rows: all of them on a screen, only the changes elsewhere. Returns whether anything has
    /// changed.
    pub(super) fn show(&mut self, rows: &[Row], json: bool) -> bool {
        let changes = self.last.compare(rows);
        if let Some(screen) = &mut self.screen {
            let title = match rows.len() {
                0 => "no lease".to_owned(),
                1 => "1 lease".to_owned(),
                more => format!("{more} leases"),
            };
            let mut lines = vec![
                format!("{title}, looked at every {} s; Ctrl-C ends", INTERVAL.as_secs()),
                String::new(),
            ];
            lines.extend(rows.iter().map(|row| row.line.clone()));
            lines.extend(self.unseen.values().map(|text| format!("warning: {text}")));
            screen.draw(&lines);
        } else if let Some(changes) = changes.as_ref().filter(|_| !json) {
            for line in &changes.lines {
                self.ctx.printer.line(line);
            }
        }
        changes.is_some()
    }

    /// Waits for the next poll; `false` when the watch is over.
    pub(super) fn goes_on(&self) -> bool {
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next && self.interrupts.caught().is_none() {
            clock::is_readable(self.interrupts.as_fd(), Duration::from_millis(50));
        }
        self.interrupts.caught().is_none() && self.ctx.printer.has_reader()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lease: &str, facts: &str, line: &str) -> Row {
        Row {
            lease: lease.to_owned(),
            facts: facts.to_owned(),
            line: line.to_owned(),
        }
    }

    #[test]
    fn only_what_has_changed_is_told_and_time_alone_changes_nothing() {
        let mut last = Last::default();
        let mut told = |rows: &[Row]| last.compare(rows).map(|changes| changes.lines);
        assert_eq!(told(&[]), Some(Vec::new()));
        let (a, b) = (
            row("a", "ready", "a ready idle=1s"),
            row("b", "booting", "b booting"),
        );
        assert_eq!(
            told(&[a.clone(), b.clone()]).unwrap(),
            ["a ready idle=1s", "b booting"]
        );
        assert_eq!(told(&[row("a", "ready", "a ready idle=2s"), b]), None);
        assert_eq!(
            told(&[a.clone(), row("b", "ready", "b ready")]).unwrap(),
            ["b ready"]
        );
        assert_eq!(told(&[a]).unwrap(), ["gone lease=b"]);
    }
}
