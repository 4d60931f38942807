//! What was seen of a demo, as a document with times: the drawing and the text in README.md are made of the one in docs/demo.
//!
//! The same recording gives the same bytes. It must never hold a line that no program printed, nor be written of a demo that failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;
use serde::{Deserialize, Serialize};

use super::screen;
use crate::site::Site;
use crate::workspace;

/// Where those are that the documents show, from the root.
const HOME: &str = "docs/demo";

/// A demo that succeeded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Recording {
    /// The day, in UTC.
    date: String,
    /// Of the test ladder: 4 is the emulated lab, 5 a host with KVM.
    rung: u8,
    /// How many processors the machine has that the demo was called on.
    processors: usize,
    pub(super) steps: Vec<Step>,
    /// What was found of leftovers.
    pub(super) found: String,
}

/// A command, and what it printed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) shown: String,
    /// In milliseconds.
    pub(super) took: u64,
    pub(super) lines: Vec<Line>,
}

/// When a line came, in milliseconds since its command began, and what it says.
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
    /// Of a demo that has just ended on `site`.
    pub(super) fn now(site: &Site, steps: Vec<Step>, found: String) -> Result<Self> {
        let date = Cmd::inheriting("date").args(["--utc", "+%F"]).run()?;
        Ok(Self {
            date: date.stdout_text(),
            rung: if site.is_lab() { 4 } else { 5 },
            processors: std::thread::available_parallelism()?.get(),
            steps,
            found,
        })
    }

    /// Refuses what no demo gives.
    fn judge(&self) -> Result<()> {
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
    fn transcript(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            out.push_str(&format!("$ {}\n", step.shown));
            for Line(_, text) in &step.lines {
                out.push_str(text);
                out.push('\n');
            }
            out.push('\n');
        }
        out + &self.found
    }
}

/// The files of one recording.
#[derive(Debug)]
pub(super) struct Place {
    drawing: PathBuf,
}

impl Place {
    /// The drawing is `drawing`.
    pub(super) fn new(drawing: &Path) -> Result<Self> {
        ensure!(
            drawing.extension().is_some_and(|ending| ending == "svg"),
            "--record {} has to end in .svg",
            drawing.display()
        );
        let dir = drawing.parent().filter(|dir| !dir.as_os_str().is_empty());
        ensure!(
            dir.is_none_or(Path::is_dir),
            "--record {}: there is no such directory",
            drawing.display()
        );
        Ok(Self {
            drawing: drawing.to_owned(),
        })
    }

    pub(super) fn drawing(&self) -> &Path {
        &self.drawing
    }

    fn document(&self) -> PathBuf {
        self.drawing.with_extension("json")
    }

    pub(super) fn write(&self, recording: &Recording) -> Result<()> {
        recording.judge()?;
        let text = serde_json::to_string_pretty(recording)? + "\n";
        for (path, text) in [
            (self.document(), text),
            (self.drawing.clone(), screen::svg(recording)),
        ] {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn read(&self) -> Result<Recording> {
        let path = self.document();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let read: Recording =
            serde_json::from_str(&text).with_context(|| format!("{} is no recording", path.display()))?;
        read.judge()
            .with_context(|| format!("{} is no recording", path.display()))?;
        Ok(read)
    }
}

/// The one that the documents show.
fn committed() -> Place {
    let drawing = workspace::root().join(HOME).join("demo.svg");
    Place { drawing }
}

/// The drawing in docs/demo, if it is not what the recording says; with `write` it is put right.
pub(crate) fn settle(write: bool) -> Result<Option<String>> {
    let place = committed();
    let wanted = screen::svg(&place.read()?);
    if fs::read_to_string(place.drawing()).is_ok_and(|kept| kept == wanted) {
        return Ok(None);
    }
    if write {
        fs::write(place.drawing(), wanted)?;
    }
    Ok(Some(format!("{HOME}/demo.svg")))
}

/// The block of README.md.
pub(crate) fn block() -> Result<String> {
    let recording = committed().read()?;
    let foot = recording.foot();
    Ok(format!(
        "![The main job in a terminal, as it was recorded: the text below, line by line]({HOME}/demo.svg)\n\n\
         The same as text ({foot} The document behind both: [demo.json]({HOME}/demo.json)):\n\n```\n{}\n```",
        recording.transcript()
    ))
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
            "found": "Nothing is left.",
        }))
        .unwrap()
    }

    #[test]
    fn what_is_committed_is_drawn_from_its_document_and_a_drawing_by_hand_is_found() {
        assert_eq!(settle(false).unwrap(), None);
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&dir.path().join("demo.svg")).unwrap();
        place.write(&recording()).unwrap();
        let kept = fs::read_to_string(place.drawing()).unwrap();
        assert_eq!(screen::svg(&place.read().unwrap()), kept);
        let other = fs::read_to_string(place.document())
            .unwrap()
            .replace("at once", "at last");
        fs::write(place.document(), other).unwrap();
        assert_ne!(screen::svg(&place.read().unwrap()), kept);
    }

    #[test]
    fn a_recording_is_written_as_svg_into_a_directory_that_is_there() {
        for (path, because) in [
            ("demo.gif", "end in .svg"),
            ("nowhere/demo.svg", "no such directory"),
        ] {
            let error = Place::new(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains(because), "{error}");
        }
        Place::new(Path::new("demo.svg")).unwrap();
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

    #[test]
    fn the_text_has_every_line() {
        let text = recording().transcript();
        assert!(text.starts_with("$ one <1>\nfirst & last\nxxx"), "{text}");
        assert!(text.ends_with("\n\n$ two\nat once\n\nNothing is left."), "{text}");
    }
}
