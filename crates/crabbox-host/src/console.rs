//! The guest's serial console: read from the VMM's standard output, kept in a bounded file.
//!
//! The VMM writes into a named pipe that both ends hold open for reading and writing, so that a VMM never gets a broken pipe
//! when its supervisor dies, and never blocks on a full one: it loses console output instead. At most two files of
//! [`FILE_LIMIT`] bytes are kept.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// Size at which the file is turned over, in bytes.
pub const FILE_LIMIT: u64 = 512 * 1024;

/// Why the console cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("cannot record the console in {}", path.display())]
pub struct ConsoleError {
    /// The pipe or the file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// Makes (or reuses) the console pipe at `path` and opens it for both ends.
pub fn open_pipe(path: &Path) -> Result<File, ConsoleError> {
    let fail = |source: std::io::Error| ConsoleError {
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
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts recording `pipe` into `file`.
    pub fn start(pipe: File, file: &Path) -> Result<Self, ConsoleError> {
        let mut log = BoundedLog::open(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || record(pipe, &mut log, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops after what is in the pipe now has been written.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A recorder that panicked has nothing left to write.
            thread.join().ok();
        }
    }
}

fn record(mut pipe: File, log: &mut BoundedLog, stop: &AtomicBool) {
    let mut chunk = [0; 16 * 1024];
    loop {
        let ending = stop.load(Ordering::Acquire);
        match pipe.read(&mut chunk) {
            // The file may be gone with its lease or its disk full: the guest goes on either way.
            Ok(count) if count > 0 => log.write(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !ending => {
                let wait = Timespec {
                    tv_sec: 0,
                    tv_nsec: 50_000_000,
                };
                poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&wait)).ok();
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// A log that is turned over at [`FILE_LIMIT`].
#[derive(Debug)]
struct BoundedLog {
    path: PathBuf,
    file: File,
    size: u64,
}

impl BoundedLog {
    fn open(path: &Path) -> Result<Self, ConsoleError> {
        let fail = |source| ConsoleError {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > FILE_LIMIT {
            let fresh = std::fs::rename(&self.path, older(&self.path))
                .is_ok()
                .then(|| Self::open(&self.path));
            match fresh {
                Some(Ok(fresh)) => *self = fresh,
                _ => return,
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }
}

/// Where the older half of a turned-over log is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The last `lines` lines of a log, control characters made harmless: the guest wrote them, and they will reach a terminal.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let mut bytes = std::fs::read(older(path)).unwrap_or_default();
    bytes.extend(std::fs::read(path).unwrap_or_default());
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<String> = text
        .lines()
        .map(harmless)
        .filter(|line| !line.trim().is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

/// Drops terminal sequences and control characters but tabs.
pub fn harmless(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                }
            }
            '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
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
        recorder.finish();
        assert_eq!(tail(&log, 5), ["hello", "red"]);
    }

    #[test]
    fn the_file_is_bounded_and_the_newest_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = BoundedLog::open(&path).unwrap();
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..40 {
            log.write(&block);
        }
        log.write(b"\nlast\n");
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&older(&path)) <= 2 * FILE_LIMIT);
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
}
