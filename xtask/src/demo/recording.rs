//! A demo session as a document with times.
//!
//! It must never contain a line that no program printed, nor anything from a failed demo.

use std::time::Duration;

use anyhow::{Result, ensure};
use crabbox_host::command::Cmd;
use serde::{Deserialize, Serialize};

use crate::site::Site;

/// A demo that succeeded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Recording {
    /// The day, in UTC.
    date: String,
    /// The rung of the test ladder: 4 is the emulated lab, 5 a host with KVM.
    rung: u8,
    /// The number of processors of the machine that ran the demo.
    processors: usize,
    pub(super) steps: Vec<Step>,
    /// The result of the search for leftovers.
    pub(super) found: String,
    /// How long after the last step that was known, in milliseconds.
    pub(super) searched: u64,
}

/// The result of the search for leftovers, and how long after the last step.
#[derive(Debug)]
pub(super) struct Leftovers {
    pub(super) after: Duration,
    pub(super) text: String,
}

/// A command, and what it printed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) shown: String,
    /// Its duration in milliseconds.
    pub(super) took: u64,
    pub(super) lines: Vec<Line>,
}

/// When a line appeared, in milliseconds since the start of its command, and its text.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line(pub(super) u64, pub(super) String);

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Line {
    pub(super) fn new(since: Duration, text: &str) -> Self {
        Self(milliseconds(since), text.to_owned())
    }
}

impl Step {
    pub(super) fn new(shown: &str, took: Duration, lines: Vec<Line>) -> Self {
        Self {
            shown: shown.to_owned(),
            took: milliseconds(took),
            lines,
        }
    }
}

impl Recording {
    /// The recording of a demo that has just ended on `site`.
    pub(super) fn now(site: &Site, steps: Vec<Step>, found: Leftovers) -> Result<Self> {
        let date = Cmd::inheriting("date").args(["--utc", "+%F"]).run()?;
        Ok(Self {
            date: date.stdout_text(),
            rung: if site.is_lab() { 4 } else { 5 },
            processors: std::thread::available_parallelism()?.get(),
            steps,
            found: found.text,
            searched: milliseconds(found.after),
        })
    }

    /// Refuses a recording that no demo can produce.
    pub(super) fn judge(&self) -> Result<()> {
        ensure!((4..=5).contains(&self.rung), "no demo runs on rung {}", self.rung);
        ensure!(!self.steps.is_empty(), "nothing was shown");
        for step in &self.steps {
            let mut at = 0;
            for Line(time, text) in &step.lines {
                ensure!(
                    (at..=step.took).contains(time),
                    "`{}` printed a line at {time} ms, out of its order or after its end",
                    step.shown
                );
                ensure!(
                    !text.contains(char::is_control),
                    "`{}` printed a character that moves the cursor",
                    step.shown
                );
                at = *time;
            }
        }
        Ok(())
    }

    /// Also refuses a recording that does not come from a new run of the steps `shown`: other steps, or the
    /// times of output that was read only at the end, where all lines of a command appear when it ends.
    pub(super) fn judge_new(&self, shown: &[&str]) -> Result<()> {
        self.judge()?;
        let has: Vec<&str> = self.steps.iter().map(|step| step.shown.as_str()).collect();
        ensure!(has == shown, "the steps are not those of the demo: {has:#?}");
        let mut several = self.steps.iter().filter(|step| step.lines.len() > 1);
        ensure!(
            several.any(|step| step.lines.iter().any(|Line(time, _)| *time < step.took)),
            "every line came when its command ended, so nobody listened"
        );
        Ok(())
    }

    /// Where, when and how it was made.
    pub(super) fn foot(&self) -> String {
        let place = if self.rung == 4 {
            "in the lab, where QEMU emulates the processor"
        } else {
            "on a host with KVM"
        };
        format!(
            "cargo xtask demo --record, {}, rung {}: {place}; a machine with {} processors. Each line comes when it came.",
            self.date, self.rung, self.processors
        )
    }

    /// As text for a document.
    pub(super) fn transcript(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            out.extend(["$ ", &step.shown, "\n"]);
            for Line(_, text) in &step.lines {
                out.push_str(text);
                out.push('\n');
            }
            out.push('\n');
        }
        out + &self.found
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn recording() -> Recording {
        serde_json::from_value(serde_json::json!({
            "date": "2026-01-02", "rung": 4, "processors": 2,
            "steps": [
                { "shown": "one <1>", "took": 1500, "lines": [[250, "first & last"], [1250, "x".repeat(250)]] },
                { "shown": "two", "took": 500, "lines": [[0, "at once"]] },
            ],
            "found": "Nothing is left.", "searched": 400,
        }))
        .unwrap()
    }

    #[test]
    fn what_no_demo_gives_is_refused() {
        let broken: [fn(&mut Recording); 5] = [
            |it| it.rung = 2,
            |it| it.steps.clear(),
            |it| it.steps[0].lines[1].0 = 9999,
            |it| it.steps[0].lines[0].0 = 1300,
            |it| it.steps[0].lines[0].1 = "\x1b[2J".to_owned(),
        ];
        recording().judge().unwrap();
        for (at, spoil) in broken.into_iter().enumerate() {
            let mut it = recording();
            spoil(&mut it);
            assert!(it.judge().is_err(), "case {at}");
        }
    }

    /// The steps of [`recording`].
    pub(crate) const SHOWN: [&str; 2] = ["one <1>", "two"];

    #[test]
    fn a_new_recording_of_other_steps_or_of_lines_without_times_is_refused() {
        recording().judge_new(&SHOWN).unwrap();
        for shown in [
            &["one <1>"][..],
            &["two", "one <1>"],
            &["one <1>", "two", "three"],
        ] {
            let error = recording().judge_new(shown).unwrap_err();
            assert!(error.to_string().contains("not those of the demo"), "{error}");
        }
        let mut converted = recording();
        for step in &mut converted.steps {
            for line in &mut step.lines {
                line.0 = step.took;
            }
        }
        converted.judge().unwrap();
        let error = converted.judge_new(&SHOWN).unwrap_err();
        assert!(error.to_string().contains("nobody listened"), "{error}");
    }

    #[test]
    fn the_text_has_every_line_empty_ones_too() {
        let mut spaced = recording();
        spaced.steps[1].lines.push(Line(1, String::new()));
        spaced.steps[1].lines.push(Line(2, "after it".to_owned()));
        assert!(spaced.transcript().contains("at once\n\nafter it\n"));
        let text = recording().transcript();
        assert!(text.starts_with("$ one <1>\nfirst & last\nxxx"), "{text}");
        assert!(text.ends_with("\n\n$ two\nat once\n\nNothing is left."), "{text}");
    }
}
