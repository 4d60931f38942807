//! The command's two streams: passed through as they arrive, or written to files, remembering the last lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crabbox_host::budget::Bounded;
use crabbox_host::console::harmless;

use crate::transcript::Transcript;

/// How many of the last lines of a stream are remembered.
pub const TAIL_LINES: usize = 40;

/// The longest remembered line, in bytes; the rest of a line is dropped.
const LINE_LIMIT: usize = 4096;

/// The prefix of an output line with which the command starts a new phase.
const PHASE: &[u8] = b"CRABBOX_PHASE:";
/// The most phases that are kept.
const PHASES: usize = 100;
/// The longest name of a phase, in bytes.
const PHASE_NAME: usize = 80;
/// The phase in which every command begins, without announcing it.
pub const FIRST_PHASE: &str = "user-command";

/// The phases of a command: the initial one, then those that it announced on either stream.
#[derive(Debug)]
pub struct Phases(Mutex<Vec<(String, Instant)>>);

impl Phases {
    /// The phases of a command that began at `began`.
    pub fn of_command(began: Instant) -> Self {
        Self(Mutex::new(vec![(FIRST_PHASE.to_owned(), began)]))
    }

    fn see(&self, line: &[u8]) {
        let Some(name) = line.trim_ascii_start().strip_prefix(PHASE) else {
            return;
        };
        let name = phase_name(&String::from_utf8_lossy(name));
        if name.is_empty() {
            return;
        }
        if let Ok(mut phases) = self.0.lock()
            && phases.len() < PHASES
        {
            phases.push((name, Instant::now()));
        }
    }

    /// The phases of a command that ended at `end`, in order, each with its duration.
    pub fn ended(&self, end: Instant) -> Vec<(String, Duration)> {
        let Ok(phases) = self.0.lock() else {
            return Vec::new();
        };
        let ends = phases.iter().skip(1).map(|(_, began)| *began).chain([end]);
        phases
            .iter()
            .zip(ends)
            .map(|((name, began), ended)| (name.clone(), ended.saturating_duration_since(*began)))
            .collect()
    }
}

/// The name of a phase that a command has announced: its letters, digits and `._-`, with blanks as hyphens.
fn phase_name(announced: &str) -> String {
    let announced = announced.trim();
    let mut end = announced.len().min(PHASE_NAME);
    while !announced.is_char_boundary(end) {
        end -= 1;
    }
    let kept = |letter: char| match letter {
        ' ' => Some('-'),
        _ if letter.is_ascii_alphanumeric() || "._-".contains(letter) => Some(letter),
        _ => None,
    };
    announced[..end].chars().filter_map(kept).collect()
}

impl std::fmt::Debug for To<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass(_) => "Pass",
            Self::File(_) => "File",
        })
    }
}

/// A stream that forwards its data and remembers the last lines.
pub struct Tee<'a> {
    to: To<'a>,
    phases: &'a Phases,
    transcript: Option<&'a Transcript>,
    bytes: u64,
    lines: VecDeque<Vec<u8>>,
    open: Vec<u8>,
    /// Bytes written to a file.
    written: u64,
    is_unread: bool,
}

/// Passes a part of a stream on. An error ends the command, as one of a [`Write`] does.
pub type Pass<'a> = dyn Fn(&[u8]) -> io::Result<()> + Sync + 'a;

/// Where a stream goes.
pub enum To<'a> {
    /// To our own stream.
    Pass(&'a Pass<'a>),
    /// Into a file, instead of the terminal.
    File(Bounded<File>),
}

impl std::fmt::Debug for Tee<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tee")
            .field("lines", &self.lines.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Tee<'a> {
    /// A stream to `to` that detects phases.
    pub fn new(to: To<'a>, phases: &'a Phases) -> Self {
        Self {
            to,
            phases,
            transcript: None,
            bytes: 0,
            lines: VecDeque::new(),
            open: Vec::new(),
            written: 0,
            is_unread: false,
        }
    }

    /// The same, also feeding a transcript if there is one.
    pub fn with(mut self, transcript: Option<&'a Transcript>) -> Self {
        self.transcript = transcript;
        self
    }

    /// How many bytes were received.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes were written to the file; `None` if there is none.
    pub fn captured(&self) -> Option<u64> {
        matches!(self.to, To::File(_)).then_some(self.written)
    }

    /// Whether its reader has gone.
    pub fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// The last lines, without terminal sequences.
    pub fn tail(&self) -> Vec<String> {
        let open = Some(&self.open).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(open);
        lines
            .map(|line| harmless(&String::from_utf8_lossy(line)))
            .collect()
    }

    fn remember(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_LIMIT.saturating_sub(self.open.len());
            self.open.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.phases.see(&self.open);
                self.lines.push_back(std::mem::take(&mut self.open));
                if self.lines.len() > TAIL_LINES {
                    self.lines.pop_front();
                }
            }
        }
    }
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::Pass(pass) => {
                let passed = pass(bytes);
                let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
                self.is_unread |= passed.as_ref().is_err_and(broken);
                passed?;
            }
            To::File(file) => {
                file.write_all(bytes)?;
                self.written += bytes.len() as u64;
            }
        }
        self.bytes += bytes.len() as u64;
        if let Some(transcript) = self.transcript {
            transcript.see(bytes, matches!(self.to, To::Pass(_)));
        }
        self.remember(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_passed_on_and_the_last_lines_are_kept() {
        let seen = Mutex::new(Vec::new());
        let phases = Phases::of_command(Instant::now());
        let pass = |bytes: &[u8]| {
            seen.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        };
        let mut tee = Tee::new(To::Pass(&pass), &phases);
        for number in 0..100 {
            writeln!(tee, "line {number}").unwrap();
        }
        tee.write_all(b"\x1b[31mopen").unwrap();
        let tail = tee.tail();
        assert_eq!(
            (tail.len(), tail[0].as_str(), tail[TAIL_LINES].as_str()),
            (TAIL_LINES + 1, "line 60", "open")
        );
        assert!(seen.lock().unwrap().starts_with(b"line 0\nline 1\n"));
    }

    #[test]
    fn phases_are_told_by_whole_lines_and_have_plain_names() {
        let phases = Phases::of_command(Instant::now());
        let pass = |_: &[u8]| Ok(());
        let mut tee = Tee::new(To::Pass(&pass), &phases);
        tee.write_all(b"CRABBOX_PHASE:bui").unwrap();
        tee.write_all(b"ld\r\nx CRABBOX_PHASE:no\nCRABBOX_PHASE:\nCRABBOX_PHASE:a,b\nCRABBOX_PHASE:test\n")
            .unwrap();
        let ended = phases.ended(Instant::now() + Duration::from_secs(5));
        let names: Vec<&str> = ended.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [FIRST_PHASE, "build", "ab", "test"]);
        assert!(ended[3].1 >= Duration::from_secs(5) && ended[1].1 < Duration::from_secs(5));
    }

    #[test]
    fn a_name_of_a_phase_is_what_is_plain_of_it() {
        assert_eq!(phase_name(" unit tests \x1b[31m"), "unit-tests-31m");
        assert_eq!(phase_name(&"é".repeat(60)), "");
        assert_eq!(phase_name(&"x".repeat(100)).len(), PHASE_NAME);
    }
}
