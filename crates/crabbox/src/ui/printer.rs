//! Standard output and standard error.
//!
//! Results go to standard output, everything told on the way to standard error. A reader that went away (`| head`) is no
//! failure: what follows is dropped, and the command goes on to its end, for it may have a lease to give back.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};

use anstream::ColorChoice;
use anstream::adapter::{strip_bytes, strip_str};

use super::events::{Event, Pieces, Stage};
use super::json::{self, Document, JsonError};
use crate::env::Env;

/// Where text goes; shared by all threads.
pub(crate) struct Printer {
    out: Mutex<Stream>,
    err: Mutex<Stream>,
    progress: bool,
    terminal: bool,
    /// There when standard error is for a program; holds what the remote command wrote of a character that is not whole yet.
    events: OnceLock<Mutex<Pieces>>,
}

struct Stream {
    sink: Box<dyn Write + Send>,
    /// Whether our own text keeps its colours.
    coloured: bool,
    failure: Option<io::Error>,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Printer {
    /// The streams of this process, coloured only where a terminal reads them and the environment does not object.
    pub(crate) fn standard(env: &Env) -> Self {
        let colour = env.allows_colour();
        let choice = |terminal| {
            if terminal && colour {
                ColorChoice::AlwaysAnsi
            } else {
                ColorChoice::Never
            }
        };
        let (out, err) = (io::stdout(), io::stderr());
        let progress = err.is_terminal();
        let terminal = out.is_terminal();
        let (out_choice, err_choice) = (choice(terminal), choice(progress));
        Self {
            terminal,
            ..Self::new(Box::new(out), out_choice, Box::new(err), err_choice, progress)
        }
    }

    fn new(
        out: Box<dyn Write + Send>,
        out_choice: ColorChoice,
        err: Box<dyn Write + Send>,
        err_choice: ColorChoice,
        progress: bool,
    ) -> Self {
        let stream = |sink, choice| {
            Mutex::new(Stream {
                sink,
                coloured: choice != ColorChoice::Never,
                failure: None,
            })
        };
        Self {
            out: stream(out, out_choice),
            err: stream(err, err_choice),
            progress,
            terminal: false,
            events: OnceLock::new(),
        }
    }

    /// Whether a terminal shows standard output, so that control characters in it would do something.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether standard output takes nothing any more, so that producing more of it is in vain.
    pub(crate) fn is_deaf(&self) -> bool {
        self.out.lock().map_or(true, |stream| stream.failure.is_some())
    }

    /// Whether somebody watches standard error, so that progress may be drawn there.
    pub(crate) fn shows_progress(&self) -> bool {
        self.progress && !self.tells_events()
    }

    /// From here on standard error is JSON lines, and nothing else.
    pub(crate) fn tell_events(&self) {
        self.events.get_or_init(Mutex::default);
    }

    /// Whether standard error is JSON lines.
    pub(crate) fn tells_events(&self) -> bool {
        self.events.get().is_some()
    }

    /// Something that happened, for a program; a person is told in other words.
    pub(crate) fn event(&self, event: &Event<'_>) {
        if !self.tells_events() {
            return;
        }
        // An event has no keys that are no texts: it always has a JSON form.
        if let Ok(line) = json::line(event, false) {
            put(&self.err, format!("{line}\n").as_bytes());
        }
    }

    /// A stage begins.
    pub(crate) fn stage(&self, name: &'static str) -> Stage<'_> {
        Stage::begin(self, name)
    }

    /// The last event.
    pub(super) fn end_events(&self, exit_code: u8) {
        self.stderr_event(Pieces::rest);
        self.event(&Event::Ended { exit_code });
    }

    fn stderr_event(&self, text: impl FnOnce(&mut Pieces) -> String) {
        let Some(Ok(mut pieces)) = self.events.get().map(Mutex::lock) else {
            return;
        };
        let text = text(&mut pieces);
        if !text.is_empty() {
            self.event(&Event::Stderr { text: &text });
        }
    }

    /// One line of result, on standard output.
    pub(crate) fn line(&self, text: impl Display) {
        put_text(&self.out, &text);
    }

    /// Bytes of result as they are, on standard output: the remote command's own.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        put(&self.out, bytes);
    }

    /// One line told on the way, on standard error.
    pub(crate) fn note(&self, text: impl Display) {
        if self.tells_events() {
            let text = plain(&text);
            return self.event(&Event::Note { text: &text });
        }
        put_text(&self.err, &text);
    }

    /// Bytes told on the way as they are, on standard error: the remote command's own.
    pub(crate) fn note_bytes(&self, bytes: &[u8]) {
        if self.tells_events() {
            return self.stderr_event(|pieces| pieces.add(bytes));
        }
        put(&self.err, bytes);
    }

    /// A line that begins with `warning:`, on standard error.
    pub(crate) fn warn(&self, text: impl Display) {
        if self.tells_events() {
            let text = plain(&text);
            return self.event(&Event::Warning { text: &text });
        }
        let style = anstyle::AnsiColor::Yellow
            .on_default()
            .effects(anstyle::Effects::BOLD);
        self.note(format_args!("{style}warning:{style:#} {text}"));
    }

    /// A document as one line of JSON, escaped as in the Go program, on standard output.
    pub(crate) fn json(&self, value: &impl Document) -> Result<(), JsonError> {
        self.line(json::line(value, true)?);
        Ok(())
    }

    /// A document as one line of JSON without HTML escapes, on standard error: `--timing-json`, progress.
    pub(crate) fn note_json(&self, value: &impl Document) -> Result<(), JsonError> {
        put(&self.err, format!("{}\n", json::line(value, false)?).as_bytes());
        Ok(())
    }

    /// Why standard output could not be written, unless its reader simply went away.
    pub(crate) fn failure(&self) -> Option<String> {
        let stream = self.out.lock().ok()?;
        stream
            .failure
            .as_ref()
            .filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
            .map(ToString::to_string)
    }
}

/// One line of our own, without its colours where none are wanted.
fn put_text(stream: &Mutex<Stream>, text: &impl Display) {
    let line = format!("{text}\n");
    let coloured = stream.lock().is_ok_and(|stream| stream.coloured);
    if coloured {
        put(stream, line.as_bytes());
    } else {
        put(stream, &strip_bytes(line.as_bytes()).into_vec());
    }
}

/// Our own text without its colours.
fn plain(text: &impl Display) -> String {
    strip_str(&text.to_string()).to_string()
}

/// Writes unless an earlier write failed. Flushed at once: standard output may be a pipe that somebody waits on.
fn put(stream: &Mutex<Stream>, bytes: &[u8]) {
    let Ok(mut stream) = stream.lock() else { return };
    if stream.failure.is_some() {
        return;
    }
    let outcome = stream.sink.write_all(bytes).and_then(|()| stream.sink.flush());
    stream.failure = outcome.err();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that the test can look into.
    #[derive(Clone, Default)]
    struct Kept(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_our_own_text_loses_its_colours() {
        let out = Kept::default();
        let sink = Box::new(out.clone());
        let printer = Printer::new(
            sink,
            ColorChoice::Never,
            Box::new(io::sink()),
            ColorChoice::Never,
            false,
        );
        printer.line("\u{1b}[31mours\u{1b}[0m");
        printer.bytes(b"\x1b[31mtheirs\xff");
        assert_eq!(*out.0.lock().unwrap(), b"ours\n\x1b[31mtheirs\xff");
    }

    fn printer_to(kind: io::ErrorKind) -> Printer {
        let (out, err) = (Box::new(Failing(kind)), Box::new(Failing(kind)));
        Printer::new(out, ColorChoice::Never, err, ColorChoice::Never, false)
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        let gone = printer_to(io::ErrorKind::BrokenPipe);
        gone.line("x");
        assert_eq!((gone.failure(), gone.is_deaf()), (None, true));
        let full = printer_to(io::ErrorKind::StorageFull);
        full.line("x");
        assert!(full.failure().is_some());
    }
}
