//! Progress of a sync: a bar for a person on a terminal, events for a program, nothing elsewhere; warnings
//! always.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crabbox_engine::run::event::SyncListener;
use crabbox_engine::stage;
use crabbox_workspace::sync::{Progress, Stage, SyncEvents};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::{Event, Printer};

/// How often byte counts are reported to a program.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Shows a sync.
pub(in crate::commands) struct SyncProgress<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    now: Mutex<Option<Now<'a>>>,
}

/// The current stage, with the amount to send in it.
struct Now<'a> {
    stage: stage::Stage<'a>,
    send: Option<(u64, u64)>,
    bytes: u64,
    told: Instant,
}

impl<'a> SyncProgress<'a> {
    /// A bar that is drawn only if standard error is an attended terminal.
    pub(in crate::commands) fn new(printer: &'a Printer) -> Self {
        let target = if printer.shows_progress() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes} {eta}") {
            bar.set_style(style);
        }
        Self {
            printer,
            bar,
            now: Mutex::default(),
        }
    }

    fn end_stage(&self, ok: bool) {
        if let Some(now) = self.now().take() {
            self.tell(&now);
            now.stage.end(ok);
        }
    }

    fn now(&self) -> MutexGuard<'_, Option<Now<'a>>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, now: &Now<'_>) {
        if let Some((files, total)) = now.send {
            self.printer.event(&Event::Progress {
                stage: now.stage.name(),
                bytes: now.bytes,
                total,
                files,
            });
        }
    }
}

impl SyncListener for SyncProgress<'_> {
    /// Removes the bar; with `ok` the last stage was successful.
    fn end(&self, ok: bool) {
        self.bar.finish_and_clear();
        self.end_stage(ok);
    }
}

impl SyncEvents for SyncProgress<'_> {
    fn stage(&self, stage: Stage) {
        self.end_stage(true);
        let (name, send) = match stage {
            Stage::Compare => {
                self.bar.set_message("comparing");
                ("sync/compare", None)
            }
            Stage::Send { files, bytes } => {
                self.bar.set_length(bytes);
                self.bar.set_message(format!("sending {files} files"));
                ("sync/send", Some((files, bytes)))
            }
            Stage::Seed => {
                self.bar.set_message("seeding git");
                ("sync/seed", None)
            }
            Stage::Finish => {
                self.bar.set_message("finishing");
                ("sync/finish", None)
            }
        };
        self.bar.tick();
        *self.now() = Some(Now {
            stage: self.printer.stage(name),
            send,
            bytes: 0,
            told: Instant::now(),
        });
    }

    fn progress(&self, progress: Progress) {
        self.bar.set_position(progress.bytes);
        let mut now = self.now();
        let Some(now) = now.as_mut() else { return };
        now.bytes = progress.bytes;
        if now.told.elapsed() >= TELL_EVERY {
            now.told = Instant::now();
            self.tell(now);
        }
    }

    fn warning(&self, line: &str) {
        self.bar.suspend(|| self.printer.warn(line));
    }
}
