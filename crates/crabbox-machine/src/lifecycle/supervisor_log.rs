//! The supervisor's log, `supervisor.log` in the lease's directory: its work by lease, stage and step, and
//! every error that cannot be shown to a user.
//!
//! Events from before the lease has a directory are buffered and written there first. A supervisor must never
//! wait for its log or fail because of it, and no text from a guest or a file may forge a line: one event is
//! one line, without control characters.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crabbox_core::timestamp;
use crabbox_host::bounded_log::BoundedLog;
use crabbox_host::clock;
use crabbox_host::console::harmless;
use crabbox_store::places::LeaseDir;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

use crate::log_filter::LogFilter;

/// The default filter.
const LEVEL: LevelFilter = LevelFilter::INFO;
/// The longest line, in bytes; small compared with the size limit of the file.
const LINE_LIMIT: usize = 4096;
/// Size of the buffer until the lease has its directory, in bytes; far more than the events until then.
const EARLY_LIMIT: usize = 64 * 1024;

/// The log of this process. Clones write to the same file.
#[derive(Debug, Clone)]
pub(crate) struct SupervisorLog {
    lines: Lines,
    filter: reload::Handle<Targets, Registry>,
}

/// The file behind it.
#[derive(Debug, Clone)]
struct Lines(Arc<Mutex<Sink>>);

/// The destination of lines.
#[derive(Debug)]
enum Sink {
    /// The lease has no directory yet.
    Early(Vec<u8>),
    /// The lease's directory.
    File(BoundedLog),
    /// The log cannot be written.
    Nowhere,
}

impl SupervisorLog {
    /// Makes this process log here, including panics of any thread. Must be called once, before anything
    /// else.
    pub(crate) fn install(filter: Option<LogFilter>) -> Self {
        let (log, subscriber) = Self::new(filter.unwrap_or_else(|| LogFilter::level(LEVEL)));
        // If a subscriber is installed already, events go there instead.
        tracing::subscriber::set_global_default(subscriber).ok();
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        log
    }

    /// A log, and the subscriber that writes to it what `filter` selects.
    pub(crate) fn new(filter: LogFilter) -> (Self, impl tracing::Subscriber + Send + Sync) {
        let lines = Lines(Arc::new(Mutex::new(Sink::Early(Vec::new()))));
        let (filter, handle) = reload::Layer::new(filter.into_targets());
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_timer(WallClock)
            .with_writer(lines.clone())
            .with_filter(filter);
        let log = Self {
            lines,
            filter: handle,
        };
        (log, tracing_subscriber::registry().with(layer))
    }

    /// Replaces the filter.
    pub(crate) fn set_filter(&self, filter: LogFilter) {
        // This fails only if the subscriber is gone, and then nothing is logged anyway.
        self.filter.reload(filter.into_targets()).ok();
    }

    /// The current filter, in the syntax of `CRABBOX_LOG`.
    pub(crate) fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Sets the lease's directory and writes the buffered events there first.
    pub(crate) fn enter(&self, dir: &LeaseDir) {
        let opened = BoundedLog::open(&dir.supervisor_log());
        let mut sink = self.lines.sink();
        *sink = match opened {
            Ok(mut file) => {
                if let Sink::Early(lines) = &*sink {
                    file.write(lines);
                }
                Sink::File(file)
            }
            // A log that cannot be written is no reason to refuse a lease, and there is no other place to
            // report it.
            Err(_) => Sink::Nowhere,
        };
    }
}

impl Lines {
    fn sink(&self) -> MutexGuard<'_, Sink> {
        // A writer that panicked has left at worst half a line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8]) {
        match &mut *self.sink() {
            Sink::Early(lines) if lines.len() + line.len() <= EARLY_LIMIT => lines.extend_from_slice(line),
            Sink::File(file) => file.write(line),
            Sink::Early(_) | Sink::Nowhere => {}
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Event<'a> {
        Event {
            lines: self,
            text: Vec::new(),
        }
    }
}

/// The text of one event; it is written as one line when complete.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl io::Write for Event<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        self.lines.put(line(&self.text).as_bytes());
    }
}

/// The text of an event as one line without terminal sequences, truncated at [`LINE_LIMIT`].
fn line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut line = harmless(&text.trim_end().replace('\n', "\\n"));
    if line.len() > LINE_LIMIT {
        line.truncate(line.floor_char_boundary(LINE_LIMIT));
        line.push('…');
    }
    line.push('\n');
    line
}

/// The time of an event, in UTC like all times in a lease's files.
struct WallClock;

impl FormatTime for WallClock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = clock::unix_now();
        // Microseconds, so that columns usually line up.
        writer.write_str(&timestamp::rfc3339_nano(seconds, nanoseconds / 1000 * 1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(write: impl FnOnce(&SupervisorLog, &LeaseDir)) -> String {
        let home = tempfile::tempdir().unwrap();
        let dir = LeaseDir::at(home.path());
        let (log, subscriber) = SupervisorLog::new(LogFilter::level(LevelFilter::DEBUG));
        tracing::subscriber::with_default(subscriber, || write(&log, &dir));
        std::fs::read_to_string(dir.supervisor_log()).unwrap_or_default()
    }

    #[test]
    fn what_came_before_the_directory_stands_first_and_events_name_their_spans() {
        let text = logged(|log, dir| {
            tracing::info!("early");
            let lease = tracing::info_span!("lease", id = "cbx_0123456789ab").entered();
            log.enter(dir);
            let stage = tracing::info_span!("stage", name = "disk").entered();
            tracing::debug!(micros = 7, "over");
            tracing::trace!("not asked for");
            drop((stage, lease));
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].contains(" INFO ") && lines[0].ends_with(": early"),
            "{text}"
        );
        assert!(
            lines[1].contains("DEBUG lease{id=\"cbx_0123456789ab\"}:stage{name=\"disk\"}:")
                && lines[1].ends_with(": over micros=7"),
            "{text}"
        );
    }

    #[test]
    fn what_a_guest_says_forges_no_line_and_is_cut() {
        let text = logged(|log, dir| {
            log.enter(dir);
            let foreign = "a\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{202e}";
            tracing::info!(stage = %foreign, "{foreign}");
            tracing::info!("{}", "é".repeat(LINE_LIMIT));
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            !text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'),
            "{text:?}"
        );
        let last = text.lines().last().unwrap();
        assert!(
            last.len() < LINE_LIMIT + 8 && last.ends_with('…'),
            "{}",
            last.len()
        );
    }

    #[test]
    fn a_lease_whose_directory_is_gone_does_not_get_one_for_its_log() {
        let home = tempfile::tempdir().unwrap();
        let dir = LeaseDir::at(home.path().join("gone"));
        let (log, _) = SupervisorLog::new(LogFilter::level(LevelFilter::DEBUG));
        log.enter(&dir);
        log.lines.put(b"x\n");
        assert!(!dir.path().exists());
    }
}
