//! Progress of long work on this host: one line per stage with its seconds, a spinner on a terminal, JSON lines for programs.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crabbox_engine::host::images::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use schemars::JsonSchema;
use serde::Serialize;

use crate::ui::Printer;

/// How often byte counts are reported to a program.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Shows the stages.
pub(in crate::commands) struct Stages<'a> {
    printer: &'a Printer,
    json: bool,
    bar: ProgressBar,
    now: RefCell<Option<Stage>>,
}

struct Stage {
    name: String,
    began: Instant,
    told: Instant,
}

/// A line for a program.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(in crate::commands) enum Line<'a> {
    /// A stage begins.
    StageBegan { stage: &'a str },
    /// A stage is over; the next one begins, or the work is done.
    StageEnded { stage: &'a str, seconds: f64 },
    /// How far the stage is.
    Progress {
        stage: &'a str,
        bytes: u64,
        total: Option<u64>,
    },
}

impl<'a> Stages<'a> {
    /// Stages for a person, or with `json` for a program. Both go to standard error: standard output is for the result.
    pub(in crate::commands) fn new(printer: &'a Printer, json: bool) -> Self {
        let target = if printer.shows_progress() && !json {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            printer,
            json,
            bar: ProgressBar::with_draw_target(None, target),
            now: RefCell::new(None),
        }
    }

    /// Marks the last stage as successful.
    pub(in crate::commands) fn done(&self) {
        let Some(stage) = self.now.borrow_mut().take() else {
            return;
        };
        self.bar.finish_and_clear();
        let seconds = stage.began.elapsed().as_secs_f64();
        if self.json {
            self.line(&Line::StageEnded {
                stage: &stage.name,
                seconds,
            });
        } else {
            self.printer.note(format_args!("{} {seconds:.1}s", stage.name));
        }
    }

    fn line(&self, line: &Line<'_>) {
        // All keys are strings, so serialization cannot fail.
        self.printer.note_json(line).ok();
    }

    fn look(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }
}

impl Drop for Stages<'_> {
    /// Names the stage that failed; the error that follows gives the reason.
    fn drop(&mut self) {
        let Some(stage) = self.now.get_mut().take() else {
            return;
        };
        self.bar.finish_and_clear();
        if !self.json {
            let seconds = stage.began.elapsed().as_secs_f64();
            self.printer
                .note(format_args!("{} stopped after {seconds:.1}s", stage.name));
        }
    }
}

impl Progress for Stages<'_> {
    fn stage(&self, name: &str) {
        self.done();
        let now = Instant::now();
        *self.now.borrow_mut() = Some(Stage {
            name: name.to_owned(),
            began: now,
            told: now,
        });
        if self.json {
            self.line(&Line::StageBegan { stage: name });
            return;
        }
        self.bar.reset();
        self.look("{spinner} {msg} {elapsed}");
        self.bar.set_message(name.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn warn(&self, problem: &str) {
        self.bar.suspend(|| self.printer.warn(problem));
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let mut now = self.now.borrow_mut();
        let Some(stage) = now.as_mut() else { return };
        if self.json {
            if stage.told.elapsed() >= TELL_EVERY {
                stage.told = Instant::now();
                self.line(&Line::Progress {
                    stage: &stage.name,
                    bytes: done,
                    total,
                });
            }
            return;
        }
        if let (Some(total), true) = (total, self.bar.length() != total) {
            self.bar.set_length(total);
            self.look("{spinner} {msg} {bar:24} {bytes}/{total_bytes} {eta}");
        }
        self.bar.set_position(done);
    }
}
