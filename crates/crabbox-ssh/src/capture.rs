//! Plumbing calls: a short script whose output the program itself wants.
//!
//! Both streams are kept, up to a limit. It must never be used for a user's command, whose output is
//! streamed.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::beginning::{NotStarted, ShellFailure};
use crate::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
use crate::remote_line::UNREAD;
use crate::target::Target;

/// How much of each stream is kept, in bytes; the rest is read and dropped.
pub const CAPTURE_LIMIT: usize = 64 * 1024 * 1024;

/// What a plumbing call left behind.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: RemoteStatus,
    /// Its standard output, at most [`CAPTURE_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Its standard error, at most [`CAPTURE_LIMIT`] bytes.
    pub stderr: Vec<u8>,
}

impl Captured {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status == RemoteStatus::Exited(0)
    }

    /// Standard output as text, invalid UTF-8 replaced, trailing white space cut.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, invalid UTF-8 replaced, trailing white space cut.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

/// Runs `script` on `target` with `stdin` and captures both streams; it is stopped when it runs longer than
/// `limit`.
pub fn capture(
    target: &Target,
    script: &str,
    stdin: Stdin<'_>,
    limit: Option<Duration>,
) -> Result<Captured, ExecError> {
    capture_until(target, script, stdin, limit, None)
}

/// Like [`capture`], but also stops when `cancel` becomes readable; for calls that a user waits for.
pub fn capture_until(
    target: &Target,
    script: &str,
    stdin: Stdin<'_>,
    limit: Option<Duration>,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Captured, ExecError> {
    let (mut stdout, mut stderr) = (Bounded::default(), Bounded::default());
    let exec = Exec {
        script: script.to_owned(),
        stdin,
        stdout: Sink::Writer(&mut stdout),
        stderr: Sink::Writer(&mut stderr),
        cancel,
        limit,
    };
    let status = exec::run(target, exec)?;
    Ok(Captured {
        status,
        stdout: stdout.0,
        stderr: stderr.0,
    })
}

/// [`capture_until`] for a check, which never exits silently with 255 by itself: then it was never read,
/// because something there took our line's standard input away.
pub fn capture_check(
    target: &Target,
    script: &str,
    limit: Duration,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<Captured, ExecError> {
    let seen = capture_until(target, script, Stdin::Null, Some(limit), cancel)?;
    if seen.status == RemoteStatus::Exited(UNREAD) && seen.stdout.is_empty() && seen.stderr.is_empty() {
        let source = NotStarted {
            instead: ShellFailure::NoInput,
            printed: String::new(),
        };
        return Err(ExecError::NotStarted {
            destination: target.destination(),
            source,
        });
    }
    Ok(seen)
}

#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CAPTURE_LIMIT.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
