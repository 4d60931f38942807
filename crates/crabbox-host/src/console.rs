//! The guest's serial console, read from the VMM's standard output and stored in a file with a size limit.
//!
//! The VMM writes to a named pipe. Both ends hold it open for reading and writing, so that a VMM must never
//! get a broken pipe when its supervisor dies, or block on a full pipe: it loses console output instead. At
//! most two files of [`FILE_LIMIT`] bytes are kept.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::bounded_log::{BoundedLog, FILE_LIMIT, LogError, older};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// Why the console cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The pipe could not be made or opened.
    #[error("cannot record the console in {}", path.display())]
    Pipe {
        /// The pipe.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file could not be opened.
    #[error("cannot record the console")]
    Log(#[from] LogError),
}

/// Makes (or reuses) the console pipe at `path` and opens it for both ends.
pub fn open_pipe(path: &Path) -> Result<File, ConsoleError> {
    let fail = |source: std::io::Error| ConsoleError::Pipe {
        path: path.to_owned(),
        source,
    };
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    ) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(fail(error.into())),
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| fail(error.into()))
}

/// A thread that copies the console pipe into its file.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BoundedLog>>,
}

impl Recorder {
    /// Starts recording `pipe` into `file`.
    pub fn start(pipe: File, file: &Path) -> Result<Self, ConsoleError> {
        let log = BoundedLog::open(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || record(pipe, log, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops after what is in the pipe now has been written, and then the line `last`, which is ours.
    pub fn finish(mut self, last: Option<&str>) {
        // On a line of its own, even if the guest was interrupted within one.
        let last = last.map(|line| format!("\r\n{line}\r\n"));
        self.stop.store(true, Ordering::Release);
        // A recorder that panicked has nothing left to write.
        let log = self.thread.take().and_then(|thread| thread.join().ok());
        if let (Some(mut log), Some(last)) = (log, last) {
            log.write(last.as_bytes());
        }
    }
}

fn record(mut pipe: File, mut log: BoundedLog, stop: &AtomicBool) -> BoundedLog {
    let mut chunk = [0; 16 * 1024];
    loop {
        let ending = stop.load(Ordering::Acquire);
        match pipe.read(&mut chunk) {
            // The log may be gone with its lease, or the disk full: the guest goes on either way.
            Ok(count) if count > 0 => log.write(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !ending => {
                let wait = Timespec {
                    tv_sec: 0,
                    tv_nsec: 50_000_000,
                };
                poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&wait)).ok();
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return log,
        }
    }
}

/// The last `lines` lines of a log with control characters neutralised, because a guest wrote them and a
/// terminal will show them.
///
/// The log may be in a directory, such as a jail, where its writer can replace it: only a regular file is
/// read, no link is followed, and of a long file at most the newest [`FILE_LIMIT`] bytes.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let mut bytes = newest(&older(path)).unwrap_or_default();
    bytes.extend(newest(path).unwrap_or_default());
    last_lines(&bytes, lines)
}

fn last_lines(bytes: &[u8], lines: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let texts: Vec<String> = text
        .lines()
        .map(harmless)
        .filter(|line| !line.trim().is_empty())
        .collect();
    texts[texts.len().saturating_sub(lines)..].to_vec()
}

/// A log that stays readable when its lease, and with it the file's name, is removed.
#[derive(Debug)]
pub struct OpenLog(File);

impl OpenLog {
    /// Opens the log at `path`; `None` if there is none.
    pub fn open(path: &Path) -> Option<Self> {
        open_regular(path).map(Self)
    }

    /// Its last `lines` lines, as [`tail`] returns them. If a new file has taken the log's place since it was
    /// opened, these are the last lines of the old one.
    pub fn tail(&self, lines: usize) -> Vec<String> {
        last_lines(&newest_of(&self.0).unwrap_or_default(), lines)
    }
}

/// The newest [`FILE_LIMIT`] bytes of the regular file `path`; `None` if there is no such file.
fn newest(path: &Path) -> Option<Vec<u8>> {
    newest_of(&open_regular(path)?)
}

fn open_regular(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

fn newest_of(mut file: &File) -> Option<Vec<u8>> {
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(FILE_LIMIT)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// `line` in a form that a terminal only displays: terminal sequences and control characters except tabs are
/// dropped, and characters that reorder or hide text are replaced by U+FFFD, so that their presence is
/// visible.
pub fn harmless(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push(c),
            '\u{1b}' => match chars.clone().next() {
                // `ESC @` to `ESC _` are the two-character forms of the C1 controls (ECMA-48, 5.3).
                Some(second @ '@'..='_') => {
                    chars.next();
                    skip_sequence(char::from_u32(u32::from(second) + 0x40), &mut chars);
                }
                // Other sequences: intermediate characters, then one that ends it (ECMA-35, 13.2).
                Some(' '..='~') => {
                    chars.find(|c| !(' '..='/').contains(c));
                }
                _ => {}
            },
            c if c.is_control() => skip_sequence(Some(c), &mut chars),
            c if is_format(c) => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// Skips the rest of the C1 control `introducer`: the parameters of a control sequence, or the text of a
/// string.
fn skip_sequence(introducer: Option<char>, chars: &mut std::str::Chars<'_>) {
    match introducer {
        // CSI, up to its final character.
        Some('\u{9b}') => {
            while let Some(c) = chars.clone().next().filter(|c| (' '..='~').contains(c)) {
                chars.next();
                if ('@'..='~').contains(&c) {
                    return;
                }
            }
        }
        // DCS, SOS, OSC, PM, APC: up to the string terminator; in xterm BEL also ends an OSC. An unterminated
        // string is not skipped, so it hides nothing.
        Some('\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}') => {
            let mut ahead = chars.clone();
            while let Some(c) = ahead.next() {
                let ended = c == '\u{9c}' || c == '\u{7}' || (c == '\u{1b}' && ahead.next() == Some('\\'));
                if ended {
                    *chars = ahead;
                    return;
                }
            }
        }
        _ => {}
    }
}

/// Whether a character changes how others are displayed, or is invisible: the bidirectional controls,
/// invisible operators, tags, and line separators (Unicode categories Cf, Zl and Zp, without the visible
/// number signs of Arabic).
pub fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_written_to_the_pipe_ends_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, log) = (dir.path().join("pipe"), dir.path().join("console.log"));
        let reader = open_pipe(&pipe).unwrap();
        let recorder = Recorder::start(reader, &log).unwrap();
        open_pipe(&pipe)
            .unwrap()
            .write_all(b"hello\r\n\x1b[31mred\x1b[0m\n")
            .unwrap();
        recorder.finish(None);
        assert_eq!(tail(&log, 5), ["hello", "red"]);
    }

    #[test]
    fn an_open_log_is_read_to_its_last_line_after_its_name_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, log) = (dir.path().join("pipe"), dir.path().join("console.log"));
        assert!(OpenLog::open(&log).is_none());
        let recorder = Recorder::start(open_pipe(&pipe).unwrap(), &log).unwrap();
        let open = OpenLog::open(&log).unwrap();
        open_pipe(&pipe).unwrap().write_all(b"first\nhalf a li").unwrap();
        recorder.finish(Some("the end"));
        std::fs::remove_file(&log).unwrap();
        assert_eq!(open.tail(2), ["half a li", "the end"]);
    }

