//! A command as observed from this machine: when it began, what it printed, where its streams went.
//!
//! It must never repeat the guest's own claims.

use std::time::Instant;

use crabbox_host::clock;
use crabbox_workspace::transcript::Transcript;

use crate::run::request::ResultOptions;

/// A command as observed from this machine.
#[derive(Debug, Clone)]
pub(super) struct Witnessed {
    /// When it began: Unix seconds, and nanoseconds within the second.
    pub(super) at: (i64, u32),
    /// The same as a monotonic time, for measuring.
    pub(super) began: Instant,
    /// The SHA-256 of both streams in the order of arrival, in hexadecimal digits.
    pub(super) sha256: String,
    /// The end of its output, without streams that went into files.
    pub(super) end: String,
    /// Its streams that went into files.
    pub(super) captured: Vec<Captured>,
}

impl Witnessed {
    /// A command that begins now.
    pub(super) fn begin() -> Self {
        Self {
            at: clock::unix_now(),
            began: Instant::now(),
            sha256: String::new(),
            end: String::new(),
            captured: Vec::new(),
        }
    }

    /// Completes the observation of an ended command; `bytes` are the sizes of standard output and standard
    /// error.
    pub(super) fn ended(mut self, transcript: &Transcript, results: &ResultOptions, bytes: [u64; 2]) -> Self {
        (self.sha256, self.end) = (transcript.sha256(), transcript.end());
        let paths = [
            ("stdout", &results.capture_stdout),
            ("stderr", &results.capture_stderr),
        ];
        for ((stream, path), bytes) in paths.into_iter().zip(bytes) {
            self.captured.extend(path.iter().map(|path| Captured {
                stream,
                path: path.display().to_string(),
                bytes,
            }));
        }
        self
    }
}

/// A stream that was captured in a file.
#[derive(Debug, Clone)]
pub(super) struct Captured {
    /// `stdout` or `stderr`.
    pub(super) stream: &'static str,
    /// The file's name as given.
    pub(super) path: String,
    /// How many bytes were written.
    pub(super) bytes: u64,
}
