//! Standard output and standard error.
//!
//! Results go to standard output, progress and messages to standard error. A reader that went away (`| head`)
//! is not a failure: further output of ours is dropped, and the program continues to its end, because it may
//! have a lease to give back. What a remote command prints is different: whoever passes it on hears that
//! nobody reads it, and can end the command. Our own messages may contain a name or text written by a
//! repository or guest, which must never control or reorder the terminal, nor begin a line: what prints a
//! line prints one, whatever is in its text. Only texts whose line breaks are our own (usage, an error with
//! its causes, a command to paste) go to the methods for several.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};

use anstream::ColorChoice;
use anstyle::{AnsiColor, Effects, Style};
use crabbox_engine::stage::Stage;
use crabbox_host::console::harmless;
use crabbox_host::terminal;

use super::events::{Event, Pieces};
use super::json::{self, Document, JsonError};
use crate::env::Env;

/// Where text goes; shared by all threads.
pub(crate) struct Printer {
    out: Mutex<Stream>,
    err: Mutex<Stream>,
    progress: bool,
    terminal: bool,
    /// Set when standard error is for a program; holds the remote command's bytes of an incomplete character.
    events: OnceLock<Mutex<Pieces>>,
    /// Set when a person has asked for as much detail as a script gets.
    verbose: OnceLock<()>,
    /// The warnings that [`Self::warn_once`] has printed.
    warned: Mutex<Vec<String>>,
}