    #[test]
    fn the_newest_lines_are_those_of_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(older(&path), "first\n").unwrap();
        std::fs::write(&path, "last\n").unwrap();
        assert_eq!(tail(&path, 5), ["first", "last"]);
    }

    #[test]
    fn the_last_lines_are_at_most_as_many_as_asked_for_whatever_bytes_a_guest_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        // Blank lines do not count, nor do those of which nothing is shown.
        let log =
            b"one\n\n \t\r\n\x1b[2J\x07\ntwo \xff\xc3\r\n\x1b[31mthree\x1b[0m\x08 \xe2\x80\xae\n\xf0\x9f";
        std::fs::write(&path, log).unwrap();
        let shown = ["one", "two \u{fffd}\u{fffd}", "three \u{fffd}", "\u{fffd}"];
        let open = OpenLog::open(&path).unwrap();
        for (lines, from) in [(0, 4), (1, 3), (3, 1), (4, 0), (5, 0), (usize::MAX, 0)] {
            assert_eq!(tail(&path, lines), shown[from..], "{lines}");
            assert_eq!(open.tail(lines), shown[from..], "{lines}");
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!((tail(&path, 5), open.tail(5)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_stands_in_place_of_a_log_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret\n").unwrap();
        let (link, pipe) = (dir.path().join("link.log"), dir.path().join("pipe.log"));
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        // The older half of a rotated log is checked, too.
        std::os::unix::fs::symlink(&secret, older(&pipe)).unwrap();
        let _ends = open_pipe(&pipe).unwrap();
        for path in [&link, &pipe, &dir.path().to_owned()] {
            assert_eq!(tail(path, 5), Vec::<String>::new(), "{}", path.display());
        }
        assert_eq!(tail(&secret, 5), ["secret"]);
    }

    #[test]
    fn of_an_endless_log_only_the_newest_part_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm.log");
        let mut file = File::create(&path).unwrap();
        // A sparse file, as a compromised VMM could make it.
        file.set_len(1 << 40).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"\nlast\n").unwrap();
        assert_eq!(newest(&path).map(|bytes| bytes.len() as u64), Some(FILE_LIMIT));
        assert_eq!(tail(&path, 1), ["last"]);
    }

    #[test]
    fn a_writer_without_a_reader_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open_pipe(&dir.path().join("pipe")).unwrap();
        let full = (0..100).find_map(|_| writer.write(&[b'x'; 16 * 1024]).err());
        assert_eq!(
            full.map(|error| error.kind()),
            Some(std::io::ErrorKind::WouldBlock)
        );
    }

    #[test]
    fn nothing_that_drives_a_terminal_or_reorders_text_is_left() {
        for (text, shown) in [
            ("a\u{1b}[31;1mred\u{1b}[0mb", "aredb"),
            ("a\u{9b}31mred", "ared"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]8;;http://x\u{1b}\\link", "alink"),
            ("a\u{9d}52;c;Zm9v\u{9c}b", "ab"),
            ("a\u{1b}Pq#0\u{1b}\\b", "ab"),
            ("a\u{1b}]no end", "ano end"),
            ("a\u{1b}(0b", "ab"),
            ("a\u{1b}cb", "ab"),
            ("a\u{1b}", "a"),
            ("a\u{1b}[", "a"),
            ("a\r\u{8}\u{7f}\u{0}\u{85}b\tc", "ab\tc"),
            ("\u{202e}txt.exe", "\u{fffd}txt.exe"),
            (
                "a\u{2066}\u{2069}\u{200f}\u{61c}\u{feff}\u{e0041}b",
                "a\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}b",
            ),
            ("caf\u{e9} \u{1f980}", "caf\u{e9} \u{1f980}"),
        ] {
            assert_eq!(harmless(text), shown, "{text:?}");
        }
    }

    #[test]
    fn no_character_gets_through_that_is_a_control_or_a_format() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let shown = harmless(&format!("a{c}"));
            assert!(
                !shown.contains(|c: char| (c.is_control() && c != '\t') || is_format(c)),
                "{c:?}"
            );
        }
    }
}
