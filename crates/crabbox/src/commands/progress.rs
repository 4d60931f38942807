//! Progress of a sync for a person: one bar on a terminal, nothing elsewhere; warnings always.

use crabbox_engine::run::{Progress, Stage, SyncEvents};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::Printer;

/// Draws a sync.
pub(super) struct SyncProgress<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
}

impl<'a> SyncProgress<'a> {
    /// A bar that is drawn only where somebody watches standard error.
    pub(super) fn new(printer: &'a Printer) -> Self {
        let target = if printer.shows_progress() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes} {eta}") {
            bar.set_style(style);
        }
        Self { printer, bar }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl SyncEvents for SyncProgress<'_> {
    fn stage(&self, stage: Stage) {
        match stage {
            Stage::Compare => self.bar.set_message("comparing"),
            Stage::Send { files, bytes } => {
                self.bar.set_length(bytes);
                self.bar.set_message(format!("sending {files} files"));
            }
            Stage::Seed => self.bar.set_message("seeding git"),
            Stage::Finish => self.bar.set_message("finishing"),
        }
        self.bar.tick();
    }

    fn progress(&self, progress: Progress) {
        self.bar.set_position(progress.bytes);
    }

    fn warning(&self, line: &str) {
        self.bar.suspend(|| self.printer.warn(line));
    }
}