struct Stream {
    sink: Box<dyn Write + Send>,
    /// Whether this program's own text is coloured.
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
    /// The streams of this process, coloured only where a terminal reads them and the environment does not
    /// object.
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
            verbose: OnceLock::new(),
            warned: Mutex::default(),
        }
    }

    /// Whether standard output is a terminal, on which control characters would take effect.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether standard output accepts nothing any more, so that producing more is pointless.
    pub(crate) fn is_deaf(&self) -> bool {
        self.out.lock().map_or(true, |stream| stream.failure.is_some())
    }

    /// Whether a write found that the reader of either stream has gone.
    pub(crate) fn has_lost_reader(&self) -> bool {
        is_unread(&self.out) || is_unread(&self.err)
    }

    /// Whether somebody may still read standard output, for commands that go on until their reader is gone:
    /// while there is nothing to write, no failing write tells of it.
    pub(crate) fn has_reader(&self) -> bool {
        !self.is_deaf() && terminal::is_read()
    }

    /// Whether a person watches standard error, so that progress may be drawn there.
    pub(crate) fn shows_progress(&self) -> bool {
        self.progress && !self.tells_events()
    }

    /// From here on standard error carries only JSON lines.
    pub(crate) fn tell_events(&self) {
        self.events.get_or_init(Mutex::default);
    }

    /// Whether standard error is JSON lines.
    pub(crate) fn tells_events(&self) -> bool {
        self.events.get().is_some()
    }

    /// From here on a person gets as much detail as a script.
    pub(crate) fn be_verbose(&self) {
        self.verbose.get_or_init(|| ());
    }

    /// Whether standard error is read by a person, who gets one short line per stage. Scripts get what the Go
    /// program prints.
    pub(crate) fn is_brief(&self) -> bool {
        self.shows_progress() && self.verbose.get().is_none()
    }

    /// A line about a stage for a person; scripts get other lines.
    pub(crate) fn brief(&self, text: impl Display) {
        if self.is_brief() {
            self.note(text);
        }
    }

    /// A detail for scripts, programs and `--verbose`; not shown to a person otherwise.
    pub(crate) fn detail(&self, text: impl Display) {
        if !self.is_brief() {
            self.note(text);
        }
    }

    /// The same of several lines.
    pub(crate) fn details(&self, text: impl Display) {
        if !self.is_brief() {
            self.notes(text);
        }
    }

    /// An event for a program; a person gets other lines.
    pub(crate) fn event(&self, event: &Event<'_>) {
        if !self.tells_events() {
            return;
        }
        // All keys are strings, so serialization cannot fail.
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
        put_text(&self.out, None, &harmless_line(&text));
    }

    /// Several lines of result, on standard output.
    pub(crate) fn lines(&self, text: impl Display) {
        put_text(&self.out, None, &harmless_lines(&text));
    }

    /// Raw bytes on standard output.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        put(&self.out, bytes);
    }

    /// The standard output of a remote command, on ours. The error is a broken pipe if its reader has gone;
    /// [`Self::failure`] has the others.
    pub(crate) fn command_out(&self, bytes: &[u8]) -> io::Result<()> {
        put(&self.out, bytes);
        read_by_somebody(&self.out)
    }

    /// One line on standard error.
    pub(crate) fn note(&self, text: impl Display) {
        self.noted(&harmless_line(&text));
    }

    /// Several lines on standard error.
    pub(crate) fn notes(&self, text: impl Display) {
        self.noted(&harmless_lines(&text));
    }

    fn noted(&self, text: &str) {
        if self.tells_events() {
            return self.event(&Event::Note { text });
        }
        put_text(&self.err, None, text);
    }

    /// A line on standard error that begins with `label`, one of this program's own words.
    fn labelled(&self, colour: AnsiColor, label: &str, text: &str) {
        let style = colour.on_default().effects(Effects::BOLD);
        put_text(&self.err, Some((style, label)), text);
    }

    /// A line that begins with `hint:`, on standard error.
    pub(super) fn hint(&self, text: impl Display) {
        self.labelled(AnsiColor::Cyan, "hint:", &harmless_line(&text));
    }

    /// The standard error of a remote command, on ours. The error is a broken pipe if its reader has gone.
    pub(crate) fn command_err(&self, bytes: &[u8]) -> io::Result<()> {
        if self.tells_events() {
            self.stderr_event(|pieces| pieces.add(bytes));
        } else {
            put(&self.err, bytes);
        }
        read_by_somebody(&self.err)
    }

    /// A line that begins with `warning:`, on standard error.
    pub(crate) fn warn(&self, text: impl Display) {
        self.warned_of(&harmless_line(&text));
    }

    /// The same of several lines.
    pub(crate) fn warnings(&self, text: impl Display) {
        self.warned_of(&harmless_lines(&text));
    }

    fn warned_of(&self, text: &str) {
        if self.tells_events() {
            return self.event(&Event::Warning { text });
        }
        self.labelled(AnsiColor::Yellow, "warning:", text);
    }

    /// The same, unless this process has already printed it: a command that runs others reads the same files
    /// several times.
    pub(crate) fn warn_once(&self, text: impl Display) {
        let text = text.to_string();
        let is_new = self.warned.lock().map_or(true, |mut warned| {
            let is_new = !warned.contains(&text);
            if is_new {
                warned.push(text.clone());
            }
            is_new
        });
        if is_new {
            self.warn(text);
        }
    }

    /// A document as one line of JSON, escaped as in the Go program, on standard output.
    pub(crate) fn json(&self, value: &impl Document) -> Result<(), JsonError> {
        put(&self.out, format!("{}\n", json::line(value, true)?).as_bytes());
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

/// A text of this program's own, already harmless. Only the label may be coloured, because the text may come
/// from anywhere.
fn put_text(stream: &Mutex<Stream>, label: Option<(Style, &str)>, text: &str) {
    let coloured = stream.lock().is_ok_and(|stream| stream.coloured);
    let line = match label {
        Some((style, label)) if coloured => format!("{style}{label}{style:#} {text}\n"),
        Some((_, label)) => format!("{label} {text}\n"),
        None => format!("{text}\n"),
    };
    put(stream, line.as_bytes());
}

/// A text made safe for a terminal, on one line.
fn harmless_line(text: &impl Display) -> String {
    harmless(&text.to_string().replace('\n', " "))
}

/// A text of several lines, made safe for a terminal.
fn harmless_lines(text: &impl Display) -> String {
    let text = text.to_string();
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

/// Writes, unless an earlier write failed. Flushed at once, because standard output may be a pipe whose
/// reader waits.
fn put(stream: &Mutex<Stream>, bytes: &[u8]) {
    let Ok(mut stream) = stream.lock() else { return };
    if stream.failure.is_some() {
        return;
    }
    let outcome = stream.sink.write_all(bytes).and_then(|()| stream.sink.flush());
    stream.failure = outcome.err();
}

/// Whether an earlier write found that the reader has gone.
fn is_unread(stream: &Mutex<Stream>) -> bool {
    let failed = |stream: &Stream| stream.failure.as_ref().map(io::Error::kind);
    stream
        .lock()
        .is_ok_and(|stream| failed(&stream) == Some(io::ErrorKind::BrokenPipe))
}

/// The broken pipe of a stream whose reader has gone.
fn read_by_somebody(stream: &Mutex<Stream>) -> io::Result<()> {
    if is_unread(stream) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
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

    /// A sink that the test can inspect.
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

    /// What a printer with colours writes to standard error and standard output.
    fn printed(print: impl FnOnce(&Printer)) -> [String; 2] {
        let (out, err) = (Kept::default(), Kept::default());
        let printer = Printer::new(
            Box::new(out.clone()),
            ColorChoice::AlwaysAnsi,
            Box::new(err.clone()),
            ColorChoice::AlwaysAnsi,
            true,
        );
        print(&printer);
        [err, out].map(|kept| String::from_utf8(kept.0.lock().unwrap().clone()).unwrap())
    }

    const FOREIGN: &str = "a\u{1b}[2Jb\u{9b}2Jc\u{202e}d\u{1b}]0;t\u{7}e\r";

    #[test]
    fn a_foreign_name_does_not_drive_the_terminal_and_our_label_keeps_its_colour() {
        let [err, out] = printed(|printer| {
            printer.line(FOREIGN);
            printer.notes(format_args!("one {FOREIGN}\n  two"));
            printer.warn(FOREIGN);
            printer.hint(FOREIGN);
        });
        assert_eq!(out, "abc\u{fffd}de\n");
        assert_eq!(
            err,
            "one abc\u{fffd}de\n  two\n\u{1b}[1m\u{1b}[33mwarning:\u{1b}[0m abc\u{fffd}de\n\
             \u{1b}[1m\u{1b}[36mhint:\u{1b}[0m abc\u{fffd}de\n"
        );
    }

    #[test]
    fn a_foreign_name_does_not_begin_a_line() {
        let [err, out] = printed(|printer| {
            printer.line("FAIL a\nPASS b\r\n\u{2028}\u{85}c");
            printer.note("a\nkept b");
            printer.warn("a\nb");
            printer.hint("a\nb");
            printer.warn_once("c\nd");
        });
        assert_eq!(out, "FAIL a PASS b \u{fffd}c\n");
        assert_eq!(err.lines().count(), 4, "{err}");
        let [err, _] = printed(|printer| {
            printer.tell_events();
            printer.note("a\nb");
        });
        assert_eq!(err, "{\"event\":\"note\",\"text\":\"a b\"}\n");
    }

    #[test]
    fn events_carry_a_foreign_name_only_escaped_or_neutral() {
        let [err, _] = printed(|printer| {
            printer.tell_events();
            printer.note(FOREIGN);
            printer.warn(FOREIGN);
            printer.command_err(FOREIGN.as_bytes()).unwrap();
        });
        assert_eq!(err.lines().count(), 3, "{err}");
        for line in err.lines() {
            assert!(
                !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
                "{line:?}"
            );
        }
        let last: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
        assert_eq!(last["text"], FOREIGN, "the command's own stream is whole");
    }

    #[test]
    fn a_person_sees_the_brief_lines_and_scripts_and_programs_the_details() {
        let seen = |terminal: bool, set: fn(&Printer)| {
            let err = Kept::default();
            let (out, sink) = (Box::new(io::sink()), Box::new(err.clone()));
            let printer = Printer::new(out, ColorChoice::Never, sink, ColorChoice::Never, terminal);
            set(&printer);
            printer.brief("brief");
            printer.detail("detail");
            String::from_utf8(err.0.lock().unwrap().clone()).unwrap()
        };
        assert_eq!(seen(true, |_| {}), "brief\n");
        assert_eq!(seen(true, Printer::be_verbose), "detail\n");
        assert_eq!(seen(false, |_| {}), "detail\n");
        let events = seen(true, Printer::tell_events);
        assert_eq!(events, "{\"event\":\"note\",\"text\":\"detail\"}\n");
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
        printer.command_out(b"\x1b[31mtheirs\xff").unwrap();
        assert_eq!(*out.0.lock().unwrap(), b"ours\n\x1b[31mtheirs\xff");
    }

    fn printer_to(kind: io::ErrorKind) -> Printer {
        let (out, err) = (Box::new(Failing(kind)), Box::new(Failing(kind)));
        Printer::new(out, ColorChoice::Never, err, ColorChoice::Never, false)
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        let gone = printer_to(io::ErrorKind::BrokenPipe);
        assert!(!gone.has_lost_reader(), "no write has found it");
        gone.line("x");
        assert_eq!((gone.failure(), gone.is_deaf()), (None, true));
        assert!(gone.has_lost_reader());
        for passed in [gone.command_out(b"y"), gone.command_err(b"y")] {
            assert_eq!(passed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        let full = printer_to(io::ErrorKind::StorageFull);
        full.line("x");
        full.note("x");
        assert!(full.failure().is_some());
        assert!(
            !full.has_lost_reader(),
            "somebody reads what could not be written"
        );
        // The command may still do something worth its while.
        full.command_out(b"y").unwrap();
        let of_errors = printer_to(io::ErrorKind::BrokenPipe);
        of_errors.note("x");
        assert_eq!((of_errors.is_deaf(), of_errors.has_lost_reader()), (false, true));
    }
}
