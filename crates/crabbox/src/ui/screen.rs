//! A full-screen view on a terminal, redrawn in place when something changes, and removed at the end.
//!
//! It uses the alternate screen, so that the contents of the primary one come back intact. It must never
//! leave the terminal in it.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crabbox_host::console::harmless;
use crabbox_host::terminal;
use crabbox_host::wait;

use super::Printer;

/// Alternate screen, no cursor, and long lines cut instead of wrapped (xterm's private modes 1049, 25 and 7).
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l";
/// Undoes [`ENTER`].
const LEAVE: &str = "\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l";
/// To the upper left corner.
const HOME: &str = "\u{1b}[H";
/// Clears the rest of the line, and of the screen.
const REST_OF_LINE: &str = "\u{1b}[K";
const REST_OF_SCREEN: &str = "\u{1b}[J";
/// The number of lines assumed for a terminal that does not report it.
const USUAL: u16 = 24;

/// The screen. The terminal is restored when it is dropped, and immediately when an end is requested: a
/// second Ctrl-C kills the program wherever it is.
pub(crate) struct Screen<'a> {
    printer: &'a Printer,
    shown: Vec<String>,
    is_left: Arc<AtomicBool>,
}

impl<'a> Screen<'a> {
    /// Enters the screen if standard output is a capable terminal. `asked` becomes readable when an end is
    /// requested.
    pub(crate) fn enter(printer: &'a Printer, term: Option<&str>, asked: BorrowedFd<'_>) -> Option<Self> {
        if !printer.is_terminal() || term.is_none_or(|term| term == "dumb") {
            return None;
        }
        let asked = asked.try_clone_to_owned().ok()?;
        printer.bytes(ENTER.as_bytes());
        let is_left = Arc::new(AtomicBool::new(false));
        let left = Arc::clone(&is_left);
        // The thread ends with the program. It is needed because polling a host that does not answer may take
        // longer than a user would wait.
        std::thread::spawn(move || {
            if wait::readable(asked.as_fd()).is_ok() && !left.swap(true, Ordering::SeqCst) {
                let mut out = io::stdout();
                out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush()).ok();
            }
        });
        Some(Self {
            printer,
            shown: Vec::new(),
            is_left,
        })
    }

    /// Draws `lines`, unless they are already shown.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        let frame = frame(lines, terminal::rows().unwrap_or(USUAL));
        if frame == self.shown || self.is_left.load(Ordering::SeqCst) {
            return;
        }
        self.printer.bytes(drawn(&frame).as_bytes());
        self.shown = frame;
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        if !self.is_left.swap(true, Ordering::SeqCst) {
            self.printer.bytes(LEAVE.as_bytes());
        }
    }
}

/// As many of the lines as fit, and how many do not.
fn frame(lines: &[String], rows: u16) -> Vec<String> {
    let room = usize::from(rows).max(2);
    let mut frame: Vec<String> = lines.iter().take(room).map(|line| harmless(line)).collect();
    if lines.len() > room {
        frame[room - 1] = format!("... and {} more", lines.len() + 1 - room);
    }
    frame
}

fn drawn(frame: &[String]) -> String {
    let lines: Vec<String> = frame.iter().map(|line| format!("{line}{REST_OF_LINE}")).collect();
    format!("{HOME}{}{REST_OF_SCREEN}", lines.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_no_longer_than_the_terminal_and_says_what_is_not_on_it() {
        let lines: Vec<String> = (1..=10).map(|line| format!("line {line}")).collect();
        assert_eq!(frame(&lines, 10).len(), 10);
        assert_eq!(frame(&lines, 4), ["line 1", "line 2", "line 3", "... and 7 more"]);
        assert_eq!(frame(&["a\u{1b}[2Jb".to_owned()], 4), ["ab"]);
        let text = drawn(&frame(&lines, 2));
        assert_eq!(text, "\u{1b}[Hline 1\u{1b}[K\r\n... and 9 more\u{1b}[K\u{1b}[J");
    }
}
