//! Runs one rsync of named files and reports its progress.
//!
//! It must never delete (the agent does that, because it knows which files came from us), never follow links,
//! and never skip a file that it was asked to send because its size and time look equal.

use std::io::{Read, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crabbox_host::clock::nap;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::process::die_with_us;

use crate::channel::Channel;
use crate::events::{Progress, SyncEvents};

/// Environment variables that would change what rsync does.
const REDIRECTS: [&str; 8] = [
    "RSYNC_RSH",
    "RSYNC_ICONV",
    "RSYNC_CHECKSUM_LIST",
    "RSYNC_PROTECT_ARGS",
    "RSYNC_OLD_ARGS",
    "RSYNC_MAX_ALLOC",
    "RSYNC_PARTIAL_DIR",
    "RSYNC_SKIP_COMPRESS",
];

/// The exit code when some files vanished during the transfer.
const VANISHED: i32 = 24;

/// How much of standard error is kept, in bytes.
const STDERR_KEPT: usize = 16 * 1024;

/// The parameters of a transfer.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    /// The local root, absolute.
    pub(crate) root: &'a std::path::Path,
    /// The remote workdir, absolute.
    pub(crate) workdir: &'a str,
    /// A directory on the same remote file system for partial files.
    pub(crate) temp_dir: &'a str,
    /// Paths below the root, NUL after each.
    pub(crate) files: Vec<u8>,
    /// Compress the data in transit.
    pub(crate) compress: bool,
    /// Compare checksums and leave equal files alone, instead of sending all.
    pub(crate) checksum: bool,
    /// Kill it after this long.
    pub(crate) limit: Option<Duration>,
}

/// How a transfer can fail.
#[derive(Debug, thiserror::Error)]
pub enum RsyncError {
    /// It could not be run.
    #[error("cannot run rsync: install it on this machine (Debian: apt install rsync)")]
    Run {
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// Waiting for it failed.
    #[error("cannot wait for rsync")]
    Wait {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("rsync failed: {said} (exit code {code})")]
    Failed {
        /// rsync's exit code, see rsync(1); -1 when a signal ended it.
        code: i32,
        /// Its first error line.
        said: String,
    },
    /// It took longer than `sync.timeout`.
    #[error("rsync timed out after {}s; next_action=retry with a longer sync.timeout (CRABBOX_SYNC_TIMEOUT)", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
}

/// Whether all files still existed when they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    SomeVanished,
}

impl Transfer<'_> {
    fn command(&self, channel: &Channel) -> Cmd {
        let mut cmd = Cmd::new("rsync")
            .environment(channel.environment())
            .args([
                "--links",
                "--perms",
                "--times",
                "--modify-window=-1",
                "--protect-args",
            ])
            .args([
                "--files-from=-",
                "--from0",
                "--no-h",
                "--info=progress2",
                "--outbuf=N",
            ])
            .arg(if self.checksum {
                "--checksum"
            } else {
                "--ignore-times"
            });
        if self.compress {
            cmd = cmd.arg("--compress");
        }
        for name in REDIRECTS {
            cmd = cmd.env_remove(name);
        }
        let mut root = self.root.as_os_str().to_owned();
        root.push("/");
        cmd.env("LC_ALL", "C")
            .arg("--temp-dir")
            .arg(self.temp_dir)
            .arg("-e")
            .arg(channel.rsh())
            .arg("--")
            .arg(root)
            .arg(format!("{}:{}/", channel.host(), self.workdir))
    }

    /// Runs rsync until it ends.
    pub(crate) fn run(self, channel: &Channel, events: &dyn SyncEvents) -> Result<Sent, RsyncError> {
        let cmd = self.command(channel);
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // rsync must end with us, because another client may enter the tree as soon as we are gone.
        die_with_us(&mut command);
        let mut child = cmd
            .spawn(&mut command)
            .map_err(|source| RsyncError::Run { source })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let files = self.files;
        let (status, stderr) = std::thread::scope(|scope| {
            if let Some(mut pipe) = stdin {
                // If rsync ends early, its exit code shows why, so ignore the broken pipe.
                scope.spawn(move || pipe.write_all(&files).ok());
            }
            let stderr = scope.spawn(|| stderr.map(keep_head).unwrap_or_default());
            scope.spawn(|| stdout.map(|stream| follow(stream, events)));
            let status = wait(&mut child, self.limit);
            (status, stderr.join().unwrap_or_default())
        });
        match status?.code() {
            Some(0) => Ok(Sent::All),
            Some(VANISHED) => Ok(Sent::SomeVanished),
            code => Err(RsyncError::Failed {
                code: code.unwrap_or(-1),
                said: reason(&stderr),
            }),
        }
    }
}

fn wait(child: &mut Child, limit: Option<Duration>) -> Result<std::process::ExitStatus, RsyncError> {
    let Some(limit) = limit else {
        return child.wait().map_err(|source| RsyncError::Wait { source });
    };
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|source| RsyncError::Wait { source })? {
            return Ok(status);
        }
        if started.elapsed() >= limit {
            // It may have ended already; either way it is reaped here.
            child.kill().ok();
            child.wait().ok();
            return Err(RsyncError::TimedOut { limit });
        }
        nap(Duration::from_millis(2));
    }
}

/// The first line that describes an error.
fn reason(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(|line| line.starts_with("rsync:") || line.starts_with("rsync error"))
        .or_else(|| lines().next())
        .unwrap_or("no message")
        .to_owned()
}

fn keep_head(mut stream: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        let room = STDERR_KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
    kept
}

/// Turns the lines of `--info=progress2` into events; they end in CR, the last one in LF.
fn follow(mut stream: impl Read, events: &dyn SyncEvents) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        for byte in &chunk[..count] {
            if !matches!(byte, b'\r' | b'\n') {
                line.push(*byte);
                continue;
            }
            if let Some(progress) = parse(&String::from_utf8_lossy(&line)) {
                events.progress(progress);
            }
            line.clear();
        }
        line.truncate(4096);
    }
}

/// `     123456  45%   12.34MB/s    0:00:01 (xfr#5, to-chk=10/100)`.
fn parse(line: &str) -> Option<Progress> {
    let mut words = line.split_whitespace();
    let bytes = words.next()?.parse().ok()?;
    words.next()?.strip_suffix('%')?;
    let files = line
        .split_once("xfr#")
        .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    Some(Progress { bytes, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read() {
        let line = "     123456  45%   12.34MB/s    0:00:01 (xfr#5, to-chk=10/100)";
        assert_eq!(
            parse(line),
            Some(Progress {
                bytes: 123_456,
                files: Some(5)
            })
        );
        assert_eq!(
            parse("     12  0%  1kB/s 0:00:00"),
            Some(Progress {
                bytes: 12,
                files: None
            })
        );
        assert_eq!(parse("sending incremental file list"), None);
    }

    #[test]
    fn the_reason_is_the_first_error_line() {
        let text =
            b"Warning: banner\nrsync: [sender] x failed: No space left on device (28)\nrsync error: some\n";
        assert_eq!(
            reason(text),
            "rsync: [sender] x failed: No space left on device (28)"
        );
    }
}
